"""A chunk of logits to losses, entropies and, in its place, the gradient: two engines.

The two halves can be apart, so that weights of the gradient are decided from the losses while the
chunk's logits still exist. Where none are, the Triton engine does both in one kernel.

``x = logits / temperature``, ``p = softmax(x)``; C rows of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gptoss_kernels.backend import Backend, launch

TILE_COLUMNS = 8192
"""Columns of the vocabulary that are widened to fp32 at a time: 32 MiB at 1,024 rows."""

RowWeights = Callable[[Tensor, Tensor], Tensor]
"""From the losses ``[C]`` of some rows and their numbers ``[C]`` int64 to their weights ``[C]``."""


@dataclass(frozen=True)
class RowLosses:
    """What is known of each row of a chunk; all in fp32 (fp64 for fp64 logits), 0 in dead rows.

    Attributes:
        losses: ``[C]``, ``lse - x[target]``.
        lse: ``[C]``, log-sum-exp of x.
        entropies: ``[C]``, ``-sum_v p log p`` in nats; ``None`` where they were not asked for.
    """

    losses: Tensor
    lse: Tensor
    entropies: Tensor | None


def row_losses_(
    logits: Tensor,
    targets: Tensor,
    scales: Tensor,
    rows: Tensor,
    row_weights: RowWeights | None,
    *,
    temperature: float,
    z_loss: float,
    with_entropies: bool,
    with_grad: bool,
    backend: Backend,
) -> tuple[RowLosses, Tensor]:
    """Return what is known of a chunk's rows, and their weights ``[C]``.

    With ``with_grad`` the logits are overwritten by the gradient of ``sum weight * (loss + z_loss *
    lse^2)``. Rows with scale 0 are padding of the gather: everything about them is 0 whatever their
    logits hold, so that NaN in a row without loss cannot reach the sum.

    Args:
        logits: ``[C, V]``, rows contiguous.
        targets: ``[C]`` int64.
        scales: ``[C]`` fp32, or fp64 for fp64 logits: the weights, unless ``row_weights`` says
            others for those that are not 0.
        rows: ``[C]`` int64, the numbers that ``row_weights`` knows the rows by.
        row_weights: From losses and ``rows`` to weights; its zeros make rows without gradient.
        temperature: Divides the logits after they are widened.
        z_loss: Factor of ``lse^2``.
        with_entropies: Whether entropies are asked for.
        with_grad: Whether the gradient is.
        backend: Which engine.
    """
    triton = backend == "triton"
    if triton and with_grad and row_weights is None:
        both = _launch(logits, targets, scales, temperature, with_entropies, z_loss, with_grad=True)
        return both, scales
    losses_of = _launch if triton else _row_losses_torch
    found = losses_of(logits, targets, scales, temperature, with_entropies)
    if row_weights is not None:
        asked = row_weights(found.losses, rows).to(scales.dtype)
        scales = torch.where(scales == 0, 0.0, asked)
    if with_grad:
        write = _launch_gradient_ if triton else _row_gradient_torch_
        write(logits, targets, scales, found, temperature, z_loss)
    return found, scales


def _widened(tile: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    """Return a copy of ``tile`` in ``dtype`` over the temperature."""
    wide = tile.to(dtype, copy=True)
    # Divided as samplers do it, and not multiplied by the inverse, which rounds otherwise.
    return wide if temperature == 1.0 else wide.div_(temperature)


def _row_losses_torch(
    logits: Tensor, targets: Tensor, alive: Tensor, temperature: float, with_entropies: bool
) -> RowLosses:
    dead, dtype = alive == 0, alive.dtype
    # Division by a positive number keeps the order, so the largest of x is that of the logits.
    largest = _widened(logits.amax(dim=1), dtype, temperature)
    total, moment = torch.zeros_like(largest), torch.zeros_like(largest)
    for tile in logits.split(TILE_COLUMNS, dim=1):
        shifted = _widened(tile, dtype, temperature).sub_(largest.unsqueeze(1))
        if not with_entropies:
            total += shifted.exp_().sum(dim=1)
            continue
        exponential = shifted.exp()
        total += exponential.sum(dim=1)
        # Of a logit of -inf 0 * -inf would be NaN; its share is 0.
        moment += exponential.mul_(shifted.clamp_(min=torch.finfo(dtype).min)).sum(dim=1)
    lse = largest + total.log()
    at_label = _widened(logits.gather(1, targets.unsqueeze(1)).squeeze(1), dtype, temperature)
    entropies = (total.log() - moment / total).masked_fill(dead, 0.0) if with_entropies else None
    losses = (lse - at_label).masked_fill(dead, 0.0)
    return RowLosses(losses, lse.masked_fill(dead, 0.0), entropies)


def _row_gradient_torch_(
    logits: Tensor,
    targets: Tensor,
    scales: Tensor,
    found: RowLosses,
    temperature: float,
    z_loss: float,
) -> None:
    dead = scales == 0
    factor = scales * (1 + 2 * z_loss * found.lse)
    # The label's entry is made apart: p - 1 after rounding p to bf16 would lose what is left of
    # the gradient where the model is sure.
    at_label = (factor * torch.exp(-found.losses) - scales).div_(temperature)
    factor = factor / temperature
    for tile in logits.split(TILE_COLUMNS, dim=1):
        gradient = _widened(tile, scales.dtype, temperature).sub_(found.lse.unsqueeze(1)).exp_()
        gradient.mul_(factor.unsqueeze(1))
        tile.copy_(gradient.masked_fill_(dead.unsqueeze(1), 0.0))
    at_label = at_label.masked_fill_(dead, 0.0)
    logits.scatter_(1, targets.unsqueeze(1), at_label.to(logits.dtype).unsqueeze(1))


def _launch(
    logits: Tensor,
    targets: Tensor,
    scales: Tensor,
    temperature: float,
    with_entropies: bool,
    z_loss: float = 0.0,
    *,
    with_grad: bool = False,
) -> RowLosses:
    from gptoss_kernels._triton._cross_entropy import _cross_entropy_kernel

    losses, lse = torch.empty_like(scales), torch.empty_like(scales)
    entropies = torch.empty_like(scales) if with_entropies else None
    rows, columns = logits.shape
    launch(
        _cross_entropy_kernel,
        (rows,),
        logits,
        targets,
        scales,
        losses,
        lse,
        losses if entropies is None else entropies,
        logits.stride(0),
        columns,
        z_loss,
        temperature,
        TEMPERED=temperature != 1.0,
        WITH_GRAD=with_grad,
        WITH_ENTROPY=with_entropies,
        BLOCK_V=_block(columns),
        num_warps=8,
    )
    return RowLosses(losses, lse, entropies)


def _launch_gradient_(
    logits: Tensor,
    targets: Tensor,
    scales: Tensor,
    found: RowLosses,
    temperature: float,
    z_loss: float,
) -> None:
    from gptoss_kernels._triton._cross_entropy import _cross_entropy_gradient_kernel

    rows, columns = logits.shape
    launch(
        _cross_entropy_gradient_kernel,
        (rows,),
        logits,
        targets,
        scales,
        found.losses,
        found.lse,
        logits.stride(0),
        columns,
        z_loss,
        temperature,
        TEMPERED=temperature != 1.0,
        BLOCK_V=_block(columns),
        num_warps=8,
    )


def _block(columns: int) -> int:
    return min(TILE_COLUMNS, 1 << (columns - 1).bit_length())
