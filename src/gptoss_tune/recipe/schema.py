"""Schema of a recipe: one frozen, strict pydantic model per section; ``recipe.py`` joins them.

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

from pydantic import BeforeValidator, Discriminator, Field, Tag

from gptoss_tune.recipe.value_types import (
    Count,
    FromText,
    PathText,
    Resume,
    Section,
    Text,
    Unique,
    listed,
    refuse,
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
    """Experts, loss, norms, rotation: auto is triton (and Liger) on a supported GPU, else torch."""
    attention: Literal["auto", "eager", "torch_flash", "flex", "fa4", "triton", "cudnn"] = "auto"
    """Attention engine; every one computes the sinks and their part of the gradient."""
    embeddings: Literal["gpu", "cpu"] = "gpu"
    """Where the token embeddings are held; cpu frees 1.1 GiB of the GPU at one wait per step."""


class ChosenExperts(Section):
    """Which experts of a layer get an adapter: those that the training data uses most."""

    share: Annotated[float, Field(gt=0, le=1), FromText] | None = None
    """Share of a layer's experts; either this or count."""
    count: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Experts of a layer; either this or share."""
    tokens: Count | None = None
    """Tokens that choosing reads at most, of the first epoch's first rows; null: all data once."""


def _experts_kind(value: Any) -> str:
    return "chosen" if isinstance(value, dict | ChosenExperts) else "all"


Experts = Annotated[
    Annotated[Literal["all"], Tag("all")] | Annotated[ChosenExperts, Tag("chosen")],
    Discriminator(_experts_kind),
]
"""Which experts get an adapter; a mapping has mistakes of its own, and not those of a word."""


class LoraSection(Section):
    """Which adapters are trained, on attention and on experts."""

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
    experts: Experts = "all"
    """Experts that get one: all, or the share or count of each layer that the data uses most."""
    layers: (
        Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1), Unique] | None
    ) = None
    """Numbers of the layers that get adapters, from 0; null: every layer."""
    merge_aware: bool = False
    """Train through the rounding of the MXFP4 export, so that nothing is lost in it."""
    init_from: PathText | None = None
    """Adapter or run to start from, of the same ranks and targets; null: fresh factors."""


class SftSection(Section):
    """Supervised fine-tuning: the tokens of the answers, by weight, and all tokens of raw text."""

    name: Literal["sft"] = "sft"
    """The method: sft is supervised fine-tuning."""


Reference = Literal["base", "init_adapter", "none"]
"""What a preference is measured against: the base, the adapter of ``lora.init_from``, nothing."""
Analysis = Literal["counted", "ignored"]
Share = Annotated[float, Field(ge=0, lt=0.5), FromText]
_Beta = Annotated[float, Field(gt=0, le=1000), FromText]
_Weight = Annotated[float, Field(ge=0, le=1000), FromText]


class DpoSection(Section):
    """Direct preference optimisation: the chosen answer gains on the rejected one."""

    name: Literal["dpo"]
    """The method: dpo is direct preference optimisation, on pairs."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """How strongly the model is held to the reference: the margin's factor in the sigmoid."""
    label_smoothing: Share = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round."""
    length_normalized: bool = False
    """Compare log-probabilities per token instead of their sums."""
    sft_weight: _Weight = 0.0
    """Weight of the chosen answer's own mean loss, which keeps its log-probability from falling."""
    reference: Reference | None = None
    """Log-probabilities compared with; null: init_adapter with lora.init_from, else base."""


class IpoSection(Section):
    """Identity preference optimisation: the margin is drawn to 1 / (2 beta), and not beyond."""

    name: Literal["ipo"]
    """The method: ipo is identity preference optimisation, on pairs."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """Half the inverse of the margin that is aimed at; the paper's tau."""
    length_normalized: bool = True
    """Compare log-probabilities per token, as the paper's results do, instead of their sums."""
    sft_weight: _Weight = 0.0
    """Weight of the chosen answer's own mean loss, which keeps its log-probability from falling."""
    reference: Reference | None = None
    """Log-probabilities compared with; null: init_adapter with lora.init_from, else base."""


class SimpoSection(Section):
    """SimPO: mean log-probabilities compared with a margin, without a reference."""

    name: Literal["simpo"]
    """The method: simpo compares mean log-probabilities, on pairs, without a reference."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 2.0
    """Factor of the difference of the mean log-probabilities."""
    gamma: Annotated[float, Field(ge=0, le=1000), FromText] = 1.0
    """Margin that the chosen answer is to lead by, after beta."""
    label_smoothing: Share = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round."""
    sft_weight: _Weight = 0.0
    """Weight of the chosen answer's own mean loss, which keeps its log-probability from falling."""


