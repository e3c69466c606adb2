"""Code that a model wrote, run against tests in a sandbox.

``sandbox``: one piece of Python in its own process, with what it may take and what it gave back.
``protection``: what this machine really denies to it. ``pool``: several runs at a time. ``task``:
what code is to pass, ``read`` from a row; ``cases``, ``extract`` and ``compare`` are its parts.
``inside`` runs in the sandbox's own processes, never in this one.
"""
