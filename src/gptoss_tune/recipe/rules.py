"""Validation rules between settings: contradictions, and settings without effect.

Every rule looks at values alone, never at whether a key was written: a resolved recipe, which
spells out every default, must pass the same rules as the sparse one that it came from. So a default
value beside a setting that idles it is accepted, and any other value is refused.

Validators on the sections were the alternative: pydantic skips them as soon as one field of the
section is wrong, and the user meets the contradiction only on the second try. Here the loader runs
the rules on whatever fields are sound and reports everything at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from glob import has_magic
from pathlib import PurePath
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction
from gptoss_tune.recipe.schema.value_types import is_hub_name

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSection, DataSource
    from gptoss_tune.recipe.evaluation_schema import EvaluationSection
    from gptoss_tune.recipe.schema import (
        LoraSection,
        MethodSection,
        ModelSection,
        TrackingSection,
        TrainSection,
    )

_FILE_SUFFIXES = {".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".txt", ".gz", ".zst"}


def model_rules(model: ModelSection) -> Iterator[Contradiction]:
    """Yield what contradicts itself in ``model``."""
    if model.revision is not None and not is_hub_name(model.name_or_path):
        yield Contradiction(
            ("model.revision", "model.name_or_path"),
            f"a revision for the folder {model.name_or_path!r}",
            "one for a name on the Hub only",
            "remove model.revision",
            yields=("model.revision",),
        )

    if model.head == "cpu" and model.head_precision == "nf4":
        yield Contradiction(
            ("model.head_precision", "model.head"),
            "nf4 with model.head cpu",
            "bf16 or int8: what waits in host memory takes none of the GPU's",
            "set model.head_precision to bf16, or model.head to gpu",
        )


def lora_rules(lora: LoraSection, model: ModelSection) -> Iterator[Contradiction]:
    """Yield what contradicts itself in ``lora``, or the precision of the experts."""
    if not lora.target_modules and not lora.target_parameters:
        yield Contradiction(
            ("lora.target_modules", "lora.target_parameters"),
            "no target at all",
            "something to train",
            "name targets in lora.target_modules or lora.target_parameters",
        )
        return
    if not lora.target_parameters:
        for key, value in (("expert_rank", lora.expert_rank), ("expert_alpha", lora.expert_alpha)):
            if value is not None:
                yield Contradiction(
                    (f"lora.{key}", "lora.target_parameters"),
                    f"{value} while lora.target_parameters is empty",
                    "adapters on the experts",
                    f"remove lora.{key}, or name gate_up_proj and down_proj",
                    yields=(f"lora.{key}",),
                )
    if lora.merge_aware and not lora.target_parameters:
        yield Contradiction(
            ("lora.merge_aware", "lora.target_parameters"),
            "true while lora.target_parameters is empty",
            "adapters on the experts, which alone are exported in MXFP4",
            "set lora.merge_aware to false",
            yields=("lora.merge_aware",),
        )
    if lora.merge_aware and model.experts_precision != "mxfp4":
        yield Contradiction(
            ("lora.merge_aware", "model.experts_precision"),
            f"true with model.experts_precision {model.experts_precision}",
            "experts held as mxfp4",
            "set model.experts_precision to mxfp4, or lora.merge_aware to false",
        )


def method_rules(
    method: MethodSection, lora: LoraSection, data: DataSection
) -> Iterator[Contradiction]:
    """Yield what contradicts itself in ``method``, or what its loss does not use of ``data``."""
    if getattr(method, "reference", None) == "init_adapter" and lora.init_from is None:
        yield Contradiction(
            ("method.reference", "lora.init_from"),
            "init_adapter without lora.init_from",
            "an adapter to start from, which is then the reference",
            "set lora.init_from, or method.reference to base",
        )
    if method.name in ("sft", "grpo"):  # what grpo does not use: contradictions.reinforcement
        return
    name = method.name
    for channel, weight in data.channel_weights.model_dump().items():
        if weight != 1:
            instead = ", and set method.analysis to ignored" if channel == "analysis" else ""
            yield Contradiction(
                (f"data.channel_weights.{channel}", "method.name"),
                f"{weight:g} with method.name {name}",
                "1: an answer's log-probability is the sum over its tokens",
                f"remove it{instead if weight == 0 else ''}",
            )
    for key, value, allowed, why in (
        ("too_long", data.too_long, ("drop", "error"), "answers that are whole"),
        ("turns", data.turns, ("all",), "every turn after the shared prompt counted"),
    ):
        if value not in allowed:
            yield Contradiction(
                (f"data.{key}", "method.name"),
                f"{value} with method.name {name}",
                why,
                f"set data.{key} to {' or '.join(allowed)}",
            )


def _source_rules(key: str, sources: list[DataSource] | None) -> Iterator[Contradiction]:
    for index, source in enumerate(sources or []):
        if PurePath(source.path).suffix.lower() not in _FILE_SUFFIXES and is_hub_name(source.path):
            continue
        suffixes = {suffix.lower() for suffix in PurePath(source.path).suffixes[-2:]}
        is_folder = suffixes.isdisjoint(_FILE_SUFFIXES) and not has_magic(source.path)
        for name in ("name", "split", "revision", "streaming"):
            if is_folder and name in ("name", "split"):
                continue  # a folder may hold several; whoever opens it knows
            if getattr(source, name):
                yield Contradiction(
                    (f"{key}[{index}].{name}", f"{key}[{index}].path"),
                    f"a {name} for the file {source.path!r}",
                    "one for a dataset on the Hub"
                    + (", or for a folder" if name in ("name", "split") else " only"),
                    f"remove {name}",
                )


def data_rules(data: DataSection) -> Iterator[Contradiction]:
    """Yield what contradicts itself in ``data``."""
    yield from _source_rules("data.train", data.train)
    yield from _source_rules("data.eval", data.eval)
    if data.eval is not None and data.eval_fraction is not None:
        yield Contradiction(
            ("data.eval_fraction", "data.eval"),
            f"{data.eval_fraction} beside data.eval",
            "one of the two",
            "remove data.eval_fraction or data.eval",
            yields=("data.eval_fraction", "data.eval"),
        )
    weights = data.channel_weights
    if weights.analysis == weights.commentary == weights.final == 0:
        yield Contradiction(
            (
                "data.channel_weights",
                "data.channel_weights.analysis",
                "data.channel_weights.commentary",
                "data.channel_weights.final",
            ),
            "0 for every channel",
            "something to train",
            "give at least one channel a weight above 0",
        )
    if data.on_error == "stop" and data.max_errors != 100:
        yield Contradiction(
            ("data.max_errors", "data.on_error"),
            f"{data.max_errors} while data.on_error is stop",
            "a cap on skipped rows only where rows are skipped",
            "remove data.max_errors, or set data.on_error to skip",
            yields=("data.max_errors",),
        )


def train_rules(train: TrainSection, data: DataSection) -> Iterator[Contradiction]:
    """Yield what contradicts itself in ``train``, or the held-out data."""
    length_keys = ("train.max_steps", "train.num_train_epochs")
    if train.max_steps is not None and train.num_train_epochs is not None:
        yield Contradiction(
            length_keys,
            f"{train.max_steps} beside train.num_train_epochs {train.num_train_epochs}",
            "one of the two",
            "remove one, or set it to null in an override",
            yields=length_keys,
        )
    if train.max_steps is None and train.num_train_epochs is None:
        yield Contradiction(
            length_keys,
            "neither max_steps nor num_train_epochs",
            "one of the two",
            "write for example num_train_epochs: 1 under 'train:'",
        )
    warmup = "warmup_steps" if train.warmup_steps is not None else "warmup_ratio"
    if train.warmup_steps is not None and train.warmup_ratio is not None:
        yield Contradiction(
            ("train.warmup_ratio", "train.warmup_steps"),
            f"{train.warmup_ratio} beside train.warmup_steps {train.warmup_steps}",
            "one of the two",
            "remove train.warmup_ratio or train.warmup_steps",
            yields=("train.warmup_ratio", "train.warmup_steps"),
        )
    elif train.lr_scheduler_type == "constant" and getattr(train, warmup):
        yield Contradiction(
            (f"train.{warmup}", "train.lr_scheduler_type"),
            f"{getattr(train, warmup)} with lr_scheduler_type constant",
            "a schedule that warms up",
            f"set train.lr_scheduler_type to constant_with_warmup, or remove train.{warmup}",
            yields=(f"train.{warmup}",),
        )
    if train.lr_scheduler_type == "constant_with_warmup" and not getattr(train, warmup):
        yield Contradiction(
            ("train.lr_scheduler_type", "train.warmup_steps", "train.warmup_ratio"),
            "constant_with_warmup without a warm-up",
            "train.warmup_steps or train.warmup_ratio",
            "set one of the two, or set train.lr_scheduler_type to constant",
        )
    if train.max_steps is not None:
        yield from warmup_rules(train, train.max_steps)
    if train.eval_steps is not None and data.eval is None and data.eval_fraction is None:
        yield Contradiction(
            ("train.eval_steps", "data.eval", "data.eval_fraction"),
            f"{train.eval_steps} without data to evaluate on",
            "held-out data",
            "set data.eval or data.eval_fraction, or remove train.eval_steps",
            yields=("train.eval_steps",),
        )


def warmup_rules(train: TrainSection, steps: int) -> Iterator[Contradiction]:
    """Yield a warm-up that is as long as the run: its only step, or its last, has no full rate.

    A recipe in epochs has as many steps as its data give, so the run asks once more when it has
    read them. A share of those is no contradiction: nobody chose their number, and the trainer
    leaves the last step out of the warm-up.

    Args:
        train: Says how the learning rate rises.
        steps: Optimizer steps of the whole run.
    """
    key = "warmup_steps" if train.warmup_steps is not None else "warmup_ratio"
    value = getattr(train, key) or 0
    if key == "warmup_ratio" and train.max_steps is None:
        return
    # As the trainer counts: a share is rounded up, so that 0.03 of one step is one step.
    warmup = train.warmup_steps or math.ceil(steps * (train.warmup_ratio or 0))
    if warmup < max(steps, 1):
        return
    length = "max_steps" if train.max_steps is not None else "num_train_epochs"
    less = f"lower train.{key}"
    if steps == 1:  # of which any warm-up takes all
        less = f"set train.{key} to null"
        if train.lr_scheduler_type == "constant_with_warmup":
            less += " and train.lr_scheduler_type to constant"
    share = f"{value}, which is {warmup}" if key == "warmup_ratio" else f"{value}"
    yield Contradiction(
        (f"train.{key}", f"train.{length}"),
        f"{share} of {steps} step{'s' if steps > 1 else ''}",
        "a warm-up that ends before the run does",
        f"{less}, or raise train.{length}",
        yields=() if train.lr_scheduler_type == "constant_with_warmup" else (f"train.{key}",),
    )


def evaluation_rules(evaluation: EvaluationSection) -> Iterator[Contradiction]:
    """Yield the settings of ``evaluation`` that nothing uses."""
    drift = evaluation.drift
    asked, compared = "evaluation.prompts", "evaluation.drift.references"
    refused, harmful = "evaluation.drift.probes", "evaluation.safety.requests"
    suites = "evaluation.suites"
    prompts = ((asked,), evaluation.prompts is not None)
    anything = ((asked, refused, compared, harmful), evaluation.wanted)
    generated = ((asked, refused, harmful), evaluation.generates)
    needs = {
        "max_prompts": prompts,
        "reasoning_effort": ((asked, suites), prompts[1] or evaluation.suites is not None),
        "max_analysis_tokens": prompts,
        "max_new_tokens": generated,
        "temperature": generated,
        "batch_size": generated,
        "at_start": anything,
        "eval_steps": anything,
        "drift.reasoning": prompts,
        "drift.max_references": ((compared,), drift.references is not None),
        "drift.max_probes": ((refused,), drift.probes is not None),
    }
    for key, (any_of, there) in needs.items():
        needed = any_of[0]
        section, name = (drift, key[6:]) if key.startswith("drift.") else (evaluation, key)
        value = getattr(section, name)
        if not there and value != type(section).model_fields[name].default:
            yield Contradiction(
                (f"evaluation.{key}", *any_of),
                f"{value} without {needed}",
                "something to evaluate",
                f"set {needed}, or remove evaluation.{key}",
                yields=(f"evaluation.{key}",),
            )
    longest, limit = evaluation.max_new_tokens, evaluation.max_analysis_tokens
    if evaluation.prompts is not None and limit is not None and limit >= longest:
        yield Contradiction(
            ("evaluation.max_analysis_tokens", "evaluation.max_new_tokens"),
            f"{limit} with answers of {longest} tokens at most",
            "less than evaluation.max_new_tokens",
            "lower evaluation.max_analysis_tokens, or raise evaluation.max_new_tokens",
            yields=("evaluation.max_analysis_tokens",),
        )


def tracking_rules(tracking: TrackingSection) -> Iterator[Contradiction]:
    """Yield the settings of ``tracking`` that nothing uses."""
    wandb, trackio = tracking.wandb != "disabled", tracking.trackio != "disabled"
    both = ("tracking.wandb and tracking.trackio are disabled", "one of them")
    alone = ("tracking.wandb is disabled", "tracking.wandb")
    offered = {both: "wandb offline or online, or trackio local", alone: "wandb offline or online"}
    for key, used, (why, switch) in (
        ("project", wandb or trackio, both),
        ("run_name", wandb or trackio or bool(tracking.report_to), both),
        ("entity", wandb, alone),
        ("group", wandb, alone),
        ("tags", wandb, alone),
    ):
        value = getattr(tracking, key)
        if value and not used:
            yield Contradiction(
                (f"tracking.{key}", "tracking.wandb", "tracking.trackio", "tracking.report_to"),
                f"{value!r} while {why}",
                offered[why, switch],
                f"set {switch}, or remove tracking.{key}",
                yields=(f"tracking.{key}",),
            )
