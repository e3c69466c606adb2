"""gpt-oss with a training forward that returns losses instead of logits.

The released vocabulary has 201,088 entries, so logits of 4,096 tokens are 1.5 GiB and their
cross-entropy peaks at eight times that. The training forward therefore ends in the hidden states
and hands them, with ``lm_head``, to the fused linear cross-entropy. It is a subclass, so the losses
come out of the same ``model(...)`` call that DDP and FSDP wrap; so does the divergence from another
state of the model, for the same reason. Without either the class is plain ``GptOssForCausalLM``:
generation and evaluation of logits are untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from gptoss_kernels import PackedWeight, linear_cross_entropy, packed_linear
from gptoss_kernels.cross_entropy_rows import RowWeights
from torch import Tensor
from torch.nn import functional
from transformers import GptOssForCausalLM
from transformers.utils.generic import ModelOutput

from gptoss_tune.model.packed.layers import head_weight
from gptoss_tune.model.routing import replaying


@dataclass
class TokenLossOutput(ModelOutput):
    """What a training forward returns.

    Attributes:
        loss_sum: Scalar fp32, the sum of ``loss_weights * token_losses`` over the micro-batch; the
            caller divides by the weight of the whole optimizer step.
        token_losses: ``[B, S]`` fp32 without gradient, 0 where the weight is 0.
        entropies: ``[B, S]`` fp32 of the next-token distributions, in nats, 0 where the weight is
            0; ``None`` unless asked for.
    """

    loss_sum: Tensor | None = None
    token_losses: Tensor | None = None
    entropies: Tensor | None = None


@dataclass(frozen=True)
class _Targets:
    """What of ``GptOssForTuning.forward`` the losses are computed from, with its names."""

    shift_labels: Tensor
    loss_weights: Tensor
    selected_rows: int | None
    temperature: float
    with_entropies: bool


class GptOssForTuning(GptOssForCausalLM):
    """``GptOssForCausalLM`` that answers targets and loss weights with losses.

    Attributes:
        loss_backend: Which code turns logits into losses.
    """

    loss_backend: Literal["torch", "triton"] = "torch"

    def forward(
        self,
        input_ids: Tensor | None = None,
        *args: Any,
        shift_labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        selected_rows: int | None = None,
        states_at: Tensor | None = None,
        diverged_from: Tensor | None = None,
        reweigh: Callable[[Tensor], Tensor] | None = None,
        row_weights: RowWeights | None = None,
        temperature: float = 1.0,
        with_entropies: bool = False,
        choices: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return losses for ``loss_weights``, states or divergences for ``states_at``, else logits.

        Args:
            input_ids: ``[B, S]`` int64.
            args: As in ``GptOssForCausalLM.forward``.
            shift_labels: ``[B, S]`` int64, the token that position s has to predict (already
                shifted, unlike ``labels``).
            loss_weights: ``[B, S]`` fp32, the weight of that prediction; 0 leaves it out, and such
                rows never reach ``lm_head``.
            selected_rows: How many weights are not 0, where the caller knows.
            states_at: ``[N]`` int64 positions in the flattened tokens; returns the final states
                ``[N, H]`` there.
            diverged_from: ``[N, H]``, such states of another call; returns ``[N]`` fp32 instead,
                KL(those || these) of the next-token distributions.
            reweigh: From the losses ``[B, S]`` of the tokens with a weight, of a pass through the
                head without gradient, to the weights of the one with a gradient, of any sign; a
                token without a weight must keep none. Losses are then those of the first.
            row_weights: From the losses ``[C]`` of some tokens with a weight and their numbers
                ``[C]`` in the flattened batch to the weights of the gradient, of any sign: called
                in the one pass through the head, chunk by chunk, where each token's weight depends
                on its own loss alone.
            temperature: Divides the logits of the losses.
            with_entropies: Return entropies, too.
            choices: ``[B, S, L, K]`` uint8, experts to compute with; see ``model.routing``.
            kwargs: As in ``GptOssForCausalLM.forward``.
        """
        if states_at is not None:
            hidden = self._hidden(input_ids, *args, choices=choices, **kwargs)
            states = hidden.flatten(0, 1)[states_at]
            if diverged_from is None:
                return states
            return divergence(diverged_from, states, head_weight(self.lm_head))
        if loss_weights is None:
            with replaying(self, choices):
                return super().forward(input_ids, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        if shift_labels is None:
            raise ValueError("loss_weights came without shift_labels; pass both or neither")
        hidden = self._hidden(input_ids, *args, choices=choices, **kwargs).flatten(0, 1)
        targets = _Targets(shift_labels, loss_weights, selected_rows, temperature, with_entropies)
        if reweigh is None:
            return self._losses(hidden, targets, row_weights)
        with torch.no_grad():
            known: Any = self._losses(hidden, targets).token_losses
        targets = replace(targets, loss_weights=reweigh(known))
        return replace(self._losses(hidden, targets), token_losses=known)

    def _hidden(self, *args: Any, choices: Tensor | None, **kwargs: Any) -> Tensor:
        with replaying(self, choices):
            return self.model(*args, **kwargs).last_hidden_state

    def _losses(
        self, hidden: Tensor, targets: _Targets, row_weights: RowWeights | None = None
    ) -> TokenLossOutput:
        weight, shape = head_weight(self.lm_head), targets.loss_weights.shape
        entropies = None
        if targets.with_entropies:
            exact = torch.promote_types(hidden.dtype, torch.float32)
            entropies = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        loss_sum, losses = linear_cross_entropy(
            hidden,
            weight,
            targets.shift_labels.flatten(),
            targets.loss_weights.flatten(),
            chunk_rows=CHUNK_ROWS if isinstance(weight, Tensor) else PACKED_CHUNK_ROWS,
            temperature=targets.temperature,
            row_weights=row_weights,
            entropies=entropies,
            selected_rows=targets.selected_rows,
            backend=self.loss_backend,
        )
        return TokenLossOutput(
            loss_sum=loss_sum,
            token_losses=losses.view(shape),
            entropies=None if entropies is None else entropies.view(shape),
        )


CHUNK_ROWS, PACKED_CHUNK_ROWS = 1024, 512
"""Rows of logits at a time: 0.38 GiB of the released vocabulary in bf16. Half of them where
the head is packed or on the host, which is chosen for want of memory, at the price that it is
decoded, or comes over the bus, twice as often."""
CHUNK_BYTES = 1 << 28
"""Bytes of one fp32 ``[rows, V]`` at most; four of them exist at a time."""


@torch.no_grad()
def divergence(
    reference: Tensor,
    states: Tensor,
    lm_head: Tensor | PackedWeight,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Return ``KL(p || q) = sum_v p (log p - log q)`` per token, in nats.

    Args:
        reference: ``[N, H]`` final states that give p.
        states: ``[N, H]`` final states that give q.
        lm_head: ``[V, H]``, or packed.
        chunk_bytes: Bound of one fp32 block of logits.

    Returns:
        ``[N]`` fp32; the logits are computed in the dtype of ``lm_head``, all after them in fp32.
    """
    rows = max(1, chunk_bytes // (4 * lm_head.shape[0]))
    found = []
    for old, new in zip(reference.split(rows), states.split(rows), strict=True):
        log_p = _logits(old, lm_head).float().log_softmax(-1)
        log_q = _logits(new, lm_head).float().log_softmax(-1)
        found.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(found)


def _logits(states: Tensor, lm_head: Tensor | PackedWeight) -> Tensor:
    if isinstance(lm_head, Tensor):
        return functional.linear(states.to(lm_head.dtype), lm_head)
    return packed_linear(states, lm_head)
