"""Linear cross-entropy with per-token weights that never builds the logits.

The vocabulary of gpt-oss has 201,088 entries, so bf16 logits are 1.5 GiB at 4k tokens and 49 GiB
at 128k. Here the rows that carry loss are gathered first (prompts never reach ``lm_head``) and go
through it in chunks of a fixed number of rows; each chunk's logits are overwritten in place by
their gradient, which is multiplied back to the hidden states at once. One chunk is live at a time,
so the peak is the same at every length: ``chunk_rows * V`` elements, 0.38 GiB in bf16 at 1,024
rows.

Two things follow from doing the gradient in the forward pass. The loss is a weighted *sum*: a mean
needs a denominator of the whole optimizer step, which one micro-batch does not know, and a scalar
factor can still be applied to the sum afterwards. And nothing is recomputed: two matrix products
with a frozen head, as many as the unfused loss.

A weight that depends on the row's own loss, as that of a clipped objective does, is asked for
between a chunk's losses and its gradient (``row_weights``), so it costs no further product. Nor do
entropies, which are summed over the same tiles.

Rejected: recomputing the logits in the backward (a third product over the whole vocabulary for a
buffer that has to exist a moment later anyway); ``torch.nn.functional.linear_cross_entropy`` (torch
2.13: no weights per token, and rows without loss go through the head); selecting rows with a
boolean mask (its size has to travel to the host, which stalls the GPU once per micro-batch).

N tokens, H hidden, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.backend import (
    Backend,
    on_device,
    require_backend,
    require_triton,
    without_autocast,
)
from gptoss_kernels.cross_entropy_rows import TILE_COLUMNS, RowWeights, row_losses_
from gptoss_kernels.packed_linear import PackedWeight, sum_of_products, write_products

__all__ = ["RowWeights", "linear_cross_entropy", "linear_cross_entropy_reference"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    labels: Tensor,
    loss_weights: Tensor,
    *,
    chunk_rows: int = 1024,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    row_weights: RowWeights | None = None,
    entropies: Tensor | None = None,
    selected_rows: int | None = None,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """Return ``sum_i w_i * (lse_i - x_i[label_i] + z * lse_i^2)`` and every cross-entropy.

    ``x = hidden @ weight.T / temperature`` and ``lse`` is its log-sum-exp; only rows whose weight
    is not 0 and whose label is not ``ignore_index`` are computed. It is a *sum*: divide it by the
    weight of the whole optimizer step (all micro-batches, all ranks), never of the micro-batch.
    ``labels[i]`` is the token that row ``i`` predicts: the shift by one is the caller's.

    Logits are rounded to the dtype of ``hidden``, as the unfused head does; everything after them
    is fp32 (fp64 for fp64 inputs). The gradient is ready after the forward pass and handed over
    without a copy, so one graph can be walked backward once.

    Args:
        hidden: ``[N, H]``, fp64, fp32 or bf16.
        weight: ``[V, H]``, the weight of ``lm_head``, dtype of ``hidden``. A frozen weight costs no
            gradient; a trainable one gets an fp32 accumulated one. A packed one is frozen, and is
            decoded tile by tile, twice for each chunk (see ``packed_linear``).
        labels: ``[N]`` int64, in ``[0, V)`` or ``ignore_index``.
        loss_weights: ``[N]``, any floating dtype; a constant of the loss, not differentiated.
        chunk_rows: Rows of logits that exist at a time.
        ignore_index: Label of a token without loss.
        z_loss: Factor of ``lse^2``; 0 leaves it out.
        temperature: Divides the logits, in fp32.
        row_weights: From the cross-entropies ``[C]`` of some rows, without graph, and their numbers
            ``[C]`` int64 to their ``w``, of any sign, in the place of ``loss_weights``, which then
            say no more than which rows are computed. They are constants of the gradient. It is
            called once for each chunk, under ``no_grad``; what it returns for a row that carries
            no loss counts 0.
        entropies: ``[N]``, dtype of the results; filled with ``-sum_v p log p`` of ``p =
            softmax(x)`` in nats where there is loss, 0 elsewhere.
        selected_rows: How many rows carry loss, where the caller knows it on the host (a collator
            does). ``None``: on the CPU they are counted; on a GPU counting would stall it, so every
            row goes through the head, with the same result.
        backend: Which engine turns a chunk of logits into losses and gradients.

    Returns:
        The weighted sum, a scalar in fp32 (fp64 for fp64 inputs), and the cross-entropies ``[N]``
        in the same dtype, detached, without weight and without z-loss, 0 where there is no loss.

    Raises:
        ValueError: Shapes or dtypes do not fit, ``loss_weights`` requires a gradient, a count or
            the temperature is not positive, or ``selected_rows`` is smaller than the rows that
            carry loss (on a GPU that is a device-side assertion, as the host does not look).

    See ``linear_cross_entropy_reference``; Wijmans et al., Cut Your Losses, arXiv 2411.09009.
    """
    _validate(hidden, weight, labels, loss_weights, chunk_rows, selected_rows)
    accumulator = _accumulator_dtype(hidden)
    _validate_rows(hidden, temperature, entropies, accumulator)
    require_backend(backend)
    if backend == "triton":
        dense = weight if isinstance(weight, Tensor) else None
        require_triton("linear_cross_entropy", hidden, dense, labels)
    selected = (labels != ignore_index) & (loss_weights != 0)
    plan = _Plan(
        chunk_rows=chunk_rows,
        z_loss=z_loss,
        temperature=temperature,
        row_weights=row_weights,
        entropies=entropies,
        rows=_row_count(selected, selected_rows),
        backend=backend,
        hidden_grad=torch.is_grad_enabled() and hidden.requires_grad,
        weight_grad=torch.is_grad_enabled() and getattr(weight, "requires_grad", False),
    )
    scales = torch.where(selected, loss_weights.detach().to(accumulator), 0.0)
    targets = torch.where(selected, labels, 0)
    return _LinearCrossEntropy.apply(hidden, weight, targets, scales, selected, plan)


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    row_weights: RowWeights | None = None,
    entropies: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what ``linear_cross_entropy`` returns, through the whole logits and plain autograd.

    Args, returns: as ``linear_cross_entropy``; the logits are computed in the dtype given.
    """
    logits = hidden @ weight.T / temperature
    selected = (labels != ignore_index) & (loss_weights != 0)
    lse = torch.logsumexp(logits, dim=-1)
    label_logits = logits.gather(1, labels.where(selected, 0).unsqueeze(1)).squeeze(1)
    losses = (lse - label_logits).where(selected, 0.0)
    penalty = z_loss * lse.where(selected, 0.0).square()
    if row_weights is not None:
        loss_weights = row_weights(losses.detach(), torch.arange(len(losses), device=losses.device))
    if entropies is not None:
        each = torch.special.entr(logits.detach().softmax(-1)).sum(-1)
        entropies.copy_(each.where(selected, 0.0))
    total = ((losses + penalty) * loss_weights.to(losses.dtype).where(selected, 0.0)).sum()
    return total, losses.detach()


