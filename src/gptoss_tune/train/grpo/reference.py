"""Log-probabilities of a step's tokens under the model as it was: the reference, or before updates.

The reference is the base (the model with its adapters left out) or the adapter that training starts
from, of which a copy is kept and put in the place of the trained one while the reference reads. No
second model is held, and no state of the model is left changed.

These passes have no gradient and no row function, and every rank makes its own: the recipe's rules
refuse a model that is spread over ranks.

B rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_tune.evaluate.generate import without_adapters
from gptoss_tune.train.data.collator import BATCH_ONLY
from gptoss_tune.train.grpo.loss import take


class StartAdapter:
    """The adapter that training starts from, kept beside the one that is trained."""

    def __init__(self, model: nn.Module) -> None:
        """Keep a copy of the trained parameters of ``model``, as built and not yet resumed."""
        self._factors = [
            (factor, factor.detach().clone())
            for factor in model.parameters()
            if factor.requires_grad
        ]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Let the model have the start's values; its own come back, bit for bit."""
        own = [factor.detach().clone() for factor, _ in self._factors]
        try:
            self._write([start for _, start in self._factors])
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for (factor, _), value in zip(self._factors, values, strict=True):
            factor.copy_(value)


@torch.no_grad()
def log_probabilities(model: nn.Module, batch: dict[str, Any], *, temperature: float) -> Tensor:
    """Return the log-probability of each trained target, ``[B, S]`` fp32, 0 where none is trained.

    With the model as it is and without dropout. What it is computed with is the same as in the pass
    that trains: the ratio of the first update is 1 to the bit where there is no dropout.

    Args:
        model: Of ``GptOssForTuning``; its mode is left as it was.
        batch: Of the collator, on the model's device; what the model does not take is left out.
        temperature: Of the distribution that the tokens are drawn from.
    """
    forward, _ = take(batch)
    forward = {name: value for name, value in forward.items() if name not in BATCH_ONLY}
    training = model.training
    model.eval()
    try:
        return -model(**forward, use_cache=False, temperature=temperature).token_losses
    finally:
        model.train(training)


def reference_log_probabilities(
    model: nn.Module,
    batch: dict[str, Any],
    *,
    temperature: float,
    start: StartAdapter | None,
) -> Tensor:
    """Return ``log_probabilities`` of the reference, which chooses its experts itself.

    Args:
        model: As there.
        batch: As there.
        temperature: As there.
        start: The adapter that training starts from; ``None``: the reference is the base.
    """
    own = {name: value for name, value in batch.items() if name != "choices"}
    with without_adapters(model) if start is None else start.acting():
        return log_probabilities(model, own, temperature=temperature)
