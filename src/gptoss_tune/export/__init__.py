"""Export: merged checkpoints, adapters for servers, serving bundles, the Hub.

Nothing here imports the training room: an export needs files only, never a run in memory.
"""