@dataclass(frozen=True)
class _Plan:
    """What one call does: how many rows in which chunks, and which gradients are wanted."""

    chunk_rows: int
    z_loss: float
    temperature: float
    row_weights: RowWeights | None
    entropies: Tensor | None
    rows: int
    backend: Backend
    hidden_grad: bool
    weight_grad: bool

    @property
    def any_grad(self) -> bool:
        return self.hidden_grad or self.weight_grad


def _validate(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    labels: Tensor,
    loss_weights: Tensor,
    chunk_rows: int,
    selected_rows: int | None,
) -> None:
    if hidden.ndim != 2 or len(weight.shape) != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_cross_entropy needs hidden [N, H] and weight [V, H], got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}; flatten batch and sequence first"
        )
    expected = (hidden.shape[0],)
    if tuple(labels.shape) != expected or tuple(loss_weights.shape) != expected:
        raise ValueError(
            f"linear_cross_entropy needs one label and one weight per row {expected}, got labels "
            f"{tuple(labels.shape)} and loss_weights {tuple(loss_weights.shape)}"
        )
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(
            f"hidden and weight must have one floating dtype, got {hidden.dtype} and "
            f"{weight.dtype}; cast the hidden states to the dtype of lm_head"
        )
    if labels.dtype != torch.int64 or not loss_weights.is_floating_point():
        raise ValueError(
            f"labels must be int64 and loss_weights floating, got {labels.dtype} and "
            f"{loss_weights.dtype}"
        )
    if loss_weights.requires_grad:
        raise ValueError("loss_weights is a constant of the loss; detach it")
    if chunk_rows < 1 or (selected_rows is not None and selected_rows < 0):
        raise ValueError(
            f"chunk_rows must be positive and selected_rows not negative, got {chunk_rows} and "
            f"{selected_rows}"
        )


def _validate_rows(
    hidden: Tensor, temperature: float, entropies: Tensor | None, dtype: torch.dtype
) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if entropies is None:
        return
    if tuple(entropies.shape) != (hidden.shape[0],) or entropies.dtype != dtype:
        raise ValueError(
            f"entropies must be {(hidden.shape[0],)} of {dtype}, got {tuple(entropies.shape)} of "
            f"{entropies.dtype}"
        )
    if entropies.requires_grad:
        raise ValueError("entropies have no gradient; give a tensor that asks for none")


