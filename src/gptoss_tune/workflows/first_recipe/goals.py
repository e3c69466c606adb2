"""What a model is tuned for, and what that changes in a recipe.

The data decide most of it: pairs can be preferred and not imitated. A goal that the rows cannot
serve is refused with what they can, because a run would find out much later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gptoss_tune.errors import DataError
from gptoss_tune.recipe.dump import Noted

if TYPE_CHECKING:
    from gptoss_tune.workflows.first_recipe.look import DataLook

GOALS: Final = {
    "chat": "answer as the rows do",
    "tools": "call tools as the rows do",
    "reasoning": "think as the rows do, then answer",
    "preferences": "prefer the better of two answers, or what was labelled good",
    "raw-text": "go on as the texts do",
}
"""Every goal, and what it means."""

_PREFERENCE_RATE = 1e-5


def likely_goal(look: DataLook) -> str:
    """Return the goal that rows are most likely meant for."""
    if look.rows != "conversation":
        return "preferences"
    if look.is_text:
        return "raw-text"
    if look.tools:
        return "tools"
    return "reasoning" if look.thinking > 0.5 else "chat"


def settings_for(goal: str, look: DataLook) -> dict[str, Noted]:
    """Return what a goal changes in a recipe.

    Raises:
        DataError: The rows cannot serve it.
    """
    refused = _obstacle(goal, look)
    if refused is not None:
        raise DataError(f"{look.path}: {refused}")
    tags = {}
    if look.tagged:
        why = "thoughts stand in the answers, as <think>: they become the chain of thought"
        tags["data.thinking_tags"] = Noted("split", why)
    if goal == "preferences":
        return tags | _preferences(look)
    if look.thinking < 0.5 and not look.is_text:
        why = "no row has a chain of thought"
        if look.thinking:
            why = f"{1 - look.thinking:.0%} of the rows have no chain of thought"
        effort = Noted("low", f"{why}; at medium the model would learn not to think")
        return tags | {"data.reasoning_effort": effort}
    return tags


def _obstacle(goal: str, look: DataLook) -> str | None:
    served = likely_goal(look)
    if look.is_text and goal != "raw-text":
        return (
            "the rows are texts without a question; give --goal raw-text, or messages (or prompt "
            "and completion) in the rows"
        )
    if goal == "raw-text" and not look.is_text:
        return f"the rows are no texts; give --goal {served}, or rows with a column 'text' alone"
    if goal == "preferences" and look.rows == "conversation":
        return (
            "the rows have one answer each and no label, and preferences are learnt from pairs "
            "(prompt, chosen, rejected) or labels (prompt, completion, label); add them, or give "
            f"--goal {served}"
        )
    if goal != "preferences" and look.rows == "pair":
        return (
            f"the rows are pairs of a better and a worse answer; give --goal preferences, or write "
            f"one answer a row for --goal {goal}"
        )
    if goal != "preferences" and look.rows == "label" and look.bad:
        return (
            f"the rows are labelled answers, and --goal {goal} would imitate the bad ones too; "
            "give --goal preferences, or a file of the good ones"
        )
    if goal == "reasoning" and not look.thinking:
        return (
            "no row has a chain of thought to learn from; add it as 'thinking' beside the answer's "
            "'content', or give --goal chat"
        )
    if goal == "tools" and not look.tools:
        return "no row calls a tool; add tools and tool_calls (docs/data.md), or give --goal chat"
    return None


def _preferences(look: DataLook) -> dict[str, Noted]:
    rate = Noted(_PREFERENCE_RATE, "a margin is soon reached, then the text suffers")
    if look.rows == "pair":
        return {
            "method.name": Noted("dpo", "each row has a better and a worse answer"),
            "method.sft_weight": Noted(0.1, "holds up the chosen answer, which else falls too"),
            "train.learning_rate": rate,
        }
    found = {"method.name": Noted("kto", "each row is one answer, labelled good or bad")}
    if not look.good or not look.bad:
        only = "good" if look.good else "bad"
        raise DataError(
            f"{look.path}: every label that was read says {only}; kto needs good and bad answers: "
            "add the other kind, or give --goal chat to imitate the answers"
        )
    ratio = round(look.good / look.bad, 1)
    if ratio >= 1.2:
        why = f"about {ratio:g} good answers to a bad one: both kinds count alike"
        found["method.undesirable_weight"] = Noted(min(ratio, 1000.0), why)
    elif ratio <= 0.8:
        ratio = round(look.bad / look.good, 1)
        why = f"about {ratio:g} bad answers to a good one: both kinds count alike"
        found["method.desirable_weight"] = Noted(min(ratio, 1000.0), why)
    return found | {"train.learning_rate": rate}
