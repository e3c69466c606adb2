"""A GGUF on one machine: files for Ollama, LM Studio and llama.cpp's own server."""