def _row_count(selected: Tensor, selected_rows: int | None) -> int:
    """Return how many rows go through the head; never fewer than carry loss, never a host sync."""
    total = selected.shape[0]
    if selected.device.type == "cpu":
        counted = int(selected.sum())
        if selected_rows is not None and selected_rows < counted:
            raise ValueError(
                f"selected_rows={selected_rows}, but {counted} rows carry loss; count rows with "
                f"loss_weights != 0 and labels != ignore_index, or leave it out"
            )
        return counted
    if selected_rows is None or selected_rows >= total:
        return total
    torch.ops.aten._assert_async.msg(
        selected.sum() <= selected_rows,
        f"linear_cross_entropy: more than selected_rows={selected_rows} rows carry loss",
    )
    return selected_rows


def _accumulator_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in ``forward`` and scaled in ``backward``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | PackedWeight,
        targets: Tensor,
        scales: Tensor,
        selected: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(hidden.device), on_device(hidden):
            result = _run_chunks(hidden, weight, targets, scales, selected, plan)
        loss, losses, ctx.grad_hidden, ctx.grad_weight = result
        ctx.walked = False
        ctx.mark_non_differentiable(losses)
        return loss, losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_loss: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.walked:
            raise RuntimeError(
                "linear_cross_entropy: the gradient was handed over by the first backward pass; "
                "call the function again instead of walking one graph twice"
            )
        ctx.walked = True
        grads = []
        for grad in (ctx.grad_hidden, ctx.grad_weight):
            # In place: at 128k tokens a copy of the hidden states' gradient is 0.7 GiB.
            grads.append(None if grad is None else grad.mul_(grad_loss.to(grad.dtype)))
        ctx.grad_hidden = ctx.grad_weight = None
        return (*grads, None, None, None, None)


def _run_chunks(
    hidden: Tensor,
    weight: Tensor | PackedWeight,
    targets: Tensor,
    scales: Tensor,
    selected: Tensor,
    plan: _Plan,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the weighted sum, the losses ``[N]`` and the gradients that the plan wants."""
    loss = scales.new_zeros(())
    losses = torch.zeros_like(scales)
    if plan.entropies is not None:
        plan.entropies.zero_()
    grad_hidden = torch.zeros_like(hidden) if plan.hidden_grad else None
    grad_weight = None
    if plan.weight_grad:
        grad_weight = torch.zeros(weight.shape, dtype=scales.dtype, device=hidden.device)
    # Stable, so that rows with loss come first and in their order, at a size known to the host.
    rows = torch.argsort(selected, descending=True, stable=True)[: plan.rows]
    buffer = hidden.new_empty(min(plan.chunk_rows, plan.rows), weight.shape[0])
    for chunk in rows.split(plan.chunk_rows):
        logits = buffer[: chunk.shape[0]]
        chunk_hidden = hidden.index_select(0, chunk)
        if isinstance(weight, Tensor):
            torch.mm(chunk_hidden, weight.T, out=logits)
        else:
            write_products(chunk_hidden, weight, logits)
        found, weights = row_losses_(
            logits,
            targets[chunk],
            scales[chunk],
            chunk,
            plan.row_weights,
            temperature=plan.temperature,
            z_loss=plan.z_loss,
            with_entropies=plan.entropies is not None,
            with_grad=plan.any_grad,
            backend=plan.backend,
        )
        loss += ((found.losses + plan.z_loss * found.lse.square()) * weights).sum()
        losses.index_copy_(0, chunk, found.losses)
        if plan.entropies is not None and found.entropies is not None:
            plan.entropies.index_copy_(0, chunk, found.entropies)
        if grad_hidden is not None:
            dense = isinstance(weight, Tensor)
            back = torch.mm(logits, weight) if dense else sum_of_products(logits, weight)
            grad_hidden.index_copy_(0, chunk, back)
        if grad_weight is not None:
            _add_weight_grad(grad_weight, logits, chunk_hidden)
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
    return loss, losses, grad_hidden, grad_weight


def _add_weight_grad(grad_weight: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Add ``grad_logits.T @ hidden`` in the accumulator's dtype, by tiles of the vocabulary."""
    wide = hidden.to(grad_weight.dtype)
    for start in range(0, grad_weight.shape[0], TILE_COLUMNS):
        tile = slice(start, start + TILE_COLUMNS)
        grad_weight[tile].addmm_(grad_logits[:, tile].T.to(grad_weight.dtype), wide)
