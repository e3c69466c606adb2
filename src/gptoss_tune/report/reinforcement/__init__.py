"""A run that learns from rewards, for people: its curves, and its episodes to read."""
