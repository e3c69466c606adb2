"""What is compared: models in process, and models behind a chat API.

``named``: what ``--subjects`` says, without torch. ``open``: from names to subjects.
``in_process``: base, run, adapter, merged folder. ``server``: an OpenAI-compatible server;
``as_chat``: a question as its messages, ``answer``: what came back.
"""
