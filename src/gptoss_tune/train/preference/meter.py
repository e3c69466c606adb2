"""Figures of preference tuning: rewards, margins, accuracy, log-probabilities, KL, by channel.

Sums on the device, read only when something is logged, and summed over ranks before that. The
distance to the reference is estimated at the data's tokens by half the square of the log-ratio:
never negative, 0 where both agree, and the KL divergence to second order, either way round. Those
tokens are samples of neither model; for such, an estimator with the exponential of the log-ratio
(Schulman's k3) is ruled by the one token that has become least likely: 850 nats at a margin of 6 on
a tiny model. ``evaluation.drift`` computes the divergence itself.

See Schulman, Approximating KL Divergence, 2020 (k2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gptoss_tune.harmony.conversation import CHANNEL_NAMES, CHANNELS
from gptoss_tune.train.preference.answers import Answers, answers_of, picked
from gptoss_tune.train.preference.objectives import PreferenceMethod, reward_scale

_SIDES = ("chosen", "rejected")
_NUMBERS = {name: CHANNEL_NAMES.index(name) for name in CHANNELS}


class PreferenceMeter:
    """Running sums of what a line of metrics shows.

    Attributes:
        sums: ``[F]`` fp64, by the places of ``FIELDS``.
    """

    FIELDS = (
        *("loss", "weight", "units", "won"),
        *(f"{what}_{side}" for what in ("reward", "answers", "logp", "tokens", "drift")
          for side in _SIDES),
        *(f"margin_{name}" for name in CHANNELS),
        *(f"{what}_{name}" for what in ("kl", "tokens") for name in CHANNEL_NAMES),
    )  # fmt: skip

    def __init__(self, section: PreferenceMethod, *, reference: bool, device: torch.device) -> None:
        """Start at zero.

        Args:
            section: The recipe's method.
            reference: Whether batches hold log-probabilities of a reference.
            device: Of the sums.
        """
        self._section, self._reference = section, reference
        self._paired = section.name != "kto"
        self.sums = torch.zeros(len(self.FIELDS), dtype=torch.float64, device=device)

    def add(
        self, token_losses: Tensor, loss: Tensor, batch: dict[str, Any], channels: Tensor
    ) -> None:
        """Count a micro-batch.

        Args:
            token_losses: ``[B, S]`` fp32, of the counted targets.
            loss: Scalar, the weighted sum of its objective.
            batch: Of ``answers.take``.
            channels: ``[B, S]`` int64.
        """
        with torch.no_grad():
            answers = answers_of(token_losses.detach(), batch)
            if not len(answers.logps):
                return
            found = {
                "loss": loss.detach().double(),
                "weight": batch["sample_weights"].double().sum(),
                "units": torch.full_like(loss, len(batch["sample_weights"]), dtype=torch.float64),
                **self._by_side(answers),
                **self._by_channel(answers, token_losses.detach(), batch, channels),
            }
            zero = torch.zeros_like(found["loss"])
            self.sums += torch.stack([found.get(name, zero) for name in self.FIELDS])

    def won(self, answers: Answers) -> Tensor | None:
        """Return whether each pair's chosen answer has the higher reward; ``None``: no pairs."""
        if not self._paired:
            return None
        reward = reward_scale(self._section, answers) * (answers.logps - answers.reference)
        chosen, rejected = reward.view(-1, 2).unbind(1)
        return chosen > rejected

    def _by_side(self, answers: Answers) -> dict[str, Tensor]:
        ratio = answers.logps - answers.reference
        reward = reward_scale(self._section, answers) * ratio
        found: dict[str, Tensor] = {}
        for side, mask in zip(_SIDES, (answers.signs > 0, answers.signs < 0), strict=True):
            own = mask.double()
            for what, values in (
                ("reward", reward),
                ("answers", torch.ones_like(reward)),
                ("logp", answers.logps),
                ("tokens", answers.tokens),
                ("drift", ratio),
            ):
                found[f"{what}_{side}"] = (values * own).sum()
        if self._paired:
            chosen, rejected = reward.view(-1, 2).unbind(1)
            found["won"] = (chosen > rejected).double().sum()
        return found

    def _by_channel(
        self, answers: Answers, token_losses: Tensor, batch: dict[str, Any], channels: Tensor
    ) -> dict[str, Tensor]:
        positions = batch["positions"]
        ratio = -picked(token_losses, positions) - picked(batch["reference"], positions)
        kind = channels.flatten()[positions.clamp(min=0)].masked_fill(positions < 0, -1)
        weighted = ratio * (answers.signs * reward_scale(self._section, answers))[:, None]
        distance = ratio.square() / 2
        found: dict[str, Tensor] = {}
        for number, name in enumerate(CHANNEL_NAMES):
            there = kind == number
            found[f"tokens_{name}"] = there.double().sum()
            found[f"kl_{name}"] = distance.masked_fill(~there, 0.0).sum()
            if name in _NUMBERS and self._paired:
                found[f"margin_{name}"] = weighted.masked_fill(~there, 0.0).sum()
        return found

    def read(self, reduced: Tensor | None = None) -> dict[str, float]:
        """Return the figures since the last ``reset``; what nothing was counted for is absent.

        Args:
            reduced: ``sums`` of all ranks; ``None``: this rank alone.
        """
        values = (self.sums if reduced is None else reduced).tolist()
        got = dict(zip(self.FIELDS, values, strict=True))
        if not got["units"]:
            return {}
        found = {"pairs" if self._paired else "answers": got["units"]}
        if got["weight"]:
            found["mean_loss"] = got["loss"] / got["weight"]
        for side in _SIDES:
            if got[f"answers_{side}"]:
                found[f"reward_{side}"] = got[f"reward_{side}"] / got[f"answers_{side}"]
                found[f"logp_{side}"] = got[f"logp_{side}"] / got[f"tokens_{side}"]
                if self._reference:
                    found[f"logp_drift_{side}"] = got[f"drift_{side}"] / got[f"tokens_{side}"]
        if all(f"reward_{side}" in found for side in _SIDES):
            found["reward_margin"] = found["reward_chosen"] - found["reward_rejected"]
        if self._paired:
            found["reward_accuracy"] = got["won"] / got["units"]
            for name in CHANNELS:
                if got[f"tokens_{name}"]:
                    found[f"reward_margin_{name}"] = got[f"margin_{name}"] / got["units"]
        return found | (self._distances(got) if self._reference else {})

    def _distances(self, got: dict[str, float]) -> dict[str, float]:
        tokens = sum(got[f"tokens_{name}"] for name in CHANNEL_NAMES)
        found = (
            {"reference_kl": sum(got[f"kl_{name}"] for name in CHANNEL_NAMES) / tokens}
            if tokens
            else {}
        )
        for name in CHANNELS:
            if got[f"tokens_{name}"]:
                found[f"reference_kl_{name}"] = got[f"kl_{name}"] / got[f"tokens_{name}"]
        return found

    def reset(self) -> None:
        """Start again at zero."""
        self.sums.zero_()
