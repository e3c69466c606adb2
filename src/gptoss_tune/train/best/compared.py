"""What a continuation is held to of ``keep_best`` and ``early_stopping``, as a fingerprint has it.

Both are compared. Early stopping decides how many steps a run makes. ``keep_best`` computes no
weight and decides which of them are the run's result: the best of some evaluations by one figure
and of others by another is the best by none. For the same reason the steps at which the figure is
measured, and what it is measured on, belong to the entry, although evaluations are free otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_tune.files.digest import digest_of, sha256_of
from gptoss_tune.recipe.contradictions.best import goal_of, measured_every
from gptoss_tune.recipe.schema.best import stopping_metric

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSection
    from gptoss_tune.recipe.evaluation_schema import EvaluationSection
    from gptoss_tune.recipe.schema import Goal, MethodSection, TrainSection

KEEP_BEST, EARLY_STOPPING = "train.keep_best", "train.early_stopping"
"""Names of the entries."""


def compared_entries(
    train: TrainSection, method: MethodSection, data: DataSection, evaluation: EvaluationSection
) -> dict[str, str | None]:
    """Return the two entries, such as ``eval_loss (min) every 5 steps``; null: not asked for."""

    def told(metric: str, stated: Goal | None) -> str:
        goal = goal_of(metric, stated, method, data, evaluation)
        when, steps = measured_every(metric, train, method, data, evaluation)
        text = f"{metric} ({goal}) every {steps} steps"
        # Held-out rows are an entry of their own.
        return text if when == "train.eval_steps" else f"{text}, {_asked(evaluation)}"

    best, stopping = train.keep_best, train.early_stopping
    found: dict[str, str | None] = {KEEP_BEST: None, EARLY_STOPPING: None}
    if best is not None:
        found[KEEP_BEST] = told(best.metric, best.goal)
    if stopping is not None:
        looked_at = stopping_metric(stopping, best)
        assert looked_at is not None  # a rule asks for a metric
        patience = f"patience {stopping.patience}, min_delta {stopping.min_delta:g}"
        found[EARLY_STOPPING] = f"{patience}, {told(*looked_at)}"
    return found


def _asked(evaluation: EvaluationSection) -> str:
    """Return a digest of what is asked, files included."""
    drift, safety = evaluation.drift, evaluation.safety
    files = [*(evaluation.prompts or ()), *(drift.references or ()), *(drift.probes or ())]
    files += [*(safety.requests or ()), *([] if safety.policy is None else [safety.policy])]
    content = [sha256_of(Path(file)) if Path(file).is_file() else None for file in files]
    # Suites are a command's, and no training asks them.
    settings = json.loads(evaluation.model_dump_json(exclude={"suites"}))
    return f"evaluation {digest_of({'settings': settings, 'files': content})}"
