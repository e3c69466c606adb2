"""GGUF, the file of llama.cpp: written from a merge, read back to be verified."""
