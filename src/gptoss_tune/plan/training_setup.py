"""What a plan is made of: the sizes of a base, the settings of its training, and the processes.

Memory, operations and hours are all functions of the same few things, and so is what could be
changed when they are too much. They stand here together, with the sizes that follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gptoss_tune.plan.architecture import Architecture
from gptoss_tune.plan.methods import Added, added
from gptoss_tune.plan.weights import (
    Factors,
    adapter_factors,
    compute_bytes,
    gathered_bytes,
    host_weight_bytes,
)
from gptoss_tune.recipe.data_schema import DataSection
from gptoss_tune.recipe.schema import (
    LoraSection,
    MethodSection,
    ModelSection,
    Parallelism,
    TrainSection,
)

KEEP_ATTENTION_FROM = 16_384
"""Tokens of a row from which ``activation_checkpointing: full`` keeps what full attention layers
computed."""


@dataclass(frozen=True)
class TrainingSetup:
    """A training as its plan sees it: what a step computes, keeps and shares out.

    gpt-oss-20b with adapters of rank 8, four rows of 4,096 tokens at a time on each of two GPUs::

        setup = TrainingSetup(
            RELEASED["openai/gpt-oss-20b"],
            ModelSection(name_or_path="openai/gpt-oss-20b"),
            LoraSection(rank=8),
            SftSection(),
            DataSection(train="a.jsonl", max_length=4096),
            TrainSection(output_dir="run", max_steps=10, per_device_train_batch_size=4),
            num_processes=2,
        )
        setup.tokens  # 16384, in a micro-batch of one GPU
        setup.with_settings({"data.max_length": 2048}).tokens  # 8192

    Attributes:
        architecture: Sizes of the base.
        model: How its weights are held.
        lora: What is adapted.
        method: How rows become a loss.
        data: What is trained on, and at which length.
        train: The micro-batch, the optimizer, what is kept for the backward pass.
        num_processes: GPUs, one process each.
        strategy: How several of them share the model.
        context_parallel: How many of them share each row.
    """

    architecture: Architecture
    model: ModelSection
    lora: LoraSection
    method: MethodSection
    data: DataSection
    train: TrainSection
    num_processes: int = 1
    strategy: Parallelism = "ddp"
    context_parallel: int = 1

    @property
    def tokens(self) -> int:
        """T, tokens of a micro-batch on one GPU; rows are taken at ``data.max_length``."""
        return self.train.per_device_train_batch_size * self.local_length

    @property
    def row_tokens(self) -> int:
        """Tokens of the whole rows of a micro-batch, whatever part of them a GPU holds."""
        return self.train.per_device_train_batch_size * self.data.max_length

    @property
    def tile_tokens(self) -> int:
        """Tokens that go through the experts at a time; all, where the recipe leaves it open."""
        tile = self.train.expert_tile
        return self.tokens if tile in ("auto", None) else min(int(tile), self.tokens)

    @property
    def local_length(self) -> int:
        """Tokens of one row that a GPU holds."""
        return -(-self.data.max_length // self.context_parallel)

    @property
    def keeps_attention(self) -> bool:
        """Whether ``activation_checkpointing: full`` keeps what full attention computed."""
        mode = self.train.activation_checkpointing
        return mode == "full" and self.data.max_length >= KEEP_ATTENTION_FROM

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step, over all processes."""
        groups = self.num_processes // self.context_parallel
        return self.row_tokens * self.train.gradient_accumulation_steps * groups

    @property
    def shards(self) -> int:
        """Parts that the model is cut into."""
        return self.num_processes if self.strategy == "fsdp2" else 1

    @property
    def value_bytes(self) -> int:
        """Bytes of one value in the compute dtype."""
        return compute_bytes(self.model)

    @property
    def added(self) -> Added:
        """What the method adds to a step of supervised fine-tuning."""
        a = self.architecture
        return added(self.method, self.lora, a.layers * a.experts_per_token)

    @property
    def host_weight_bytes(self) -> int:
        """Bytes of the token embeddings and of ``lm_head`` where they are in host memory."""
        return host_weight_bytes(self.architecture, self.model)

    @property
    def gathered_bytes(self) -> int:
        """Bytes of two layers' frozen weights, and of ``lm_head``, put together from shards."""
        return gathered_bytes(self.architecture, self.model)

    @cached_property
    def factors(self) -> list[Factors]:
        """Every adapted weight, layer after layer."""
        return adapter_factors(self.architecture, self.lora)

    @cached_property
    def lowest_layer(self) -> int:
        """Lowest layer with adapters: nothing below it asks for a gradient."""
        return min(factor.layer for factor in self.factors)

    def factors_of(self, layer: int) -> list[Factors]:
        """Return the adapted weights of one layer."""
        return [factor for factor in self.factors if factor.layer == layer]

    def with_settings(self, settings: Mapping[str, Any]) -> TrainingSetup:
        """Return the setup with values replaced by dotted key, each checked as in a recipe."""
        values: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            section, name = key.split(".")
            values.setdefault(section, getattr(self, section).model_dump())[name] = value
        sections = {name: type(getattr(self, name)).model_validate(v) for name, v in values.items()}
        return replace(self, **sections)
