"""Commands that start a run, repeat it or show it."""
