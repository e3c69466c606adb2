"""Which environments of ``verifiers`` can be played here, and what their rubrics give."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any, Final

from gptoss_tune.environments.verifiers.played import Component
from gptoss_tune.recipe.contradictions.rewards import FLOAT, wrong_name

_NOT_PLAYED: Final = {
    "StatefulToolEnv": "its tools are handed a state that its own rollout keeps",
    "EnvGroup": "it is several environments; load each by itself",
}
"""Classes of the package that cannot be played here, and why."""
_OWN_ROLLOUT: Final = (
    "rollout",
    "init_state",
    "is_completed",
    "get_prompt_messages",
    "get_model_response",
    "add_model_response",
)
"""Methods by which an environment asks a model by itself."""


def obstacle(environment: Any, vf: Any) -> str | None:
    """Return why an environment cannot be played; ``None``: it can."""
    kind = type(environment)
    for base in kind.__mro__:
        if base.__name__ in _NOT_PLAYED and base.__module__.startswith("verifiers."):
            return _NOT_PLAYED[base.__name__]
    if not isinstance(environment, vf.MultiTurnEnv):
        return "it has a rollout of its own, which asks a model through a client of an API"
    own = [name for name in _OWN_ROLLOUT if _changed(kind, vf.MultiTurnEnv, name)]
    if own:
        return f"it has its own {', '.join(own)}, so the model would not be the run's"
    if isinstance(environment, vf.ToolEnv):
        if _changed(kind, vf.ToolEnv, "env_response"):
            return "it has its own env_response beside tools; here results of tools are all it says"
    elif environment.tool_defs:
        return "it has tools and is no ToolEnv, so nothing here can call them"
    groups = [each for each in _rubrics(environment.rubric) if each.has_group_rewards]
    if groups:
        return "its rubric compares the episodes of a group, and rewards here are of one episode"
    rubric = importlib.import_module("verifiers").Rubric
    for each in _rubrics(environment.rubric):
        if _changed(type(each), rubric, "score_rollout"):
            return f"its {type(each).__name__} has its own score_rollout, not functions"
    if not any(each.funcs for each in _rubrics(environment.rubric)):
        return "its rubric has no function"
    return None


def _changed(kind: type, known: type, name: str) -> bool:
    return getattr(kind, name, None) is not getattr(known, name, None)


def _rubrics(rubric: Any) -> Iterator[Any]:
    """Yield the rubrics that have functions of their own."""
    parts = getattr(rubric, "rubrics", None)
    if parts is None:
        yield rubric
        return
    for each in parts:
        yield from _rubrics(each)


def components(rubric: Any) -> Iterator[Component]:
    """Yield each function under a name of its own that can be a metric's."""
    used = {FLOAT}
    for each in _rubrics(rubric):
        for function, weight in zip(each.funcs, each.weights, strict=True):
            said = re.sub(r"[^A-Za-z0-9_.-]", "", getattr(function, "__name__", ""))[:60]
            plain = said if said and wrong_name(said) is None else f"reward_{said}".rstrip("_")
            name, number = plain, 1
            while name in used:
                number += 1
                name = f"{plain}_{number}"
            used.add(name)
            yield Component(name, function, float(weight), each)
