"""The recipe's model, ready to train: base, adapters, and which code runs them.

Every choice that a recipe leaves open (the expert backend, the attention engine) is made here once
and said in ``notes``; a choice that cannot run on this machine stops the run with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gptoss_kernels import choose_backend
from gptoss_kernels.attention.engines import EngineChoice, choose_engine
from gptoss_kernels.backend import Backend
from peft import PeftModel
from torch import nn

from gptoss_tune.errors import MachineError
from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.model.experts import ExpertSettings, set_expert_settings
from gptoss_tune.model.footprint import describe_footprint
from gptoss_tune.model.host_embedding import keep_embeddings_on_host
from gptoss_tune.model.initial_adapter import init_from
from gptoss_tune.model.load import DTYPES, load_base
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.model.norms import RowKernelChoice, choose_row_kernels, set_norms
from gptoss_tune.model.parallel.sharding import Share, shard
from gptoss_tune.recipe import ModelSection, Recipe
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_config import ExpertChoice


@dataclass(frozen=True)
class Built:
    """A model to train, and what to tell about it.

    Attributes:
        model: The base with its adapters; only the adapters require gradients.
        notes: One line each: what is held in which precision, and which code runs.
    """

    model: PeftModel
    notes: tuple[str, ...]


def build(
    recipe: Recipe,
    base: Checkpoint,
    device: torch.device | str,
    share: Share | None = None,
    choice: ExpertChoice | None = None,
    *,
    expert_tile: int | None = None,
) -> Built:
    """Return the model that ``recipe`` trains, on ``device``.

    Args:
        recipe: What is built.
        base: Where the weights are read.
        device: Where they go.
        share: This rank's, of a model spread with FSDP2; ``None``: the whole model.
        choice: The experts that get an adapter, where ``lora.experts`` chooses some.
        expert_tile: What ``train.expert_tile: auto`` came to; ``None``: a whole micro-batch.

    Raises:
        RecipeError, CheckpointError, MachineError: See ``load_base``, ``add_adapters`` and
            ``init_from``.
        MachineError: A backend or engine was asked for by name and cannot run here.
    """
    device = torch.device(device)
    bare: Any = load_base(base, recipe.model, device=device, share=share)
    model = add_adapters(bare, recipe.lora, choice)
    started_at: tuple[str, ...] = ()
    if recipe.lora.init_from is not None:
        started_at = (f"adapters: start from {init_from(model, recipe.lora.init_from)}",)
    merge_aware, deterministic = recipe.lora.merge_aware, recipe.train.deterministic
    asked = recipe.train.expert_tile
    tile = expert_tile if asked == "auto" else asked
    backend, engine, row_wise = _with_code(
        model, recipe.model, device, merge_aware, deterministic=deterministic, tile=tile
    )
    set_checkpointing(model, recipe.train.activation_checkpointing)
    bare.loss_backend = backend
    if recipe.model.embeddings == "cpu":
        keep_embeddings_on_host(model, device)
    if share is not None:
        shard(model, device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    of = "" if choice is None else f" (of {len(next(iter(choice.values())))} experts a layer)"
    aware = ", on the weights that an MXFP4 export will hold" if merge_aware else ""
    tiles = "" if tile is None else f", tiles of {tile:,} tokens"
    each = "" if share is None else f"each of {share.ranks} processes "
    return Built(
        model,
        (
            f"model: {base.name} {each}{describe_footprint(model)}; "
            f"{trained:,} parameters train{of}",
            f"experts: {backend} backend{aware}{tiles}; attention: {engine.reason}; "
            f"norms and rotation: {row_wise.reason}; "
            f"activation checkpointing: {recipe.train.activation_checkpointing}",
            *([row_wise.warning] if row_wise.warning else []),
            *started_at,
        ),
    )


def build_base(
    section: ModelSection,
    base: Checkpoint,
    device: torch.device,
    share: Share | None = None,
    *,
    deterministic: bool,
    expert_tile: int | None = None,
) -> GptOssForTuning:
    """Return the base alone as training computes with it, to look at before it gets adapters.

    Args:
        section: Of the recipe.
        base: As for ``build``.
        device: Likewise.
        share: Likewise.
        deterministic: As ``train.deterministic``.
        expert_tile: Tokens that go through the experts at a time; ``None``: all.

    Raises:
        RecipeError, CheckpointError, MachineError: As ``build``.
    """
    model = load_base(base, section, device=device, share=share)
    _with_code(model, section, device, False, deterministic=deterministic, tile=expert_tile)
    if section.embeddings == "cpu":
        keep_embeddings_on_host(model, device)
    if share is not None:
        shard(model, device)
    return model


def _with_code(
    model: nn.Module,
    section: ModelSection,
    device: torch.device,
    merge_aware: bool,
    *,
    deterministic: bool,
    tile: int | None,
) -> tuple[Backend, EngineChoice, RowKernelChoice]:
    """Let ``model`` compute with the code that the recipe asks for, or that is best here."""
    backend = _backend(section, device)
    settings = ExpertSettings(backend=backend, merge_aware=merge_aware, tile_tokens=tile)
    set_expert_settings(model, settings)
    try:
        engine = set_attention(model, section.attention, deterministic=deterministic)
    except ValueError as error:
        raise MachineError(f"model.attention: {error}") from error
    row_wise = choose_row_kernels(backend, device, DTYPES[section.dtype])
    set_norms(model, row_wise.kernels)
    return backend, engine, row_wise


def engines(
    model: ModelSection, base: Checkpoint, device: torch.device, *, deterministic: bool
) -> dict[str, str]:
    """Return the code that ``build`` would choose, by what it computes; no weight is read.

    Args:
        model: May name a backend and an engine.
        base: Its heads decide with.
        device: Where the model runs.
        deterministic: As ``train.deterministic``.

    Raises:
        MachineError: A backend or engine was asked for by name and cannot run here.
    """
    try:
        attention = choose_engine(
            model.attention,
            device,
            DTYPES[model.dtype],
            base.config["head_dim"],
            deterministic=deterministic,
        )
    except ValueError as error:
        raise MachineError(f"model.attention: {error}") from error
    return {"experts": _backend(model, device), "attention": attention.name}


def _backend(model: ModelSection, device: torch.device) -> Backend:
    try:
        return choose_backend(model.backend, device, DTYPES[model.dtype])
    except ValueError as error:
        raise MachineError(f"model.backend: {error}") from error
