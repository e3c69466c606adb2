"""Files, folders and datasets on the Hub -> rows, each with the place it came from."""
