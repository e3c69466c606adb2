"""Settings far out of the usual range: sound, and nearly always a slip.

A recipe's schema refuses what cannot be meant. A learning rate of 1 can be computed, and ruins
every adapter within ten steps; somebody may want to see that. So it is told, with what is usual,
and nothing is refused. The ranges are wide: no shipped recipe is outside of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gptoss_tune.errors import GptossTuneError
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.recipe.contradictions.schedule import never_decays
from gptoss_tune.recipe.data_schema import DataSection
from gptoss_tune.recipe.schema import LoraSection, MethodSection, ModelSection, TrainSection

_RATES = (1e-7, 2e-2)
_RATES_OF_PREFERENCES = (1e-8, 2e-3)
_SCALINGS = (0.05, 16.0)
_MOST_EPOCHS, _MOST_ROWS, _LARGEST_RANK = 50, 4096, 256


def unusual_settings(
    model: ModelSection,
    lora: LoraSection,
    method: MethodSection,
    data: DataSection,
    train: TrainSection,
) -> list[str]:
    """Return a sentence for each setting that is far from what is usual: what it is, what is.

    Args:
        model: Names the base, whose ``config.json`` is read where it lies here.
        lora: Ranks and scalings.
        method: Preferences are learnt at lower rates.
        data: The length of a row.
        train: Rates, epochs, batches.
    """
    return [
        f"{key} is {value}, {expected}"
        for key, value, expected in (
            *_of_rates(method, train),
            *_of_lora(lora),
            *_of_length(train),
            *_of_positions(model, data),
        )
    ]


def _of_rates(method: MethodSection, train: TrainSection) -> Iterator[tuple[str, str, str]]:
    rate = train.learning_rate
    lowest, highest = _RATES if method.name == "sft" else _RATES_OF_PREFERENCES
    usual = "1e-5 to 1e-3 with LoRA" if method.name == "sft" else "1e-6 to 1e-4 on preferences"
    if rate > highest:
        yield "train.learning_rate", f"{rate:g}", f"which destroys what was trained; usual: {usual}"
    elif rate < lowest:
        yield "train.learning_rate", f"{rate:g}", f"which hardly moves an adapter; usual: {usual}"
    if train.warmup_ratio is not None and train.warmup_ratio > 0.5:
        part = f"{train.warmup_ratio:g}"
        yield "train.warmup_ratio", part, "over half of the run; usual: 0 to 0.1"
    if reason := never_decays(train):
        expected = "and the last steps are as large as the first; usual: a schedule that decays"
        yield "train.lr_scheduler_type", train.lr_scheduler_type, f"{reason}, {expected}"
    if train.weight_decay >= 1:
        told = f"{train.weight_decay:g}"
        yield "train.weight_decay", told, "which draws the adapters to zero; usual: 0 to 0.1"
    if train.adam_epsilon > 1e-4:
        told = f"{train.adam_epsilon:g}"
        yield "train.adam_epsilon", told, "larger than most gradients; usual: 1e-8"
    if train.max_grad_norm < 1e-3:
        told = f"{train.max_grad_norm:g}"
        yield "train.max_grad_norm", told, "which cuts nearly every gradient; usual: 0.3 to 1"


def _of_lora(lora: LoraSection) -> Iterator[tuple[str, str, str]]:
    scaling = lora.alpha / lora.rank
    if not _SCALINGS[0] <= scaling <= _SCALINGS[1]:
        told = f"{lora.alpha:g} with lora.rank {lora.rank}"
        yield "lora.alpha", told, f"a scaling of {scaling:g}; usual: alpha of 1 to 2 times the rank"
    if lora.expert_alpha is not None:
        rank = lora.expert_rank or lora.rank
        scaling = lora.expert_alpha / rank
        if not _SCALINGS[0] <= scaling <= _SCALINGS[1]:
            told = f"{lora.expert_alpha:g} with a rank of {rank} on the experts"
            expected = f"a scaling of {scaling:g}; usual: 1 to 2 times the rank"
            yield "lora.expert_alpha", told, expected
    if lora.rank > _LARGEST_RANK:
        yield "lora.rank", str(lora.rank), "an adapter of many gigabytes; usual: 4 to 64"
    if lora.expert_rank is not None and lora.expert_rank > _LARGEST_RANK:
        expected = "for each of all experts; usual: 1 to 16"
        yield "lora.expert_rank", str(lora.expert_rank), expected


def _of_length(train: TrainSection) -> Iterator[tuple[str, str, str]]:
    epochs, steps = train.num_train_epochs, train.max_steps
    if epochs is not None and epochs > _MOST_EPOCHS:
        yield "train.num_train_epochs", f"{epochs:g}", "which learns rows by heart; usual: 1 to 5"
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
    if rows > _MOST_ROWS:
        told = f"{train.gradient_accumulation_steps}"
        expected = f"{rows:,} rows a step and process; usual: 8 to 256 in all"
        yield "train.gradient_accumulation_steps", told, expected
    for key in ("save_steps", "eval_steps"):
        every = getattr(train, key)
        if every is not None and steps is not None and every > steps:
            what = "saved" if key == "save_steps" else "evaluated"
            expected = f"and the run has {steps:,} steps: nothing is {what} before its end"
            yield f"train.{key}", f"{every:,}", expected


def _of_positions(model: ModelSection, data: DataSection) -> Iterator[tuple[str, str, str]]:
    try:
        config = read_object(Path(model.name_or_path).expanduser() / "config.json")
    except (GptossTuneError, OSError, RuntimeError):
        return  # on the Hub, or what is wrong with it is said elsewhere
    most = config.get("max_position_embeddings")
    if isinstance(most, int) and data.max_length > most:
        expected = f"longer than the {most:,} positions that the base was trained for"
        yield "data.max_length", f"{data.max_length:,}", expected
