"""The loss of sampled answers, in one pass through the model and one through its head.

The gradient of any objective here is ``sum_t c_t dlogp_t`` with a number ``c_t`` that depends on
the token's own log-probability alone. That is known between the losses of a chunk of rows and their
gradient, so the weights are asked for there (``row_weights``): no second pass, and no logits. The
entropies are summed over the same tiles.

B rows, S tokens of a row; position s is about token s + 1, as in ``shift_labels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.train.grpo.meter import GrpoFigures, figures_of
from gptoss_tune.train.grpo.objectives import TokenFacts, token_terms

GRPO_KEYS = ("advantages", "sampler_logps", "old_logps", "reference_logps")
"""What a batch holds for the objective, and the model does not take."""


@dataclass(frozen=True)
class GrpoOutputs:
    """What the loss gives; see ``train.loss.LossOutputs``.

    Attributes:
        loss_sum: Scalar fp32: the tokens' objectives, summed by their weights.
        token_losses: ``[B, S]`` fp32 without gradient, ``-logp`` of the trained tokens.
        entropies: ``[B, S]`` fp32, of the distributions that they are drawn from.
        figures: For ``GrpoMeter``.
    """

    loss_sum: Tensor
    token_losses: Tensor
    entropies: Tensor
    figures: GrpoFigures


def take(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model's part of a batch, and the part of its objective."""
    model = {name: value for name, value in inputs.items() if name not in GRPO_KEYS}
    return model, {name: inputs[name] for name in GRPO_KEYS if name in inputs}


@dataclass(frozen=True)
class GrpoLoss:
    """The loss of a micro-batch of sampled answers.

    Attributes:
        section: The recipe's method.
    """

    section: GrpoSection

    def __call__(self, model: nn.Module, inputs: dict[str, Any], /) -> GrpoOutputs:
        """Return the weighted sum of the objective over the batch's trained tokens.

        Args:
            model: As ``LossFunction`` has it; called once.
            inputs: Of the collator; ``loss_weights`` have the step's mean in them
                (``advantages.token_weights``). ``[B, S]`` fp32 each, read at trained tokens alone:
                ``advantages``; ``sampler_logps``; with several updates ``old_logps``; with a
                ``kl_weight`` ``reference_logps``.

        Raises:
            ValueError: One of these is missing.
        """
        forward, columns = take(inputs)
        facts = self._facts(columns)
        weights = forward["loss_weights"].flatten()

        def row_weights(losses: Tensor, rows: Tensor) -> Tensor:
            # The pass sums weight times -logp.
            return -weights[rows] * token_terms(self.section, -losses, facts.at(rows)).slopes

        outputs = model(
            **forward,
            use_cache=False,
            row_weights=row_weights if torch.is_grad_enabled() else None,
            temperature=self.section.temperature,
            with_entropies=True,
        )
        # Labels that are ignored have no loss, whatever weight stands beside them.
        trained = (weights != 0) & (forward["shift_labels"].flatten() >= 0)
        logps = -outputs.token_losses.flatten()
        terms = token_terms(self.section, logps, facts)
        value = torch.where(trained, weights.double() * terms.losses, 0.0).sum()
        # The pass has the gradient of the loss, and this is its value.
        passed = outputs.loss_sum
        loss_sum = passed + (value.to(passed.dtype) - passed).detach()
        figures = figures_of(terms, outputs.entropies.flatten(), trained)
        return GrpoOutputs(loss_sum, outputs.token_losses, outputs.entropies, figures)

    def _facts(self, columns: dict[str, Any]) -> TokenFacts:
        """Return the flat columns that the method reads; what others there are is left alone."""
        several, held = self.section.updates > 1, self.section.kl_weight > 0
        read = ["advantages", "sampler_logps"]
        read += ["old_logps"] * several + ["reference_logps"] * held
        missing = [name for name in read if name not in columns]
        if missing:
            raise ValueError(
                f"a batch of grpo with updates {self.section.updates} and kl_weight "
                f"{self.section.kl_weight:g} lacks {', '.join(missing)}; it has {sorted(columns)}"
            )
        found = {name: columns[name].flatten() for name in read}
        return TokenFacts(
            found["advantages"],
            found["sampler_logps"],
            found.get("old_logps"),
            found.get("reference_logps"),
        )
