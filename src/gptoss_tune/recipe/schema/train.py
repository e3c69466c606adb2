"""The recipe's ``train`` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gptoss_tune.recipe.schema.best import EarlyStopping, KeepBestSetting
from gptoss_tune.recipe.schema.schedule import Schedule, ScheduleArguments
from gptoss_tune.recipe.schema.value_types import Count, FromText, PathText, Resume, Section


class TrainSection(Section):
    """The optimisation: how long, how fast, what is kept."""

    output_dir: PathText = Field(examples=["runs/first"])
    """Folder of the run; nothing is written outside it."""
    max_steps: Count | None = None
    """Optimizer steps; either this or num_train_epochs."""
    num_train_epochs: Annotated[float, Field(gt=0, le=10_000), FromText] | None = None
    """Passes over the training data; either this or max_steps."""
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=65536)] = 1
    """Rows per device and micro-batch."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536)] = 1
    """Micro-batches per optimizer step; the loss is averaged over all their trained tokens."""
    auto_find_batch_size: bool = False
    """Try a step before the first; while none fits, halve the micro-batch and accumulate more."""
    learning_rate: Annotated[float, Field(gt=0, le=1), FromText] = 2e-4
    """Highest learning rate of the schedule."""
    lr_scheduler_type: Schedule = "cosine"
    """Schedule of the learning rate, by its name in transformers."""
    lr_scheduler_kwargs: ScheduleArguments | None = None
    """Arguments of the schedule, such as min_lr_rate of cosine_with_min_lr; null: its defaults."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Steps in which the learning rate rises from 0; not together with warmup_ratio."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1), FromText] | None = None
    """Share of all steps in which the learning rate rises from 0."""
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """Optimizer; the 8-bit ones need bitsandbytes."""
    weight_decay: Annotated[float, Field(ge=0, le=10), FromText] = 0.0
    """Decoupled weight decay of the adapters."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1), FromText] = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1), FromText] = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0, le=1), FromText] = 1e-8
    """AdamW's term against division by zero."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1_000_000), FromText] = 1.0
    """Gradients are clipped to this norm."""
    activation_checkpointing: Literal["none", "full", "selective", "offload"] = "full"
    """Activation checkpointing; the router's choice is kept for the recomputation."""
    expert_tile: Literal["auto"] | Count | None = "auto"
    """Tokens that go through the experts at a time; auto: as many as the plan allows; null: all."""
    logging_steps: Count = 1
    """Steps between two lines of metrics."""
    eval_steps: Count | None = None
    """Steps between two evaluations; there is always one at the end."""
    save_steps: Count | None = None
    """Steps between two checkpoints; null: none, unless the run is stopped."""
    save_total_limit: Annotated[int, Field(ge=1, le=100_000)] = 2
    """How many checkpoints are kept, the best one of keep_best apart."""
    keep_best: KeepBestSetting = None
    """Publish the best evaluated weights by this figure, not the last ones; null: the last."""
    early_stopping: EarlyStopping | None = None
    """End the run when a figure gets no better: patience, min_delta, metric; null: never."""
    resume: Resume = "auto"
    """auto: continue from the newest checkpoint in output_dir; never; or a checkpoint's path."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    """Seed of the adapters, the order of the data and the held-out share."""
    deterministic: bool = False
    """The same bits in every run on one GPU; costs about 5.5 % elsewhere, not measured here."""
