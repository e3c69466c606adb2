"""The built-in components that look at how an episode went, each in [0, 1]; pure functions."""

from __future__ import annotations

from typing import Final

from gptoss_tune.environments.environment import Outcome
from gptoss_tune.grading.answer import Given

WITHOUT_THOUGHTS: Final = 0.5
"""Factor of the format of an episode that answers without having thought anywhere."""


def format_health(outcome: Outcome) -> float:
    """Return ``min(H, A - F) / A``, at least 0, times 0.5 where nothing was thought.

    Of ``A`` answers ``H`` are whole: they call a tool and say nothing final, or say something final
    and call nothing. The last one is not where it was cut at its longest or was no harmony. ``F``
    faults were found in them. An episode without an answer has 0.
    """
    answers = outcome.answers
    if not answers:
        return 0.0
    whole = sum(map(_whole, answers[:-1]))
    if outcome.ended not in ("length", "format"):
        whole += _whole(answers[-1])
    healthy = max(0, min(whole, len(answers) - len(outcome.faults)))
    thought = any(given.analysis.strip() for given in answers)
    return healthy / len(answers) * (1.0 if thought else WITHOUT_THOUGHTS)


def well_formed_calls(outcome: Outcome) -> float:
    """Return ``1 - W / U`` of ``U`` calls of which ``W`` are wrong by the model's own mistake.

    1 without any call: whether one is needed, the answer shows. A tool that raises or takes too
    long is not the model's mistake.
    """
    if not outcome.uses:
        return 1.0
    wrong = sum(use.mistake is not None and use.by_model for use in outcome.uses)
    return 1.0 - wrong / len(outcome.uses)


def shortness(outcome: Outcome, target: int | None) -> float:
    """Return 1 up to ``target`` tokens an answer, falling in a straight line to 0 at the longest.

    With ``t = T / A`` tokens an answer and at most ``L``: ``min(1, (L - t) / (L - target))``, at
    least 0. 0 for an episode that did not end in an answer: being cut off is no brevity.

    Args:
        outcome: With ``tokens`` T of ``answers`` A, each of at most ``longest`` L.
        target: Tokens of an answer that still earn 1, below L; ``None``: half of L.
    """
    if outcome.ended != "answer" or not outcome.answers:
        return 0.0
    longest = outcome.longest
    target = longest // 2 if target is None else target
    if longest <= target:
        raise ValueError(f"longest is {longest} tokens; expected more than the target, {target}")
    used = outcome.tokens / len(outcome.answers)
    return min(1.0, max(0.0, (longest - used) / (longest - target)))


def _whole(given: Given) -> bool:
    """Return whether an answer does one thing: it calls, or it says something final."""
    if given.calls:
        return given.final is None
    return bool((given.final or "").strip())
