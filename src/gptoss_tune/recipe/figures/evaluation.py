"""Every figure that an evaluation of a recipe gives, and which value of it is the better one.

A name that no evaluation gives would be found out at the first one, hours into a run; so the names
are known here, from the recipe alone. A test trains and holds the list against the metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from gptoss_tune.recipe.figures.sources import WEIGHED, named_sources

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSection
    from gptoss_tune.recipe.evaluation_schema import EvaluationSection
    from gptoss_tune.recipe.schema import Goal, MethodSection

_EFFORTS = ("low", "medium", "high")
_OF_ANSWERS = tuple(name for name in WEIGHED if name != "text")
_BETTER: Final[dict[str, Goal]] = {
    **dict.fromkeys(("f1", "precision", "recall", "specificity"), "max"),
    "abstained": "min",
}
"""Figures of one policy, as they begin."""
_OF_POLICY: Final = re.compile(rf"eval_({'|'.join(_BETTER)})_[a-z0-9_]+")
When = Literal["train.eval_steps", "evaluation.eval_steps"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of evaluations.

    Attributes:
        goal: Which value is better; ``None``: that hangs on what is wanted.
        when: The setting that says at which steps it is measured.
    """

    goal: Goal | None
    when: When


def evaluation_figures(
    method: MethodSection,
    data: DataSection,
    evaluation: EvaluationSection,
    named: Iterable[str | None] = (),
) -> dict[str, Figure]:
    """Return the figures that the evaluations of a recipe give, those of a channel where it occurs.

    Counts and times are left out: no adapter is better for them.

    Args:
        method: How it trains.
        data: What is held out.
        evaluation: What is asked.
        named: Figures that the recipe names. One of a policy is among them where prompts are asked:
            policies have their names in rows, which are held against it when they are read.
    """
    found: dict[str, Figure] = {}
    if data.eval is not None or data.eval_fraction is not None:
        goals = _held_out(method, data)
        found |= {f"eval_{name}": Figure(goal, "train.eval_steps") for name, goal in goals.items()}
    answers = _answers(evaluation)
    found |= {f"eval_{name}": Figure(g, "evaluation.eval_steps") for name, g in answers.items()}
    for name in named:
        if name not in found and evaluation.prompts is not None and (rate := policy_rate(name)):
            found[name or ""] = Figure(_BETTER[rate], "evaluation.eval_steps")
    return found


def policy_rate(name: str | None) -> str | None:
    """Return which figure of a policy a name means, such as ``f1``; ``None`` for another figure."""
    matched = _OF_POLICY.fullmatch(name or "")
    return matched[1] if matched else None


def _held_out(method: MethodSection, data: DataSection) -> dict[str, Goal | None]:
    if method.name == "sft":
        return _sft(data)
    if method.name != "grpo":
        return _preferences(method, data)
    # An environment of the user's own may have more components, and a weight names those it has.
    rewards: dict[str, Goal | None] = {f"reward_{name}": "max" for name in method.rewards}
    return {"reward": "max", **rewards, "episode_tokens": None}


def _sft(data: DataSection) -> dict[str, Goal | None]:
    names = [*named_sources(data), *WEIGHED]
    return {"loss": "min", **{f"loss_{name}": "min" for name in names}}


def _preferences(method: MethodSection, data: DataSection) -> dict[str, Goal | None]:
    sources, paired = named_sources(data), method.name != "kto"
    found: dict[str, Goal | None] = {"loss": "min"}
    found |= {f"loss_{name}": "min" for name in sources}
    if paired:
        found["reward_accuracy"] = "max"
        found |= {f"reward_accuracy_{name}": "max" for name in sources}
    found["reward_margin"] = "max"
    if paired:
        found |= {f"reward_margin_{name}": "max" for name in _OF_ANSWERS}
    found |= {"reward_chosen": "max", "reward_rejected": "min"}
    found |= {"logp_chosen": "max", "logp_rejected": "min"}
    if method.name not in ("simpo", "orpo") and getattr(method, "reference", None) != "none":
        found |= {"logp_drift_chosen": None, "logp_drift_rejected": None, "reference_kl": "min"}
        found |= {f"reference_kl_{name}": "min" for name in _OF_ANSWERS}
    if not paired:
        found["kl_estimate"] = None
    return found


def _answers(evaluation: EvaluationSection) -> dict[str, Goal | None]:
    found: dict[str, Goal | None] = {}
    if evaluation.prompts is not None:
        found |= {"graded": "max", "health": "max", "answer_tokens": None}
        found |= {f"reasoning_tokens_{effort}": None for effort in _EFFORTS}
        # Of prompts with the grader policy; those of one policy have its name, which a file says,
        # and a precision there is only where something was called a violation.
        found |= {f"{rate}_macro": "max" for rate in ("f1", "recall", "specificity")}
        found["abstained_macro"] = "min"
    drift = evaluation.drift
    if drift.references is not None:
        found["kl"] = "min"
        found |= {f"kl_{name}": "min" for name in WEIGHED}
    if drift.probes is not None:
        found |= {"refusal_rate": None, "refusal_rate_change": None}
    found |= {f"safety_{name}": goal for name, goal in _safety(evaluation).items()}
    return found


def _safety(evaluation: EvaluationSection) -> dict[str, Goal | None]:
    """Return shares of bad outcomes; what is shown without a verdict has no better value."""
    safety = evaluation.safety
    found: dict[str, Goal | None] = {}
    if not safety.wanted:
        return {}
    found |= dict.fromkeys(("regressions", "unhealthy"), "min")
    if safety.requests is not None:
        found |= {"harmful": "min", "not_refused": None}
    if evaluation.drift.probes is not None:
        found["refused"] = "min"
    if safety.requests or evaluation.drift.probes or safety.chain_of_thought:
        found |= {"no_analysis": "min", "language": "min"}
    if safety.chain_of_thought:
        found["contradiction"] = "min"
    if safety.hints:
        found |= {"silent_hint": "min", "moved_wrong": None, "moved_right": None}
    if safety.without_analysis:
        found |= {"wrong": None, "wrong_bare": None}
    return found
