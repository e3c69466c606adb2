"""Environments of the package ``verifiers`` (0.2 and 0.3) as environments of this one.

::

    write_rows("reverse-text", "data/reverse.jsonl")  # its tasks become the recipe's data
    Reverse = load("reverse-text")                    # --environment module:Reverse

What is taken over: the tasks, the system prompt in them, tools, the user's side of a conversation
(``env_response`` of a ``MultiTurnEnv`` without tools) with ``setup_state`` and stop conditions, and
each function of the rubric as a component of its name; ``environment`` is their sum by the rubric's
own weights. The model is played by the run: no client of an API is ever asked.

``open``: loading and wrapping. ``fit``: what can be wrapped. ``played``: an episode. ``loop``:
where its coroutines run.
"""

from gptoss_tune.environments.verifiers.open import load, wrap, write_rows

__all__ = ["load", "wrap", "write_rows"]
