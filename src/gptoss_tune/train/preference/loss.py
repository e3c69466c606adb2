"""A preference loss in one forward pass: log-probabilities first, then signed weights.

The gradient of any objective of this room is ``sum_t c_t dlogp_t`` with one number ``c`` for each
answer. So the model runs once; its final states go through the head twice, the first time without
a gradient for the log-probabilities, the second time into the fused linear cross-entropy with
``-c`` as the weight of each counted token. Logits never exist, and the price of a second forward
pass of the whole model (rejected) is one product with the head for the counted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_tune.train.preference.answers import Answers, answers_of, spread, take
from gptoss_tune.train.preference.objectives import PreferenceMethod, objective


@dataclass(frozen=True)
class PreferenceOutputs:
    """What a preference loss gives; see ``train.loss.LossOutputs``.

    Attributes:
        loss_sum: Scalar fp32: the pairs' losses, summed by their weights.
        token_losses: ``[B, S]`` fp32 without gradient, of the counted tokens.
    """

    loss_sum: Tensor
    token_losses: Tensor


@dataclass
class PreferenceLoss:
    """The loss of a micro-batch of answers.

    Attributes:
        section: The recipe's method.
        kl: KTO's z0 for the step at hand, a scalar fp64; the trainer sets it.
    """

    section: PreferenceMethod
    kl: Tensor | None = None

    def __call__(self, model: nn.Module, inputs: dict[str, Any], /) -> PreferenceOutputs:
        """Return the weighted sum of the objective over the batch's pairs or answers.

        Args:
            model: As ``LossFunction`` has it; called once.
            inputs: Of ``PreferenceCollator``.
        """
        forward, batch = take(inputs)
        found: list[Tensor] = []

        def reweigh(token_losses: Tensor) -> Tensor:
            value, weights = self._value_and_weights(token_losses, batch)
            found.append(value)
            return weights

        if not torch.is_grad_enabled():
            losses = model(**forward, use_cache=False).token_losses
            return PreferenceOutputs(self._value_and_weights(losses, batch)[0].float(), losses)
        outputs = model(**forward, use_cache=False, reweigh=reweigh)
        # The pass has the gradient of the loss, and this is its value.
        passed = outputs.loss_sum
        loss_sum = passed + (found[0].to(passed.dtype) - passed).detach()
        return PreferenceOutputs(loss_sum, outputs.token_losses)

    def each(self, answers: Answers) -> Tensor:
        """Return the objective of each pair or answer, ``[U]`` fp64, weights apart."""
        kl = torch.zeros_like(answers.logps[0]) if self.kl is None else self.kl
        return objective(self.section, answers, kl)

    def _value_and_weights(
        self, token_losses: Tensor, batch: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return the summed loss, scalar fp64, and the weight of each token ``[B, S]`` fp32."""
        answers = answers_of(token_losses, batch)
        if not len(answers.logps):  # a filler
            return answers.logps.sum(), torch.zeros_like(token_losses)
        with torch.enable_grad():
            logps = answers.logps.detach().requires_grad_()
            losses = self.each(answers.with_logps(logps))
            total = (losses * batch["sample_weights"].double()).sum()
            (slope,) = torch.autograd.grad(total, logps)
        # The pass sums weight times -logp.
        return total.detach(), spread(-slope, batch["branches"])