class OrpoSection(Section):
    """ORPO: supervised fine-tuning on the chosen answer, and its odds against the rejected one."""

    name: Literal["orpo"]
    """The method: orpo adds an odds ratio to supervised fine-tuning, on pairs, no reference."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """Weight of the odds ratio beside the chosen answer's loss; the paper's lambda."""


class KtoSection(Section):
    """KTO: answers labelled good or bad one by one, each against the reference."""

    name: Literal["kto"]
    """The method: kto is Kahneman-Tversky optimisation, on answers with a label each."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """How strongly the model is held to the reference."""
    desirable_weight: Annotated[float, Field(gt=0, le=1000), FromText] = 1.0
    """Weight of the good answers."""
    undesirable_weight: Annotated[float, Field(gt=0, le=1000), FromText] = 1.0
    """Weight of the bad answers."""
    reference: Literal["base", "init_adapter"] | None = None
    """Log-probabilities compared with; null: init_adapter with lora.init_from, else base."""


METHODS: dict[str, type[Section]] = {
    "sft": SftSection,
    "dpo": DpoSection,
    "ipo": IpoSection,
    "simpo": SimpoSection,
    "orpo": OrpoSection,
    "kto": KtoSection,
}
"""The section of every method by its name."""


def method_name(settings: Any) -> str:
    """Return which method the values of the section, or a section, are of; ``sft`` without a name.

    What is no name at all is returned as text, and is then no method's.
    """
    if isinstance(settings, dict):
        return str(settings.get("name") or "sft")
    return str(getattr(settings, "name", settings))


# One class a method, so that each has its own settings and no other's.
MethodSection = Annotated[
    Annotated[SftSection, Tag("sft")]
    | Annotated[DpoSection, Tag("dpo")]
    | Annotated[IpoSection, Tag("ipo")]
    | Annotated[SimpoSection, Tag("simpo")]
    | Annotated[OrpoSection, Tag("orpo")]
    | Annotated[KtoSection, Tag("kto")],
    Discriminator(method_name),
]
"""How the rows become a loss; a recipe without the section means ``sft``."""


def reference_of(method: MethodSection, lora: LoraSection) -> Reference:
    """Return what ``method`` measures against; ``none`` for one that has no reference."""
    if isinstance(method, SftSection | SimpoSection | OrpoSection):
        return "none"
    return method.reference or ("base" if lora.init_from is None else "init_adapter")


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
    """How many checkpoints are kept."""
    resume: Resume = "auto"
    """auto: continue from the newest checkpoint in output_dir; never; or a checkpoint's path."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    """Seed of the adapters, the order of the data and the held-out share."""
    deterministic: bool = False
    """The same bits in every run on one GPU; costs about 5.5 % elsewhere, not measured here."""


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


Tracker = Literal[
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
]
"""What Transformers' trainer reports to, under its names; wandb and trackio have their own keys."""


def _trackers(value: Any) -> Any:
    """Read one name as a list of it; refuse the two that have a setting of their own."""
    names = listed(value)
    for own, setting in (("wandb", "wandb: online"), ("trackio", "trackio: local")):
        if isinstance(names, list) and own in names:
            raise refuse("a tracker without a setting of its own", f"set tracking.{setting}")
    return names


class TrackingSection(Section):
    """Where metrics go beside the run's own metrics.jsonl."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; the key is read from its own login, never from a recipe."""
    trackio: Literal["disabled", "local"] = "disabled"
    """trackio, in the run's own folder: no server and no Space; needs the extra trackio."""
    report_to: Annotated[
        list[Tracker],
        BeforeValidator(_trackers, json_schema_input_type=Tracker | list[Tracker]),
        Unique,
    ] = []
    """Other trackers, each Transformers' own callback, set by the library's own variables."""
    project: Text | None = None
    """Project in wandb or trackio; null: gptoss-tune."""
    run_name: Text | None = None
    """Name of the run in the tracker; null: the last part of output_dir."""
    entity: Text | None = None
    """The wandb user or team; null: the login's own."""
    group: Text | None = None
    """Runs of one group stand together in wandb, such as those of a sweep."""
    tags: Annotated[
        list[Text], BeforeValidator(listed, json_schema_input_type=Text | list[Text]), Unique
    ] = []
    """Labels of the run in wandb."""


class DistributedSection(Section):
    """How many processes train, and how they share the model."""

    num_processes: Annotated[int, Field(ge=1, le=65536)] = 1
    """Processes, one per GPU; `gptoss-tune train` starts them."""
    strategy: Parallelism | None = None
    """Each GPU holds the model (ddp), or a share of it (fsdp2); null: as the launcher says."""
    context_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that share each row, for rows too long for one GPU; divides num_processes."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120
    """Seconds one process may be silent, or keep the others waiting in a step, before all stop."""

    @property
    def data_parallel(self) -> int:
        """Groups of processes that each train rows of their own."""
        return self.num_processes // self.context_parallel


Parallelism = Literal["ddp", "fsdp2"]
"""``ddp``: each GPU holds the whole model; ``fsdp2``: each holds a share and gathers layers."""
