"""Loading a model to evaluate: a finished run, an adapter, or a merged checkpoint.

All three become the model that training holds, experts packed where they are stored so: its forward
pass is the one that evaluations in training go through, and an adapter beside its base can be left
out to be compared with it. Plain transformers (as ``chat`` loads it) was the alternative: it
expands MXFP4 beside an adapter, three times the bytes.

PEFT reads the adapter itself, by its own configuration, so that one which no recipe describes can
be evaluated too; before that the file is checked as an export checks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gptoss_kernels import choose_backend

from gptoss_tune.errors import MachineError
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.experts import ExpertSettings, set_expert_settings
from gptoss_tune.model.host_embedding import keep_embeddings_on_host
from gptoss_tune.model.load import DTYPES, load_base
from gptoss_tune.model.lora import load_adapters
from gptoss_tune.recipe import ModelSection
from gptoss_tune.run.record import record_of_adapter, trained_merge_aware
from gptoss_tune.weights import Checkpoint, open_checkpoint
from gptoss_tune.weights.adapter import Adapter, open_adapter
from gptoss_tune.weights.sources import base_name


@dataclass(frozen=True)
class EvaluatedModel:
    """A checkpoint to evaluate, maybe with an adapter beside it; nothing is loaded yet.

    Attributes:
        name: As it was given.
        checkpoint: The base, or the merged checkpoint.
        adapter: Checked for this base; ``None`` for a merged checkpoint.
    """

    name: str
    checkpoint: Checkpoint
    adapter: Adapter | None

    @property
    def step(self) -> int:
        """Optimizer steps that a run has behind it; 0 where nobody wrote them down."""
        record = record_of_adapter(self.adapter.path) if self.adapter is not None else {}
        steps = record.get("steps", 0)
        return steps if isinstance(steps, int) else 0


def open_evaluated_model(
    name: str, *, base: str | None = None, revision: str | None = None, other_base: bool = False
) -> EvaluatedModel:
    """Return what ``name`` means: a run, an adapter's folder, a merged folder or a Hub name.

    Args:
        name: Path or name.
        base: Base of an adapter; ``None``: the one it was trained on.
        revision: Of a base or checkpoint on the Hub.
        other_base: Accept a base with other weights than the adapter was trained on.

    Raises:
        CheckpointError, HubError: It cannot be found, or is damaged.
    """
    folder = Path(name)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return EvaluatedModel(name, open_checkpoint(name, revision), None)
    if base is None:
        base, revision = base_name([name])
    checkpoint = open_checkpoint(base, revision)
    return EvaluatedModel(name, checkpoint, open_adapter(name, checkpoint, other_base=other_base))


def load_evaluated_model(
    subject: EvaluatedModel, section: ModelSection, device: torch.device
) -> Any:
    """Return the model of ``subject`` on ``device``, in evaluation mode.

    Args:
        subject: What to load.
        section: Dtype, backend, attention and precision of the recipe; experts that are stored in
            bf16 stay so.
        device: Where it goes.

    Raises:
        MachineError: A backend or engine was asked for by name and cannot run here.
        CheckpointError: The checkpoint holds tensors that the model has no place for.
    """
    if subject.checkpoint.expert_format != "mxfp4":
        section = section.model_copy(update={"experts_precision": "bf16"})
    model: Any = load_base(subject.checkpoint, section, device=device)
    merge_aware = False
    if subject.adapter is not None:
        model = load_adapters(model, subject.adapter.path)
        merge_aware = trained_merge_aware(subject.adapter.path)
    try:
        backend = choose_backend(section.backend, device, DTYPES[section.dtype])
    except ValueError as error:
        raise MachineError(f"model.backend: {error}") from error
    set_expert_settings(model, ExpertSettings(backend=backend, merge_aware=merge_aware))
    try:
        set_attention(model, section.attention)
    except ValueError as error:
        raise MachineError(f"model.attention: {error}") from error
    if section.embeddings == "cpu":
        keep_embeddings_on_host(model, device)
    return model.requires_grad_(False).eval()
