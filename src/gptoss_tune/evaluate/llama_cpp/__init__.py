"""A GGUF file that answers, through llama.cpp itself; the prompt and the answer are token ids.

``files``: which file a name means, without any library. ``engine``: llama.cpp in this process.
``answerer``: a conversation with it, rendered and read as everywhere in gptoss-tune.
"""
