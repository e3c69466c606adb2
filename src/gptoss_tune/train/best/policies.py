"""Figures of policies that a recipe chooses by, held against the policies of its prompts."""

from __future__ import annotations

from collections.abc import Iterable

from gptoss_tune.errors import RecipeError
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.policy import PolicyLabel
from gptoss_tune.grading.policy_metrics import MACRO, metric_name
from gptoss_tune.recipe.figures.evaluation import policy_rate
from gptoss_tune.recipe.schema import TrainSection


def refuse_unknown_policies(train: TrainSection, graders: Iterable[Grader | None]) -> None:
    """Refuse a figure of a policy that no prompt is graded by, before any weights are read.

    Raises:
        RecipeError: ``train.keep_best`` or ``train.early_stopping`` names one.
    """
    known = {metric_name(one.policy) for one in graders if isinstance(one, PolicyLabel)}
    known |= {MACRO} if known else set()
    parts = {"train.keep_best": train.keep_best, "train.early_stopping": train.early_stopping}
    for setting, part in parts.items():
        metric = None if part is None else part.metric
        rate = policy_rate(metric)
        if metric is None or rate is None or metric.removeprefix(f"eval_{rate}_") in known:
            continue
        given = ", ".join(f"eval_{rate}_{name}" for name in sorted(known))
        raise RecipeError(
            f"{setting}.metric: got {metric}, expected a figure that evaluation.prompts give: "
            f"{given or 'none, as no prompt has the grader policy'}"
        )
