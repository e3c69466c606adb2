"""How a model was trained to be asked: its run's effort and date, and how its weights were held.

A model that was tuned at low effort answers worse at medium: the system message names another
effort than the one it learned under. So whoever asks starts where the run was, says so, and takes
another effort only when it is told to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.load import EvaluatedModel
from gptoss_tune.harmony.fields import EFFORTS, Effort
from gptoss_tune.recipe import ModelSection
from gptoss_tune.recipe.data_schema import DataSection
from gptoss_tune.run.record import prompts_trained_on, record_of_adapter

_DEFAULTS = {name: DataSection.model_fields[name].default for name in ("reasoning_effort", "date")}

Source = Literal["run", "option", "default"]


@dataclass(frozen=True)
class TrainedAs:
    """What a prompt gets unless it says otherwise.

    Attributes:
        effort: Reasoning effort in the system message.
        date: Conversation start date in it.
        source: Who says the effort: the run's record, an option, or nobody.
    """

    effort: Effort = _DEFAULTS["reasoning_effort"]
    date: str = _DEFAULTS["date"]
    source: Source = "default"

    def told(self, *, effort: Effort | None = None, date: str | None = None) -> TrainedAs:
        """Return the same with what options say."""
        found = self if date is None else replace(self, date=date)
        return found if effort is None else replace(found, effort=effort, source="option")

    def describe(self) -> str:
        """Return the effort and who says it, for people."""
        why = {
            "run": "as the run was trained",
            "option": "as asked",
            "default": "the usual one: no record of a run says another",
        }
        return f"reasoning effort {self.effort}, {why[self.source]}"


def trained_as(subject: EvaluatedModel) -> TrainedAs:
    """Return how a run rendered its data, by the record beside its adapter or merged model.

    What another tool made has none.
    """
    return recorded_as(subject.checkpoint.path if subject.adapter is None else subject.adapter.path)


def recorded_as(folder: Path) -> TrainedAs:
    """Return how a run rendered its data, by the record or the merge report in ``folder``."""
    told = prompts_trained_on(folder)
    known: dict[str, Effort] = {effort: effort for effort in EFFORTS}
    effort = known.get(told.get("reasoning_effort", ""))
    found = TrainedAs() if effort is None else TrainedAs(effort, source="run")
    return replace(found, date=told.get("date", found.date))


def answering_section(subject: EvaluatedModel, dtype: str | None = None) -> ModelSection:
    """Return how the weights are held to answer: as the run held them, on any machine's kernels.

    Args:
        subject: What is loaded.
        dtype: ``bfloat16`` or ``float32``; ``None``: the run's, else bfloat16.
    """
    wanted = {"name_or_path": str(subject.checkpoint.path)}
    run = _recipe(subject).get("model", {})
    precisions = ("dtype", "linear_precision", "head_precision", "experts_precision")
    for name in (*precisions, "embeddings", "head"):
        if name in run:
            wanted[name] = run[name]
    if dtype is not None:
        wanted["dtype"] = dtype
    try:
        return ModelSection.model_validate(wanted)
    except ValidationError:  # the record of another version, or anyone's
        kept = {"dtype": dtype} if dtype is not None else {}
        return ModelSection.model_validate({"name_or_path": wanted["name_or_path"], **kept})


def answering_device(name: str | None) -> torch.device:
    """Return the device ``name``, or a GPU where there is one, else the CPU.

    Raises:
        MachineError: The GPU that was named is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"device {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def _recipe(subject: EvaluatedModel) -> dict[str, Any]:
    if subject.adapter is None:
        return {}
    return record_of_adapter(subject.adapter.path).get("recipe", {})
