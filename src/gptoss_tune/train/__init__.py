"""The run: a resolved recipe in, an adapter and the record of its making out.

``run`` is the order of a run, ``trainer`` what every method shares, ``sft`` supervised fine-tuning,
``methods`` the table of methods. ``data`` feeds the model, ``observers``, ``guard`` and ``metrics``
look at every step, ``distributed`` holds the processes together, ``resume`` goes on where a run
stopped. ``python -m gptoss_tune.train RECIPE`` (under ``accelerate launch``), ``gptoss-tune train``
and ``gptoss_tune.train(recipe)`` all end in ``run.train``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """The room, which can be called; a function of its name would hide it, or be hidden by it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Train a recipe: ``run.train``."""
        from gptoss_tune.train.run import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
