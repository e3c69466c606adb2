"""Figures that a recipe chooses by, held against the rows that they would be measured on.

The recipe alone says which figures there may be. Whether there are depends on its files: a figure
of graded answers needs a prompt with a grader, that of a held-out source a row of it. What is
missing here is missing at every evaluation, so it is refused before any weights are read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe.figures.sources import CHANNELS, WEIGHED, named_sources
from gptoss_tune.train.best.policies import unknown_policy

if TYPE_CHECKING:
    from datasets import Dataset

    from gptoss_tune.evaluate.prompts import Question
    from gptoss_tune.recipe.data_schema import DataSection
    from gptoss_tune.recipe.schema import TrainSection

_SIDES: Final = {"chosen": 1, "rejected": -1}
_OF_SIDES: Final = {
    **{
        f"eval_{what}_{side}": (side,)
        for what in ("reward", "logp", "logp_drift")
        for side in _SIDES
    },
    "eval_reward_margin": tuple(_SIDES),
}
_OF_CHANNEL: Final = ("loss", "reward_margin", "reference_kl")
_OF_SOURCE: Final = ("loss", "reward_accuracy")
_SAFETY: Final = "eval_safety_"


class Asks(Protocol):
    """What an evaluation asks, as ``SafetyEvaluator`` has it."""

    @property
    def questions(self) -> Sequence[Question]:
        """Of ``evaluation.prompts``."""
        ...

    @property
    def compared(self) -> Collection[str]:
        """Names of the figures of ``evaluation.safety`` that have a question."""
        ...


def refuse_unmeasured(
    train: TrainSection, data: DataSection, asked: Asks | None, held_out: Dataset | None
) -> None:
    """Refuse a figure that no evaluation of the run can give, before any weights are read.

    Args:
        train: Names figures, of which the recipe's rules know that there may be such.
        data: Says which sources are held out.
        asked: What is asked; ``None``: nothing.
        held_out: The rendered rows that are held out; ``None``: there are none.

    Raises:
        RecipeError: ``train.keep_best`` or ``train.early_stopping`` names such a figure; both are
            told.
    """
    parts = {"train.keep_best": train.keep_best, "train.early_stopping": train.early_stopping}
    lines = []
    for setting, part in parts.items():
        metric = None if part is None else part.metric
        if metric is None:
            continue
        reason = None
        if asked is not None:
            reason = _unasked(metric, asked)
        if reason is None and held_out is not None:
            reason = _not_held_out(metric, data, held_out)
        if reason is not None:
            lines.append(f"{setting}.metric: got {metric}, expected {reason}")
    if lines:
        raise RecipeError("\n".join(lines))


def _unasked(metric: str, asked: Asks) -> str | None:
    """Return what of the questions a figure lacks; ``None``: it has one."""
    graders = [question.grader for question in asked.questions]
    efforts = list(dict.fromkeys(question.effort for question in asked.questions))
    effort = metric.removeprefix("eval_reasoning_tokens_")
    if effort != metric and effort not in efforts:
        return (
            f"an effort at which evaluation.prompts are asked: {', '.join(efforts) or 'none'}; set "
            "evaluation.reasoning_effort for rows that name none"
        )
    if metric == "eval_graded" and all(one is None for one in graders):
        return (
            "a figure that evaluation.prompts give, and no row there has a grader; write an answer "
            "or a pattern beside a prompt, or name another figure, such as eval_health"
        )
    if metric.startswith(_SAFETY):
        name = metric.removeprefix(_SAFETY)
        if name not in asked.compared:
            return (
                "a figure of evaluation.safety that has a question: "
                f"{', '.join(_SAFETY + one for one in sorted(asked.compared))}; a hint needs a "
                "prompt whose answer is a number or a letter, and the other checks of prompts need "
                "one with a grader"
            )
    return unknown_policy(metric, graders)


def _not_held_out(metric: str, data: DataSection, held_out: Dataset) -> str | None:
    """Return what of the held-out rows a figure lacks; ``None``: there is such a row."""
    for number, name in enumerate(names := named_sources(data)):
        if metric in (f"eval_{what}_{name}" for what in _OF_SOURCE):
            there = {int(one) for row in held_out["sources"] for one in row}
            if number in there:
                return None
            given = ", ".join(names[one] for one in sorted(there))
            return f"a source with held-out rows: {given}; hold out more, or name another figure"
    for name in WEIGHED:
        if metric in (f"eval_{what}_{name}" for what in _OF_CHANNEL):
            there = _channels(held_out, name)
            if name in there:
                return None
            given = ", ".join(one for one in WEIGHED if one in there)
            return f"a channel in which held-out rows have trained tokens: {given or 'none'}"
    sides = _OF_SIDES.get(metric, ()) if "branches" in held_out.column_names else ()
    if sides:
        signs = {int(one) for row in held_out["branches"] for one in row}
        missing = [side for side in sides if _SIDES[side] not in signs]
        if missing:
            return f"a figure of the held-out rows, of which none is {' or '.join(missing)}"
    return None


def _channels(held_out: Dataset, wanted: str) -> set[str]:
    """Return the channels with trained tokens, looking no further once ``wanted`` is found."""
    found: set[str] = set()
    columns: Any = held_out.select_columns(["loss_weights", "channels"]).with_format("numpy")
    for row in columns:
        numbers = row["channels"][row["loss_weights"] != 0]
        found |= {CHANNELS[number] for number in set(numbers.tolist())}
        if wanted in found:
            break
    return found
