"""The loss of an optimizer step, averaged over everything that is trained in it.

Micro-batches and ranks hold different numbers of trained tokens. Averaging each on its own and then
averaging the averages, as is usual, weights a token by how little company it had; here every
micro-batch contributes its weighted *sum* over the weight of the whole step: all micro-batches, all
ranks.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptoss_tune.harmony.conversation import CHANNEL_NAMES


class LossOutputs(Protocol):
    """What a loss of a micro-batch gives.

    Attributes:
        loss_sum: Scalar fp32 with a gradient, summed and not averaged: the trainer divides by the
            loss weight of the whole optimizer step.
        token_losses: ``[B, S]`` fp32 without gradient, for the figures by channel; 0 where the
            weight is 0.
    """

    @property
    def loss_sum(self) -> Tensor: ...  # noqa: D102

    @property
    def token_losses(self) -> Tensor: ...  # noqa: D102


class LossFunction(Protocol):
    """The loss of a micro-batch: from the model as the run wraps it, and the collator's batch."""

    def __call__(self, model: nn.Module, inputs: dict[str, Any], /) -> LossOutputs:
        """Return the loss of ``inputs``.

        Args:
            model: A ``GptOssForTuning`` with adapters, in DDP or FSDP2 where there are several
                processes; called once, so that they meet in its backward pass.
            inputs: ``input_ids``, ``shift_labels``, ``loss_weights`` ``[B, S]`` and what else the
                model's forward takes (``train.data.collator``); where ranks share rows, of this
                rank's tokens alone (``train.data.row_shards``).
        """
        ...


def weighted_token_loss(model: nn.Module, inputs: dict[str, Any], /) -> LossOutputs:
    """Return ``sum(loss_weights * -log p(shift_labels))``: the loss of supervised fine-tuning."""
    return model(**inputs, use_cache=False)


class LossMeter:
    """Running loss sums by channel, kept on the device and read only when something is logged.

    Attributes:
        totals: ``[2, 5]`` fp64 by channel: the summed losses, and the number of tokens they are of.
        weighted: ``[2]`` fp64: the weighted loss sum, and the summed weights.
    """

    def __init__(self, device: torch.device) -> None:
        """Start at zero on ``device``."""
        self.totals = torch.zeros(2, len(CHANNEL_NAMES), dtype=torch.float64, device=device)
        self.weighted = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, token_losses: Tensor, loss_weights: Tensor, channels: Tensor) -> None:
        """Count one micro-batch; all three ``[B, S]``, the losses without gradient."""
        losses = token_losses.detach().double().flatten()
        weights = loss_weights.double().flatten()
        trained = (weights != 0).double()
        index = channels.flatten()
        self.totals[0].index_add_(0, index, losses * trained)
        self.totals[1].index_add_(0, index, trained)
        self.weighted += torch.stack(((losses * weights).sum(), weights.sum()))

    def read(self, reduced: Tensor | None = None) -> dict[str, float]:
        """Return the mean losses and token counts since the last ``reset``.

        Args:
            reduced: The meter's ``state()`` summed over all ranks; ``None``: this rank alone.
        """
        state = (self.state() if reduced is None else reduced).cpu()
        kinds = len(CHANNEL_NAMES)
        sums, counts, weighted = state[:kinds], state[kinds : 2 * kinds], state[2 * kinds :]
        logs = {
            f"loss_{name}": float(total / count)
            for name, total, count in zip(CHANNEL_NAMES, sums, counts, strict=True)
            if count > 0
        }
        logs["trained_tokens"] = float(counts.sum())
        if weighted[1] > 0:
            logs["mean_loss"] = float(weighted[0] / weighted[1])
        return logs

    def reset(self) -> None:
        """Start again at zero."""
        self.totals.zero_()
        self.weighted.zero_()

    def state(self) -> Tensor:
        """Return ``[12]`` fp64, which may be summed over ranks."""
        return torch.cat((self.totals.flatten(), self.weighted))
