"""Rules of ``method.rewards``: names that somebody gives, and weights that say anything."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe.contradictions.contradiction import Contradiction

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import MethodSection

COMPONENTS: Final = ("answer", "format", "calls", "length")
"""Rewards that need no class of the user's own."""
FLOAT: Final = "environment"
"""Component of a class whose reward is one number."""
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
"""How a component may be called: it becomes a part of the name of a metric."""
TAKEN: Final = ("std",)
"""Names that would be metrics of another meaning."""
_KEY: Final = "method.rewards"


def reward_rules(method: MethodSection) -> Iterator[Contradiction]:
    """Yield what is wrong with the weights, whoever gives the components."""
    if method.name != "grpo":
        return
    weights = method.rewards
    for name in weights:
        if why := wrong_name(name):
            yield Contradiction((f"{_KEY}.{name}", _KEY), repr(name), why, "rename it")
    if not any(weights.values()):
        got = "no component" if not weights else "no weight but 0"
        yield Contradiction(
            (_KEY,), got, "something to learn from", f"write for example {_KEY}: {{answer: 1}}"
        )
    if method.length_target is None:
        return
    if "length" not in weights:
        yield Contradiction(
            ("method.length_target", f"{_KEY}.length", _KEY),
            f"{method.length_target} without {_KEY}.length",
            "the reward that it is the target of",
            f"set {_KEY}.length, or remove method.length_target",
            yields=("method.length_target",),
        )
    if method.length_target >= method.max_new_tokens:
        yield Contradiction(
            ("method.length_target", "method.max_new_tokens"),
            f"{method.length_target} with method.max_new_tokens {method.max_new_tokens}",
            "a target below the longest answer",
            "lower method.length_target",
        )


def needs_graders(method: MethodSection, *, own: bool) -> bool:
    """Whether each row must say how its answer is graded.

    Args:
        method: Of the recipe.
        own: Whether a class of the user's own plays, which may judge by itself.
    """
    return method.name == "grpo" and not own and "answer" in method.rewards


def require_known(
    weights: Mapping[str, float], *, own: bool, given: Iterable[str] | None = None
) -> None:
    """Refuse weights of components that nobody gives.

    Args:
        weights: ``method.rewards``.
        own: Whether a class of the user's own plays.
        given: Components that this class is known to give; ``None``: not known before it is asked.

    Raises:
        RecipeError: Lists all of them.
    """
    if own and given is None:
        return
    known = [*COMPONENTS, *(given or ())]
    found = [_unknown(name, known, own) for name in weights if name not in known]
    if found:
        raise RecipeError("\n".join(map(str, found)))


def wrong_name(name: object) -> str | None:
    """Return what is wrong with the name of a component; ``None``: nothing is."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return "1 to 64 letters, digits and . _ -, beginning with a letter"
    if name in TAKEN:
        return f"another name: reward_{name} is the metric of another figure"
    return None


def _unknown(name: str, known: list[str], own: bool) -> Contradiction:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    todo = f"did you mean {near[0]}?" if near else "remove it"
    if not own:
        todo += "; rewards of a class of your own need --environment module:Class"
    return Contradiction(
        (f"{_KEY}.{name}", _KEY),
        repr(name),
        f"a component that is given: {', '.join(known)}",
        todo,
    )
