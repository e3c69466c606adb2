"""What leaves the house: merged checkpoints, adapters for servers, reports, the Hub.

Nothing here imports the training room: an export needs files only, never a run in memory.
"""
