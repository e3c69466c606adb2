"""A conversation that goes on, with a model in process or with one behind a server; without torch.

``talk``: the conversation, its turns, what can be taken back. ``server``: an OpenAI-compatible
server that answers it as it comes, ``events``: what such a server sends. ``tokens``: how long it
is. ``saving``: the conversation as a row that training reads.
"""
