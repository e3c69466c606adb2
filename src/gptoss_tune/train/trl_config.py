"""The recipe's ``train`` section in the words of a Transformers trainer, and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, TrainingArguments

from gptoss_tune.errors import MachineError
from gptoss_tune.harmony.vocabulary import NAMED_SPECIAL_TOKENS
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.recipe.schema.schedule import schedule_arguments

_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"  # transformers 5.22 and before
)


def trainer_arguments(train: TrainSection, *, held_out: bool, dtype: str) -> dict[str, Any]:
    """Return the arguments that any method's trainer takes.

    Mixed precision is on where the compute dtype is bf16, so that the fp32 adapters multiply in
    bf16; with dtype float32 everything is fp32.

    Args:
        train: What is optimised, and how long.
        held_out: There are rows to evaluate on.
        dtype: ``model.dtype``.

    Raises:
        MachineError: An optimizer needs a GPU, and there is none.
    """
    if train.optim == "paged_adamw_8bit" and not torch.cuda.is_available():
        raise MachineError(
            "train.optim: paged_adamw_8bit pages optimizer state between GPU and CPU, and there is "
            "no GPU here; use adamw or adamw_8bit"
        )
    return {
        "output_dir": train.output_dir,
        "max_steps": train.max_steps or -1,
        "num_train_epochs": train.num_train_epochs or 1.0,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "per_device_eval_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "lr_scheduler_kwargs": schedule_arguments(train.lr_scheduler_kwargs),
        # A number below 1 is a share of all steps, which is what transformers 5 calls the ratio.
        "warmup_steps": train.warmup_steps or train.warmup_ratio or 0,
        "optim": _OPTIMIZERS[train.optim],
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_epsilon": train.adam_epsilon,
        "max_grad_norm": train.max_grad_norm,
        # Checkpointing is switched on by model.memory, which keeps the router's choice.
        _CHECKPOINTING: False,
        "bf16": dtype == "bfloat16",
        "logging_strategy": "steps",
        "logging_steps": train.logging_steps,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if held_out and train.eval_steps else "no",
        "eval_steps": train.eval_steps,
        "save_strategy": "steps" if train.save_steps else "no",
        "save_steps": train.save_steps or 500,
        "save_total_limit": train.save_total_limit,
        "seed": train.seed,
        "data_seed": train.seed,
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "average_tokens_across_devices": True,
        "report_to": "none",
        # Else other ranks than the first warn of what the first one is silent about, such as a
        # checkpoint of another micro-batch, which keeps the rows of a step.
        "log_level_replica": "passive",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
    }


def training_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows gpt-oss's special tokens by their ids, and no other word."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(NAMED_SPECIAL_TOKENS)),
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
    )
