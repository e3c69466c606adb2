"""Rules of ``train.keep_best`` and ``train.early_stopping``: a figure that is measured on the way.

Both look at figures between the first step and the last. One that this recipe never measures, or
measures at its end alone, would be found out when the run is over.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction
from gptoss_tune.recipe.figures.evaluation import Figure, evaluation_figures
from gptoss_tune.recipe.schema.best import stopping_metric

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSection
    from gptoss_tune.recipe.evaluation_schema import EvaluationSection
    from gptoss_tune.recipe.schema import Goal, MethodSection, TrainSection

_BEST, _STOPPING = "train.keep_best", "train.early_stopping"
_HELD_OUT = ("data.eval", "data.eval_fraction")
_ASKED = (
    *("evaluation.prompts", "evaluation.drift.references", "evaluation.drift.probes"),
    "evaluation.safety",
    "method.name",
)


def best_rules(
    train: TrainSection, method: MethodSection, data: DataSection, evaluation: EvaluationSection
) -> Iterator[Contradiction]:
    """Yield what contradicts itself in how the best weights are found, and a run is ended."""
    named = [part.metric for part in (train.keep_best, train.early_stopping) if part is not None]
    figures = evaluation_figures(method, data, evaluation, named)
    best, stopping = train.keep_best, train.early_stopping
    if best is not None:
        yield from _metric_rules(_BEST, best.metric, best.goal, figures)
    yield from measured_rules(train, method, data, evaluation, train.max_steps)
    if stopping is None:
        return
    found = stopping_metric(stopping, best)
    if found is None:
        yield Contradiction(
            (f"{_STOPPING}.metric", _STOPPING, _BEST),
            "no metric",
            f"a figure to look at: {_listed(figures)}",
            f"set {_STOPPING}.metric, or {_BEST}",
        )
    elif stopping.metric is not None or stopping.goal is not None:
        yield from _metric_rules(_STOPPING, *found, figures)


def measured_rules(
    train: TrainSection,
    method: MethodSection,
    data: DataSection,
    evaluation: EvaluationSection,
    steps: int | None,
) -> Iterator[Contradiction]:
    """Yield figures that are measured at the end of the run alone.

    Args:
        train: Names the figures.
        method: How it trains.
        data: What is held out.
        evaluation: What is asked.
        steps: Optimizer steps of the whole run, which a recipe in epochs learns from its data;
            ``None``: not known.
    """
    every = {
        "train.eval_steps": train.eval_steps,
        "evaluation.eval_steps": evaluation.eval_steps,
    }
    length = "train.num_train_epochs" if train.max_steps is None else "train.max_steps"
    for setting, part in ((_BEST, train.keep_best), (_STOPPING, train.early_stopping)):
        metric = None if part is None else part.metric
        if metric is None:  # that of keep_best
            continue
        figures = evaluation_figures(method, data, evaluation, [metric])
        if metric in figures:
            when = figures[metric].when
            yield from _interval_rules(setting, metric, (when, every[when]), (length, steps))


def goal_of(
    metric: str,
    stated: Goal | None,
    method: MethodSection,
    data: DataSection,
    evaluation: EvaluationSection,
) -> Goal:
    """Return which value of a metric is better, of a recipe that the rules let pass."""
    known = evaluation_figures(method, data, evaluation, [metric])[metric].goal
    goal = stated or known
    assert goal is not None  # a rule asks for one
    return goal


def measured_every(
    metric: str,
    train: TrainSection,
    method: MethodSection,
    data: DataSection,
    evaluation: EvaluationSection,
) -> tuple[str, int]:
    """Return the setting that says when a metric is measured, and how many steps it says."""
    when = evaluation_figures(method, data, evaluation, [metric])[metric].when
    steps = train.eval_steps if when == "train.eval_steps" else evaluation.eval_steps
    assert steps is not None  # a rule asks for it
    return when, steps


def _listed(figures: Mapping[str, Figure]) -> str:
    return ", ".join(figures) or "none, as nothing is held out and nothing is asked"


def _metric_rules(
    setting: str, metric: str, goal: Goal | None, figures: Mapping[str, Figure]
) -> Iterator[Contradiction]:
    """Yield a metric that no evaluation gives, or a goal that is missing or the wrong way round."""
    key = (f"{setting}.metric", setting)
    if metric not in figures:
        near = [f"eval_{metric}"]
        if near[0] not in figures:
            near = difflib.get_close_matches(metric, figures, n=1, cutoff=0.6)
        todo = f"did you mean {near[0]}?" if near else "name one of them"
        if not figures:
            todo = "set data.eval and train.eval_steps, or evaluation.prompts"
        yield Contradiction(
            (*key, *_HELD_OUT, *_ASKED),
            f"{metric!r}",
            f"a figure of this recipe's evaluations: {_listed(figures)}",
            todo,
        )
        return
    known = figures[metric].goal
    if known is None and goal is None:
        yield Contradiction(
            (f"{setting}.goal", *key),
            f"no goal for {metric}",
            "min or max: neither is plainly better",
            f"write for example {setting}: {{metric: {metric}, goal: min}}"
            if setting == _BEST
            else f"set {setting}.goal",
        )
    elif known is not None and goal is not None and goal != known:
        word = "lower" if known == "min" else "higher"
        yield Contradiction(
            (f"{setting}.goal", *key),
            f"{goal} for {metric}",
            f"{known}: the {word} one is the better model",
            f"remove {setting}.goal",
            yields=(f"{setting}.goal",),
        )


def _interval_rules(
    setting: str, metric: str, measured: tuple[str, int | None], run: tuple[str, int | None]
) -> Iterator[Contradiction]:
    """Yield what there is to say of one figure.

    Args:
        setting: That names it.
        metric: Its name.
        measured: The setting of its interval, and that.
        run: The setting of the run's length, and its steps.
    """
    when, interval = measured
    length, steps = run
    what = "choose among" if setting == _BEST else "end the run by"
    if interval is None:
        yield Contradiction(
            (setting, f"{setting}.metric", when),
            f"{metric}, which is measured at the end alone",
            f"several evaluations to {what}",
            f"set {when}",
            yields=(setting,),
        )
    elif steps is not None and interval >= steps:
        yield Contradiction(
            (setting, f"{setting}.metric", when, length),
            f"{metric}, measured every {interval} of {steps} steps",
            f"several evaluations to {what}",
            f"lower {when}",
        )
