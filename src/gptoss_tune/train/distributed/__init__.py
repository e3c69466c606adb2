"""The processes of a run: launched, watched, stopped together."""
