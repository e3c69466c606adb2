"""What a recipe can say: one frozen, strict pydantic model per section.

A setting exists once, here: its name (the word that users of transformers, PEFT and TRL know), its
range, its default and one line of documentation, from which the loader's messages and the editors'
JSON Schema are both made. Settings that contradict each other are the business of ``rules.py``.

An argparse mirror of every setting was the alternative: the settings then exist twice, and a
default that differs between the two is found in a run's results. Overrides are ``key=value`` with
the same checks instead.

There is no field that could hold a token, allow code from a checkpoint or name something to
import; paths are relative to the current directory.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gptoss_tune.recipe.rules import contradiction_error, contradictions
from gptoss_tune.recipe.values import (
    Count,
    Date,
    FromText,
    PathText,
    Resume,
    Text,
    Unique,
    refuse,
)


class Section(BaseModel):
    """Base of every section: frozen, strict types, unknown keys refused, numbers finite."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class ModelSection(Section):
    """Which weights are the base, and in which precision they are held."""

    name_or_path: PathText = Field(examples=["openai/gpt-oss-20b"])
    """Base checkpoint: a local folder, or a name on the Hugging Face Hub."""
    revision: Text | None = None
    """Commit, tag or branch of a base on the Hub; null: its default branch."""
    experts_precision: Literal["mxfp4", "bf16"] = "mxfp4"
    """How the experts are held: packed as released (mxfp4), or expanded (bf16)."""
    linear_precision: Literal["bf16", "nf4"] = "bf16"
    """How the attention projections are held; nf4 needs bitsandbytes."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute dtype, and the dtype of every weight that is not quantised."""
    backend: Literal["auto", "torch", "triton"] = "auto"
    """Expert layer: auto is triton on a supported GPU and torch elsewhere."""
    attention: Literal["auto", "eager", "torch_flash", "flex", "fa4", "triton"] = "auto"
    """Attention engine; every one computes the sinks and their part of the gradient."""
    embeddings: Literal["gpu", "cpu"] = "gpu"
    """Where the token embeddings are held; cpu frees 1.1 GiB of the GPU at one wait per step."""


class LoraSection(Section):
    """Which adapters are trained, on attention and on all experts."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapters, and of the experts' where expert_rank is null."""
    alpha: Annotated[float, Field(gt=0, le=65536), FromText] = 32.0
    """The update is scaled by alpha / rank."""
    expert_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank on the experts; null: rank."""
    expert_alpha: Annotated[float, Field(gt=0, le=65536), FromText] | None = None
    """Alpha on the experts; null: what keeps the scaling alpha / rank."""
    target_modules: Annotated[list[Literal["q_proj", "k_proj", "v_proj", "o_proj"]], Unique] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ]
    """Attention projections that get an adapter."""
    target_parameters: Annotated[list[Literal["gate_up_proj", "down_proj"]], Unique] = [
        "gate_up_proj",
        "down_proj",
    ]
    """Expert weights that get an adapter, one per expert."""
    layers: (
        Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1), Unique] | None
    ) = None
    """Numbers of the layers that get adapters, from 0; null: every layer."""
    merge_aware: bool = False
    """Train through the rounding of the MXFP4 export, so that nothing is lost in it."""
    start_from: PathText | None = None
    """Adapter or run to start from, of the same ranks and targets; null: fresh factors."""


ColumnName = Literal[
    "prompt",
    "completion",
    "system",
    "thinking",
    "messages",
    "conversations",
    "tools",
    "reasoning_effort",
    "weight",
]
"""A field that a template of a source can write."""


class DataSource(Section):
    """One place to read conversations from; a text in a recipe is short for its path."""

    path: PathText = Field(examples=["data/conversations/reasoning.jsonl"])
    """A .jsonl, .json, .parquet or .csv file (or .gz, .zst of it), folder, glob, or Hub dataset."""
    name: Text | None = None
    """Configuration of a dataset on the Hub."""
    split: Text | None = None
    """Split of a dataset on the Hub; null: train."""
    revision: Text | None = None
    """Commit, tag or branch of a dataset on the Hub; null: its default branch."""
    streaming: bool = False
    """Read a dataset on the Hub row by row instead of downloading it; revision is a commit."""
    limit: Count | None = None
    """Read this many rows from the start; null: all."""
    weight: Annotated[float, Field(gt=0, le=1000), FromText] = 1.0
    """Times each sample is used in an epoch: 2 is twice, 0.5 is a drawn half of them."""
    columns: Annotated[dict[ColumnName, Text], Field(min_length=1)] | None = None
    """Fields of a row, written from the columns by Jinja templates; null: the columns are known."""


def _sources(value: Any) -> Any:
    """Read ``a.jsonl`` and ``{path: ...}`` as the list of one source that they are short for."""
    if value == []:
        raise refuse("at least one file or dataset", "name one")
    listed = value if isinstance(value, list) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in listed]


Sources = Annotated[
    list[DataSource],
    BeforeValidator(_sources, json_schema_input_type=str | DataSource | list[str | DataSource]),
]


class ChannelWeights(Section):
    """Loss weight of each channel of the assistant; 0 makes it context."""

    analysis: Annotated[float, Field(ge=0, le=100), FromText] = 1.0
    """Loss weight of the chain of thought."""
    commentary: Annotated[float, Field(ge=0, le=100), FromText] = 1.0
    """Loss weight of tool calls and their preambles."""
    final: Annotated[float, Field(ge=0, le=100), FromText] = 1.0
    """Loss weight of the answers."""


class DataSection(Section):
    """Which conversations are trained on, and how they become tokens and loss weights."""

    train: Sources = Field(examples=["data/conversations/reasoning.jsonl"])
    """Training data: a file, a dataset on the Hub, or a list of them."""
    eval: Sources | None = None
    """Held-out data, in the same forms; null: none."""
    eval_fraction: Annotated[float, Field(gt=0, le=0.5), FromText] | None = None
    """Share of the training rows held out instead of eval, drawn by the seed."""
    max_length: Annotated[int, Field(ge=8, le=131_072)] = 4096
    """Longest sample, and length of a packed row, in tokens."""
    too_long: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a longer sample; dropped ones are counted."""
    packing: bool = False
    """Put several samples into one row; they do not see each other."""
    reasoning_effort: Literal["low", "medium", "high"] = "medium"
    """Effort in the system message of rows that name none."""
    date: Date = "2025-06-28"
    """Conversation start date in the system message; fixed, never today's."""
    channel_weights: ChannelWeights = ChannelWeights()
    """Loss weight of each channel of the assistant."""
    turns: Literal["all", "last"] = "all"
    """Train every turn of the assistant, each in the context it is served in, or the last."""
    nothing_to_train: Literal["skip", "error"] = "skip"
    """What happens to a row whose every token has loss weight 0; skipped ones are counted."""
    curriculum: Literal["none", "reasoning_effort"] = "none"
    """Order of an epoch: drawn by the seed, or rows of low, then medium, then high effort."""
    dataset_num_proc: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processes that render; null: what the size of the data and the machine's cores give."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens when a row cannot be trained on; skipped rows are counted."""
    max_errors: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
    """With on_error: skip, stop when more rows than this were skipped."""


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
    learning_rate: Annotated[float, Field(gt=0, le=1), FromText] = 2e-4
    """Highest learning rate of the schedule."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Schedule of the learning rate."""
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
    checkpointing: Literal["none", "full", "selective", "offload"] = "full"
    """Activation checkpointing; the router's choice is kept for the recomputation."""
    logging_steps: Count = 1
    """Steps between two lines of metrics."""
    eval_steps: Count | None = None
    """Steps between two evaluations; there is always one at the end."""
    save_steps: Count | None = None
    """Steps between two checkpoints; null: none, unless the run is stopped."""
    save_total_limit: Annotated[int, Field(ge=1, le=100_000)] = 2
    """How many checkpoints are kept."""
    resume: Resume = "auto"
    """auto: continue from the newest checkpoint in output_dir; never; or a checkpoint's path."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    """Seed of the adapters, the order of the data and the held-out share."""


class GuardSection(Section):
    """What is watched while a run trains; one that trains nothing, or NaN, is stopped."""

    check_steps: Annotated[int, Field(ge=0, le=1000)] = 2
    """First updates in which every adapter must get a gradient and move; 0: not checked."""
    max_nonfinite_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    """Steps in a row with NaN or infinity that are left out; one more stops the run."""
    loss_spike: Annotated[float, Field(gt=1, le=1_000_000), FromText] | None = 3.0
    """Warn when a step's loss is this many times the recent mean; null: never."""
    router_collapse: Annotated[float, Field(gt=0, lt=1), FromText] | None = 0.7
    """Warn when the entropy of a layer's expert load falls to this share of its first value."""


