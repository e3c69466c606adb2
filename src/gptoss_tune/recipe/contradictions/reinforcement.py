"""Rules of ``method: grpo``: settings that an episode has no use for, and what cannot be played."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction
from gptoss_tune.recipe.schema.grpo import GrpoSection

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSection
    from gptoss_tune.recipe.schema import (
        DistributedSection,
        LoraSection,
        MethodSection,
        TrainSection,
    )


def reinforcement_rules(
    method: MethodSection,
    lora: LoraSection,
    data: DataSection,
    train: TrainSection,
    distributed: DistributedSection,
) -> Iterator[Contradiction]:
    """Yield what contradicts itself in a recipe that learns from rewards."""
    if not isinstance(method, GrpoSection):
        return
    yield from _idle_rules(method)
    yield from _length_rules(method, data)
    yield from _data_rules(data)
    yield from _train_rules(lora, train, distributed)


def _idle_rules(method: GrpoSection) -> Iterator[Contradiction]:
    """Yield the settings of ``method`` that nothing uses."""
    own = GrpoSection.model_fields
    needs = {
        "max_resampling": ("dynamic_sampling", method.dynamic_sampling, "true"),
        "overlong_buffer": ("overlong", method.overlong == "shaped", "shaped"),
        "reference": ("kl_weight", method.kl_weight > 0, "a weight above 0"),
        "importance_cap": ("importance", method.importance != "none", "truncate or mask"),
    }
    for name, (other, used, wanted) in needs.items():
        value = getattr(method, name)
        if not used and value != own[name].default:
            yield Contradiction(
                (f"method.{name}", f"method.{other}"),
                f"{value} with method.{other} {_spelled(getattr(method, other))}",
                f"{wanted} as method.{other}",
                f"remove method.{name}, or set method.{other}",
                yields=(f"method.{name}",),
            )
    # One update on episodes that the same weights drew: every ratio is 1, and no bound is met.
    if method.updates == 1:
        for name in ("objective", "clip_low", "clip_high"):
            value = getattr(method, name)
            if value != own[name].default:
                yield Contradiction(
                    (f"method.{name}", "method.updates"),
                    f"{value} with method.updates 1",
                    "2 updates or more: in the first one no ratio differs from 1",
                    f"remove method.{name}, or raise method.updates",
                    yields=(f"method.{name}",),
                )
    elif method.objective == "cispo" and method.clip_low != own["clip_low"].default:
        yield Contradiction(
            ("method.clip_low", "method.objective"),
            f"{method.clip_low} with method.objective cispo",
            "clip as method.objective: cispo bounds the ratio above alone",
            "remove method.clip_low, or set method.objective to clip",
            yields=("method.clip_low",),
        )


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _length_rules(method: GrpoSection, data: DataSection) -> Iterator[Contradiction]:
    longest = method.max_new_tokens
    if longest >= data.max_length:
        yield Contradiction(
            ("method.max_new_tokens", "data.max_length"),
            f"{longest} with data.max_length {data.max_length}",
            "less: prompt, answers and results of tools have to fit into data.max_length",
            "lower method.max_new_tokens, or raise data.max_length",
        )
    if method.overlong == "shaped" and method.overlong_buffer > longest:
        yield Contradiction(
            ("method.overlong_buffer", "method.max_new_tokens"),
            f"{method.overlong_buffer} with method.max_new_tokens {longest}",
            "as many tokens as an answer may have, or fewer",
            "lower method.overlong_buffer",
            yields=("method.overlong_buffer",),
        )


def _data_rules(data: DataSection) -> Iterator[Contradiction]:
    """Yield settings of answers: of a row its prompt alone is read."""
    for key, value, default, why in (
        ("packing", data.packing, False, "episodes always share rows"),
        ("turns", data.turns, "all", "all that the model draws is trained"),
        ("nothing_to_train", data.nothing_to_train, "skip", "a prompt has nothing to train"),
        ("curriculum", data.curriculum, "none", "prompts are in an order drawn by the seed"),
        ("too_long", data.too_long, None, ""),
    ):
        if key == "too_long":
            if value == "truncate":
                yield Contradiction(
                    ("data.too_long", "method.name"),
                    "truncate with method.name grpo",
                    "drop or error: a prompt is asked whole",
                    "set data.too_long to drop",
                )
        elif value != default:
            yield Contradiction(
                (f"data.{key}", "method.name"),
                f"{_spelled(value)} with method.name grpo",
                f"{_spelled(default)}: {why}",
                f"remove data.{key}",
                yields=(f"data.{key}",),
            )
    for channel, weight in data.channel_weights.model_dump().items():
        if weight != 1:
            yield Contradiction(
                (f"data.channel_weights.{channel}", "method.name"),
                f"{weight:g} with method.name grpo",
                "1: a token weighs what its episode earned, in every channel",
                "remove it",
            )


def _train_rules(
    lora: LoraSection, train: TrainSection, distributed: DistributedSection
) -> Iterator[Contradiction]:
    if train.gradient_accumulation_steps != 1:
        yield Contradiction(
            ("train.gradient_accumulation_steps", "method.name"),
            f"{train.gradient_accumulation_steps} with method.name grpo",
            "1: a step goes through as many micro-batches as its episodes fill",
            "remove it, and set method.prompts_per_step and method.group_size",
            yields=("train.gradient_accumulation_steps",),
        )
    if train.auto_find_batch_size:
        yield Contradiction(
            ("train.auto_find_batch_size", "method.name"),
            "true with method.name grpo",
            "false: there are no rows to try a step with before the first episodes are over",
            "remove it, and set train.per_device_train_batch_size by `gptoss-tune plan`",
            yields=("train.auto_find_batch_size",),
        )
    if lora.experts != "all":
        yield Contradiction(
            ("lora.experts", "method.name"),
            "chosen experts with method.name grpo",
            "all: experts are chosen by the answers of the data, and here there are none",
            "remove lora.experts",
        )
    if distributed.strategy == "fsdp2":
        yield Contradiction(
            ("distributed.strategy", "method.name"),
            "fsdp2 with method.name grpo",
            "ddp: each process plays episodes of its own, and a model spread over all of them "
            "answers only where all ask at the same time",
            "remove distributed.strategy; packed experts of gpt-oss-120b fit one GPU of 80 GB",
        )
