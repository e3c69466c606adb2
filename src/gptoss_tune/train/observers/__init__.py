"""What looks at every step of a run: the events, their one ordered list, the experts' load."""
