"""Loading a model to evaluate: a finished run, an adapter, or a merged checkpoint.

All three become the model that training holds, experts packed where they are stored so: its forward
pass is the one that evaluations in training go through, and an adapter beside its base can be left
out to be compared with it. Plain transformers was the alternative: it expands MXFP4 beside an
adapter, three times the bytes, so that a model could not be asked on the card that trained it.

An adapter that no recipe describes can be loaded too; its file is checked as an export checks it,
and PEFT is told what was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from gptoss_kernels import ExpertProjection, choose_backend
from gptoss_kernels.experts.projection import merge_mxfp4
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.experts import ExpertSettings, set_expert_settings
from gptoss_tune.model.host_embedding import keep_embeddings_on_host
from gptoss_tune.model.load import DTYPES, load_base
from gptoss_tune.model.lora import ParamWrapper, load_adapters
from gptoss_tune.recipe import ModelSection
from gptoss_tune.run.record import record_of_adapter, trained_merge_aware
from gptoss_tune.weights import Checkpoint, open_checkpoint
from gptoss_tune.weights.adapter import Adapter, open_adapter
from gptoss_tune.weights.names import EXPERT_PROJECTIONS
from gptoss_tune.weights.sources import base_name, is_adapter


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
    """Return what ``name`` means: a run, an adapter or a whole model, here or on the Hub.

    Args:
        name: Path or name.
        base: Base of an adapter; ``None``: the one it was trained on.
        revision: Of a base or checkpoint on the Hub.
        other_base: Accept a base with other weights than the adapter was trained on.

    Raises:
        CheckpointError, HubError: It cannot be found, or is damaged.
    """
    if not is_adapter(name):
        return EvaluatedModel(name, open_checkpoint(name, revision, translate=True), None)
    if base is None:
        base, revision = base_name([name])
    checkpoint = open_checkpoint(base, revision, translate=True)
    adapter = open_adapter(name, checkpoint, other_base=other_base)
    if adapter.only_merged is not None:
        raise CheckpointError(
            f"{adapter.path}: has {adapter.only_merged}, which no adapter beside a base has here; "
            f"merge it with `gptoss-tune merge {adapter.path} --base {base} --out DIR` and name DIR"
        )
    return EvaluatedModel(name, checkpoint, adapter)


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
        adapter = subject.adapter
        model = load_adapters(model, adapter.path, checked_config(adapter), adapter.choice)
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


def checked_config(adapter: Adapter) -> LoraConfig:
    """Return PEFT's configuration of what was checked of an adapter: targets, ranks, scalings.

    PEFT would act on every option of the adapter's own file, and match its patterns.
    """
    targets = adapter.targets.values()
    rank = max(target.rank for target in targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=[target.module for target in targets if not target.experts],
        target_parameters=[target.module for target in targets if target.experts],
        rank_pattern={target.module: target.rank for target in targets},
        alpha_pattern={target.module: target.scaling * target.rank for target in targets},
        inference_mode=True,
    )


SCRATCH_BYTES = 2**28
"""Decoded expert weights that exist at a time where a long prompt has a whole layer decoded: a few
experts of gpt-oss-20b. A step of one token decodes inside the product."""


def load_answering_model(
    subject: EvaluatedModel, section: ModelSection, device: torch.device
) -> Any:
    """Return the model of ``subject`` to talk to: ``load_evaluated_model`` without its base.

    What training does anew in every pass is done once, with the same values as a result. The
    factors are rounded to the compute dtype, and the experts of a merge-aware adapter to the MXFP4
    weights that its export will hold. The adapter cannot be left out any more.

    Args, Raises: As ``load_evaluated_model``.
    """
    model = load_evaluated_model(subject, section, device)
    merge_aware = subject.adapter is not None and trained_merge_aware(subject.adapter.path)
    if merge_aware:
        _fold_expert_adapters(model)
    _round_factors(model, DTYPES[section.dtype])
    backend = choose_backend(section.backend, device, DTYPES[section.dtype])
    set_expert_settings(model, ExpertSettings(backend=backend, scratch_bytes=SCRATCH_BYTES))
    return model.requires_grad_(False)


def _fold_expert_adapters(model: nn.Module) -> None:
    """Replace every expert stack by ``Q(W + s B A)``, packed, and take its wrappers off."""
    for layer in model.modules():
        outer: Any = getattr(layer, "experts", None)
        if not isinstance(outer, ParamWrapper | cast(type, GptOssExperts)):
            continue
        updates: dict[str, Any] = {}
        inner: Any = outer
        while isinstance(inner, ParamWrapper):
            (name,) = inner.active_adapters
            lhs, rhs, scaling = inner.get_delta_factors(name)
            updates[inner.parameter_name] = (lhs.mT, rhs.mT, scaling)
            inner = inner.base_layer
        for name in EXPERT_PROJECTIONS:
            stack: Any = getattr(inner, name)
            packed = merge_mxfp4(ExpertProjection(stack.stored, None, *updates.get(name, ())))
            setattr(inner, name, nn.Parameter(ExpertWeight(packed), requires_grad=False))
        layer.experts = inner


def _round_factors(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the adapters' factors in the dtype in which they multiply."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for factors in (getattr(module, name) for name in module.adapter_layer_names):
                factors.to(dtype)
        elif isinstance(module, cast(type, GptOssExperts)):
            for name in EXPERT_PROJECTIONS:  # PEFT hands factors over in their dtype
                stack: Any = getattr(module, name)
                held = ExpertWeight(stack.stored, dtype)
                setattr(module, name, nn.Parameter(held, requires_grad=False))