class ExportSection(Section):
    """What the export of the finished run must hold."""

    min_survival: Annotated[float, Field(ge=0, le=1), FromText] = 0.9
    """Share of the experts' change that an MXFP4 export must keep, or it is refused."""


class TrackingSection(Section):
    """Where metrics go beside the run's own metrics.jsonl."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; the key is read from its own login, never from a recipe."""
    project: Text | None = None
    """Project in Weights & Biases; null: gptoss-tune."""
    run_name: Text | None = None
    """Name of the run in Weights & Biases; null: the last part of output_dir."""


class WorldSection(Section):
    """On how many processes the run is spread."""

    processes: Annotated[int, Field(ge=1, le=65536)] = 1
    """Processes, one per GPU; the accelerate command is printed when more than one."""


class Recipe(Section):
    """A whole recipe; what it does not say has the default."""

    model: ModelSection
    """Which weights are the base, and in which precision they are held."""
    lora: LoraSection = LoraSection()
    """Which adapters are trained, on attention and on all experts."""
    data: DataSection
    """Which conversations are trained on, and how they become tokens and loss weights."""
    train: TrainSection
    """The optimisation: how long, how fast, what is kept."""
    guard: GuardSection = GuardSection()
    """What is watched while a run trains; one that trains nothing, or NaN, is stopped."""
    export: ExportSection = ExportSection()
    """What the export of the finished run must hold."""
    tracking: TrackingSection = TrackingSection()
    """Where metrics go beside the run's own metrics.jsonl."""
    world: WorldSection = WorldSection()
    """On how many processes the run is spread."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        found = contradictions(self)
        if found:
            raise contradiction_error(found)
        return self


SECTIONS: dict[tuple[str, ...], type[Section]] = {
    ("model",): ModelSection,
    ("lora",): LoraSection,
    ("data",): DataSection,
    ("data", "channel_weights"): ChannelWeights,
    ("train",): TrainSection,
    ("guard",): GuardSection,
    ("export",): ExportSection,
    ("tracking",): TrackingSection,
    ("world",): WorldSection,
}
"""Every mapping of settings by its place in a recipe, outer ones first."""
