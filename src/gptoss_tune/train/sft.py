"""Supervised fine-tuning on TRL's ``SFTTrainer``: a weighted loss for each token, by channel.

The whole method is here: its loss, what it shows of it, and its configuration. What it shares with
every other method is in ``trainer.py``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.train.loss import LossFunction, LossMeter, weighted_token_loss
from gptoss_tune.train.trainer import MethodTrainer
from gptoss_tune.train.trl_config import trainer_arguments


class WeightedSftTrainer(MethodTrainer, SFTTrainer):
    """``SFTTrainer`` whose loss weighs each token, averaged over the whole optimizer step."""

    def __init__(self, *args: Any, loss: LossFunction = weighted_token_loss, **kwargs: Any) -> None:
        """Take what ``MethodTrainer`` takes; the model is a ``GptOssForTuning`` with adapters.

        Args:
            args: As there.
            loss: Of a micro-batch.
            kwargs: As there.
        """
        super().__init__(*args, **kwargs)
        self._loss = loss
        self._meters = {mode: LossMeter(self.accelerator.device) for mode in ("train", "eval")}

    def loss_of(
        self, model: torch.nn.Module, inputs: dict[str, Any], batch_only: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """Return the weighted sum of the tokens' losses, and what the model gave."""
        outputs = self._loss(model, inputs)
        meter = self._meters["train" if model.training else "eval"]
        meter.add(outputs.token_losses, inputs["loss_weights"], batch_only["channels"])
        if self.by_source is not None and not model.training:
            weights, sources = inputs["loss_weights"], batch_only["sources"]
            self.by_source.add(outputs.token_losses, weights, sources)
        return outputs.loss_sum, outputs

    def read_losses(self, mode: Literal["train", "eval"]) -> dict[str, float]:
        """Return the mean losses by channel since the last reset, of all ranks."""
        meter = self._meters[mode]
        reduced = self.accelerator.reduce(meter.state(), reduction="sum")
        return meter.read(reduced)  # pyright: ignore[reportArgumentType]

    def reset_losses(self, mode: Literal["train", "eval"]) -> None:
        """Start averaging anew."""
        self._meters[mode].reset()


def sft_config(train: TrainSection, *, held_out: bool, dtype: str) -> SFTConfig:
    """Return the trainer's arguments; rows come rendered, and our collator pads them.

    Args:
        train: What is optimised, and how long.
        held_out: There are rows to evaluate on.
        dtype: ``model.dtype``.

    Raises:
        MachineError: An optimizer needs a GPU, and there is none.
    """
    return SFTConfig(
        **trainer_arguments(train, held_out=held_out, dtype=dtype),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        router_aux_loss_coef=0.0,
    )
