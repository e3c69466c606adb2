"""What a run measured, as the Hub lists results: ``model-index`` of a model card.

Only what the record holds and was measured on rows that the run did not train on. A training loss
is no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

from gptoss_tune.display import one_line
from gptoss_tune.grading.policy_metrics import metric_name
from gptoss_tune.grading.policy_table import MOST_POLICIES
from gptoss_tune.report.parts.text import number
from gptoss_tune.run.method import method_of

WON = {
    "reward_accuracy": "last reward accuracy, of a training step's pairs",
    "reward_margin": "last reward margin, mean of a training step",
    "eval_reward_accuracy": "reward accuracy on held-out pairs",
    "eval_reward_margin": "reward margin on held-out data",
    "reward": "last reward, mean of a training step's episodes",
    "eval_reward": "reward on held-out prompts",
}
_HELD_OUT = "held-out rows of the run"
_PROMPTS = "prompts of the run"


def evaluation_results(record: Mapping[str, Any]) -> list[EvalResult]:
    """Return what ``run.json`` says of held-out rows and of graded answers; empty without any."""
    found = []
    loss = number(record.get("eval_loss"))
    if loss is not None:
        found.append(_result(_HELD_OUT, "loss", "loss on held-out rows", loss))
    for name, value in won(record):
        if name.startswith("eval_"):
            found.append(_result(_HELD_OUT, name.removeprefix("eval_"), WON[name], value))
    evaluation = evaluation_of(record)
    graded = evaluation.get("graded")
    if isinstance(graded, Mapping):
        right, total = number(graded.get("passed")), number(graded.get("total"))
        if right is not None and total:
            found.append(_result(_PROMPTS, "accuracy", "answers graded right", right / total))
    else:
        share = number(evaluation.get("eval_graded"))
        if share is not None:
            found.append(_result(_PROMPTS, "accuracy", "answers graded right", share))
    for name, one in list(policies_of(record).items())[:MOST_POLICIES]:
        f1 = number(one.get("f1")) if isinstance(one, Mapping) else None
        if f1 is not None:
            # The name as figures have it: what a record calls a policy may be any text.
            found.append(_result(_PROMPTS, "f1", f"F1, policy {metric_name(str(name)[:64])}", f1))
    return found


def chosen_words(record: Mapping[str, Any]) -> str:
    """Return which step ``keep_best`` published, and by what; empty where it published the last."""
    best = record.get("best")
    best = best if isinstance(best, Mapping) else {}
    step, value, metric = number(best.get("step")), number(best.get("value")), best.get("metric")
    if step is None or value is None or not isinstance(metric, str):
        return ""
    return f"step {step:.0f}, the best by `{one_line(metric)[:80]}`: {value:.4g}"


def stopped_words(record: Mapping[str, Any]) -> str:
    """Return after which step a run ended early, and why; empty where it ran to its end."""
    found = record.get("early_stopping")
    found = found if isinstance(found, Mapping) else {}
    step, planned, waited = (number(found.get(name)) for name in ("step", "planned", "waited"))
    metric = found.get("metric")
    if not found.get("stopped") or None in (step, planned, waited) or not isinstance(metric, str):
        return ""
    name = one_line(metric)[:80]
    return f"step {step:.0f} of {planned:.0f}: {waited:.0f} evaluations without a better `{name}`"


def evaluation_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the evaluation of the published weights; empty where the record has that of others."""
    found, best = record.get("evaluation"), record.get("best")
    if not isinstance(found, Mapping):
        return {}
    step = number(best.get("step")) if isinstance(best, Mapping) else None
    return found if step is None or number(found.get("step")) == step else {}


def policies_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the figures of the policies in that evaluation, by policy; empty without any."""
    found: object = evaluation_of(record)
    for key in ("policies", "by_policy"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def won(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return accuracy and margin, or reward, of a run; held out where they were measured so."""
    rewarded = method_of(record).reinforcement
    told = record.get("reinforcement" if rewarded else "preferences", {})
    found = []
    for name in ("reward",) if rewarded else ("reward_accuracy", "reward_margin"):
        for where, metric in (("eval", f"eval_{name}"), ("last", name)):
            value = number(told.get(where, {}).get(metric))
            if value is not None:
                found.append((metric, value))
                break
    return found


def _result(dataset: str, kind: str, name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        # Of no dataset on the Hub: what the rows are, the card's table says.
        dataset_type="private",
        dataset_name=dataset,
        metric_type=kind,
        metric_name=name,
        metric_value=value,
    )
