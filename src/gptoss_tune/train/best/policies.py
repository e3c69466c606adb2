"""Figures of policies that a recipe chooses by, held against the policies of its prompts."""

from __future__ import annotations

from collections.abc import Iterable

from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.policy import PolicyLabel
from gptoss_tune.grading.policy_metrics import MACRO, metric_name
from gptoss_tune.recipe.figures.evaluation import policy_rate

_NEEDS = {"recall": (True, "a violation"), "specificity": (False, "no violation")}
"""Rates over the rows of one expected answer, which a policy may have none of."""


def unknown_policy(metric: str, graders: Iterable[Grader | None]) -> str | None:
    """Return what is expected in the place of a figure of a policy that no prompt gives.

    Args:
        metric: A figure of any kind.
        graders: Of the prompts.

    Returns:
        ``None`` where the prompts give it, or it is no figure of a policy.
    """
    rate = policy_rate(metric)
    if rate is None:
        return None
    of_policies = [one for one in graders if isinstance(one, PolicyLabel)]
    violated, what = _NEEDS.get(rate, (None, ""))
    known = {
        metric_name(one.policy)
        for one in of_policies
        if violated is None or one.is_positive(one.label) == violated
    }
    known |= {MACRO} if known else set()
    if metric.removeprefix(f"eval_{rate}_") in known:
        return None
    reason = "no prompt has the grader policy"
    if of_policies:
        reason = f"no row of a policy expects {what}"
    given = ", ".join(f"eval_{rate}_{name}" for name in sorted(known))
    return f"a figure that evaluation.prompts give: {given or f'none, as {reason}'}"
