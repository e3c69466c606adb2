"""The folder of a run: one owner of its files, read by every room above it."""
