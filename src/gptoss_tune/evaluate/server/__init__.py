"""A model behind OpenAI's API on this machine: ``gptoss-tune chat MODEL --serve``.

``settings`` says where and for whom, ``requests`` reads what a client sends, ``completions`` writes
what it gets, ``queue`` computes one answer at a time, ``guard`` lets only clients of this machine
in, ``app`` joins them, ``serve`` runs it. Starlette and uvicorn (the extra ``ui``) are imported by
``guard``, ``app`` and ``serve`` alone.

Starlette was chosen over FastAPI: a handful of routes whose bodies are checked with messages of our
own need no second schema language. vLLM serves many at once and is the server for that; this one
is for one person who wants any page to talk to what was just tuned, on the card that tuned it.
"""
