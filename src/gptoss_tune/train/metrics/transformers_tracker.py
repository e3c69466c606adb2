"""The trackers that Transformers knows: MLflow, TensorBoard, Comet, SwanLab and their kin.

``tracking.report_to`` names them as ``TrainingArguments.report_to`` does, and each is Transformers'
own callback, configured by its own environment variables. Handing the names to the trainer was the
alternative: a service that does not answer then ends the run, and the last evaluation, which comes
after the last step, is not in it. TensorBoard writes into the run's folder, and what a resumed run
writes again replaces what stood there.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from gptoss_tune.recipe.schema import TrackingSection
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.metrics.trackers import Tracker


class TransformersTracker(Tracker):
    """Hand every logged line to one of Transformers' own tracking callbacks."""

    def __init__(self, name: str, tracking: TrackingSection, run: Path) -> None:
        """Track the run in ``run`` with the library ``name``, as Transformers calls it."""
        self._name, self._run = name, run
        self._run_name = tracking.run_name or run.resolve().name
        self._callback: TrainerCallback | None = None
        self._began: tuple[TrainingArguments, TrainerState, TrainerControl] | None = None
        self._model: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open on the rank that writes, under the recipe's name of the run."""
        shown = copy.copy(args)
        shown.run_name = self._run_name
        self._began, self._model = (shown, state, control), kwargs.get("model")
        super().on_train_begin(args, state, control, **kwargs)

    def open(self, step: int) -> None:
        """Make the library's callback and let it begin."""
        self._callback = _callback(self._name, self._run, step)
        assert self._began is not None
        self._callback.on_train_begin(*self._began, model=self._model)

    def write(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Hand on the figures of one line."""
        assert self._callback is not None and self._began is not None
        figures = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        args, _, control = self._began
        self._callback.on_log(args, state, control, logs=figures, model=self._model)

    def shut(self) -> None:
        """Let the library end its run."""
        assert self._callback is not None and self._began is not None
        self._callback.on_train_end(*self._began, model=self._model)


def _callback(name: str, run: Path, step: int) -> TrainerCallback:
    (kind,) = get_reporting_integration_callbacks([name])
    if name != "tensorboard":
        return kind()
    from torch.utils.tensorboard import SummaryWriter

    # What a resumed run is about to write again is taken out of what is shown.
    folder = RunFolder(run).tensorboard
    return kind(SummaryWriter(log_dir=str(folder), purge_step=step + 1 if step else None))
