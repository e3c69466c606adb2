"""Memory of a step: the micro-batch that fits, and what is said where none does."""
