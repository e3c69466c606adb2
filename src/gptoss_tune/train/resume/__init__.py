"""Going on where a run stopped: what must be equal, and the state that is read back."""
