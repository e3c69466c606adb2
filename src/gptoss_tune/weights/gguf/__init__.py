"""GGUF, the file of llama.cpp: its keys and tensors, read without any library."""
