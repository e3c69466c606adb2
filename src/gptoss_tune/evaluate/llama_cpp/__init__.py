"""A GGUF file that answers, through llama.cpp itself; the prompt and the answer are token ids.

``engine``: llama.cpp in this process.
``answerer``: a conversation with it, rendered and read as everywhere in gptoss-tune.
"""
