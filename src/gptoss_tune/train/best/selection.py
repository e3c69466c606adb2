"""The observer of evaluations: the best weights are saved when they are found, a run is ended.

Every figure of an evaluation passes by as a line of metrics, those of held-out rows and those of
answers alike, so both kinds are looked at in one place. The best weights are an ordinary
checkpoint, written at the step that found them and spared when old ones go: what can be resumed
from can be published. Holding them in memory until the end was the alternative, and is lost with
the process.

An evaluation that a signal ends is owed: the run stops at that step, and the continuation begins
by measuring there. Else a stopped run would know less than one that was not, and end otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.display import visible
from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.recipe.contradictions.best import goal_of, measured_every
from gptoss_tune.recipe.schema.best import stopping_metric
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.best.compared import EARLY_STOPPING, KEEP_BEST
from gptoss_tune.train.best.standing import Best, Patience
from gptoss_tune.train.observers.observer import StepObserver

if TYPE_CHECKING:
    from pathlib import Path

    from gptoss_tune.recipe.data_schema import DataSection
    from gptoss_tune.recipe.evaluation_schema import EvaluationSection
    from gptoss_tune.recipe.schema import MethodSection, TrainSection
    from gptoss_tune.train.context import RunContext

    _Sections = tuple[MethodSection, DataSection, EvaluationSection]

Owed = Literal["held_out", "answers"]
HELD_OUT = frozenset(("eval_loss", "eval_reward"))
"""Figures one of which every evaluation on held-out rows gives, and no other."""
_FILE = "best.json"
_TIMES = ("_runtime", "_per_second")
_NO_NUMBER = ("eval_kl", "eval_f1_", "eval_precision_", "eval_safety_")
"""How the figures begin that an evaluation leaves out where they are no number: nothing was called
a violation, nothing is one either, or no answer could be judged by a safety figure."""


class Selection(StepObserver):
    """What the evaluations of one run say of its weights; every rank has one and says the same.

    Attributes:
        best: Which weights are published; ``None``: the last ones.
        patience: When the run ends; ``None``: at its last step.
        at_best: Figures of the best evaluation, all of its step: ``held_out`` and ``answers``.
        owed: Evaluations at this step that a signal ended.
    """

    file = _FILE
    kept = "record of the best evaluation"

    def __init__(self, context: RunContext, new: Collection[str]) -> None:
        """Look at what the recipe of ``context`` names, which is one of the two at least.

        Args:
            context: Of the run.
            new: Entries of the fingerprint that its checkpoint did not have so; these begin anew.
        """
        self._context, self._new = context, frozenset(new)
        self._when: dict[str, str] = {}
        recipe = context.recipe
        sections = (recipe.method, recipe.data, recipe.evaluation)
        self.best = _best(recipe.train, sections, self._when)
        self.patience = _patience(recipe.train, sections, self._when)
        self.at_best: dict[str, dict[str, float]] = {}
        self._latest: tuple[int, dict[str, dict[str, float]]] = (0, {})
        self.owed: set[Owed] = set()

    @property
    def parts(self) -> dict[str, Best | Patience]:
        """What is counted, by the setting that asks for it."""
        found = {KEEP_BEST: self.best, EARLY_STOPPING: self.patience}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def fresh(self) -> bool:
        """Whether a checkpoint says nothing of what is counted here."""
        return self.parts.keys() <= self._new

    def needed_by(self, checkpoint: Path) -> set[int]:
        """Return the step whose weights were the best when a checkpoint was written.

        An older one is gone on from where the newest is damaged, with the best that it names: of
        all that stay that is one checkpoint more, since each best since the oldest stays anyway.
        """
        if self.best is None:
            return set()
        try:
            step = read_object(checkpoint / _FILE, folder=checkpoint)[KEEP_BEST]["step"]
        except (OSError, CheckpointError, KeyError, TypeError):  # nothing is gone on from it
            return set()
        return {step} if isinstance(step, int) and step else set()

    @property
    def over(self) -> bool:
        """Whether the run is to end before its last step."""
        return self.patience is not None and self.patience.over

    def stopped_early(self, state: TrainerState) -> bool:
        """Return whether the run ended before its last step; the closing evaluation ends none."""
        return self.over and state.global_step < state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the figures of an evaluation; those before the first step are of the base.

        Raises:
            RecipeError: An evaluation lacks the figure that it was to give.
        """
        step = state.global_step
        logs = logs or {}
        figures = {
            name: value
            for name, value in logs.items()
            if name.startswith("eval_") and not name.endswith(_TIMES)
        }
        if not figures or step == 0:
            return
        at, known = self._latest
        kind = "held_out" if HELD_OUT & figures.keys() else "answers"
        self._latest = (step, (known if at == step else {}) | {kind: figures})
        for setting, part in self.parts.items():
            if (kind == "held_out") != (self._when[setting] == "train.eval_steps"):
                continue
            value = _value(setting, part.metric, figures, step)
            if isinstance(part, Patience):
                part.take(step, value)
            elif part.take(step, value):
                control.should_save |= step < state.max_steps
                self._say(f"step {step}: {part.metric} {value:.6g} is the best so far")
        if self.best is not None and self.best.step == step:
            self.at_best = self._latest[1]
        if self.over:
            control.should_training_stop = True

    def owe(self, what: Owed, control: TrainerControl) -> None:
        """Note that a signal ended an evaluation: the run stops here, with a checkpoint."""
        self.owed.add(what)
        control.should_save = control.should_training_stop = True
        self._context.stop.stopped = True

    def pay(self, what: Owed) -> bool:
        """Return whether an evaluation is owed at the step that the run goes on from; once."""
        owed = what in self.owed
        self.owed.discard(what)
        return owed

    def needs_first(self, step: int) -> bool:
        """Return whether the step that the run goes on from has to be saved in this folder.

        It was the best one by what was made up for, or still is owed something, and its checkpoint
        is another folder's.
        """
        if self._elsewhere is None or step != self._context.start.step:
            return False
        return bool(self.owed) or (self.best is not None and self.best.step == step)

    def facts(self, state: TrainerState) -> dict[str, Any]:
        """Return what ``run.json`` says of the best evaluation and of an early end."""
        found: dict[str, Any] = {}
        if self.best is not None:
            found["best"] = {
                "metric": self.best.metric,
                "goal": self.best.goal,
                "value": self.best.value,
                "step": self.best.step or None,
                "figures": {n: v for part in self.at_best.values() for n, v in part.items()},
            }
        if self.patience is not None:
            found["early_stopping"] = {
                "metric": self.patience.metric,
                "goal": self.patience.goal,
                "best": self.patience.value,
                "best_step": self.patience.step or None,
                "waited": self.patience.waited,
                "stopped": self.stopped_early(state),
            }
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted so far; every rank has to ask."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        step, latest = self._latest
        return {
            **parts,
            "figures": _finite(self.at_best),
            "latest": {"step": step, "figures": _finite(latest)},
            "owed": sorted(self.owed),
        }

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Go on from a checkpoint's count.

        Raises:
            CheckpointError: The best checkpoint that it names is gone.
            AttributeError, KeyError, TypeError, ValueError: It holds no count.
        """
        for name, part in self.parts.items():
            if name not in self._new:
                part.load_state_dict(state[name])
        owed = state["owed"]
        if not isinstance(owed, list) or not set(owed) <= {"held_out", "answers"}:
            raise ValueError(f"owed is {owed!s:.60}")
        self.owed = set(owed)
        latest = state.get("latest", {"step": 0, "figures": {}})
        self._latest = (int(latest["step"]), _figures(latest["figures"]))
        if self.over and self.patience is not None and self._elsewhere is not None:
            self._say(
                f"the run in {self._elsewhere} had stopped early at step {self.patience.seen}: in "
                f"this folder the patience with {self.patience.metric} begins anew"
            )
            self.patience.value, self.patience.step, self.patience.waited = None, 0, 0
        if self.best is None or not self.best.step:
            return
        self.at_best = _figures(state["figures"])
        self._find(self.best, first_rank=first_rank)

    def _find(self, best: Best, *, first_rank: bool) -> None:
        """Make sure of the best weights; those of a run in another folder are left there.

        Raises:
            CheckpointError: They are gone.
        """
        start, there = self._context.start, self._elsewhere
        if there is not None:
            self._say(
                f"the best of the run in {there} was step {best.step}, whose weights stay there: "
                f"in this folder the best is chosen among the evaluations from step {start.step} on"
            )
            best.value, best.step, self.at_best = None, 0, {}
            return
        path = RunFolder(self._context.run).checkpoint(best.step)
        if first_rank and not path.is_dir():
            raise CheckpointError(
                f"names {path.name} as the best by {best.metric}, and that is gone; put it back, "
                "or choose anew from here in another folder: train.output_dir=NEW "
                f"train.resume={start.checkpoint}"
            )

    @property
    def _elsewhere(self) -> Path | None:
        """Return the folder of the run that is gone on from, where that is another one."""
        checkpoint = self._context.start.checkpoint
        there = None if checkpoint is None else checkpoint.resolve().parent
        return None if there == self._context.run.resolve() else there

    def _say(self, line: str) -> None:
        self._context.console.print(visible(line), soft_wrap=True, highlight=False, markup=False)


def _best(train: TrainSection, sections: _Sections, when: dict[str, str]) -> Best | None:
    asked = train.keep_best
    if asked is None:
        return None
    when[KEEP_BEST], _ = measured_every(asked.metric, train, *sections)
    return Best(asked.metric, goal_of(asked.metric, asked.goal, *sections))


def _patience(train: TrainSection, sections: _Sections, when: dict[str, str]) -> Patience | None:
    asked = train.early_stopping
    if asked is None:
        return None
    found = stopping_metric(asked, train.keep_best)
    assert found is not None  # a rule asks for a metric
    metric, stated = found
    when[EARLY_STOPPING], _ = measured_every(metric, train, *sections)
    return Patience(metric, goal_of(metric, stated, *sections), asked.patience, asked.min_delta)


def _value(setting: str, metric: str, figures: dict[str, float], step: int) -> float:
    """Return a figure of an evaluation; NaN where it was no number.

    Raises:
        RecipeError: The evaluation has none of that name.
    """
    if metric in figures:
        return float(figures[metric])
    if metric.startswith(_NO_NUMBER):
        return math.nan
    raise RecipeError(
        f"{setting}: the evaluation at step {step} gives no {metric}; it has "
        f"{', '.join(sorted(figures))}: name one of them (a channel has a loss where held-out rows "
        "have tokens in it, and answers are graded where prompts have a grader)"
    )


def _finite(evaluations: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the figures that JSON can hold."""
    return {
        kind: {name: value for name, value in found.items() if math.isfinite(value)}
        for kind, found in evaluations.items()
    }


def _figures(state: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures of a ``state_dict``."""
    return {
        str(kind): {str(name): float(value) for name, value in found.items()}
        for kind, found in state.items()
    }


def selection_of(context: RunContext, now: dict[str, Any]) -> Selection | None:
    """Return what looks at the evaluations of a run; ``None`` where its recipe asks for nothing.

    Args:
        context: Of the run.
        now: Its fingerprint.
    """
    train, before = context.recipe.train, context.start.before or {}
    if train.keep_best is None and train.early_stopping is None:
        return None
    new = [name for name in (KEEP_BEST, EARLY_STOPPING) if before.get(name) != now[name]]
    return Selection(context, new)
