"""How samplers draw a token: by the request's own random numbers, whatever else is in the batch.

A token is the first whose cumulative probability exceeds one uniform number of the request's own
generator on the CPU. The sum over the vocabulary runs in blocks: only the block sums and the chosen
block leave the device, and no cumulative sum runs on a GPU, where torch has no deterministic one.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gptoss_kernels.backend import Backend
from gptoss_kernels.cross_entropy_rows import row_losses_
from torch import Tensor
from torch.nn import functional

_BLOCK = 128  # 201,088, the released vocabulary, is a multiple: nothing is copied to be padded


def generator(seed: int) -> torch.Generator:
    """Return the draws of one request."""
    return torch.Generator().manual_seed(seed % 2**63)


def choose(
    logits: Tensor,
    temperature: float,
    generators: Sequence[torch.Generator],
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """Return one token of each row and its log-probability.

    Args:
        logits: ``[B, V]`` of any floating dtype.
        temperature: The distribution is ``softmax(logits / temperature)``; 0 takes the likeliest
            token and tells its log-probability at temperature 1.
        generators: One of each row, which may be none; each gives one number, at temperature 0
            none.
        backend: As ``GptOssForTuning.loss_backend``: equal logits have the log-probability that
            training computes, to the bit.

    Returns:
        ``[B]`` int64 and ``[B]`` fp32. A row that is not finite gives its largest entry and NaN:
        the guard of the training judges such a model, not this.
    """
    logits = logits.contiguous()
    normaliser = row_losses_(
        logits,
        torch.zeros(len(logits), dtype=torch.int64, device=logits.device),
        torch.ones(len(logits), device=logits.device),
        torch.arange(len(logits), device=logits.device),
        None,
        temperature=temperature or 1.0,
        z_loss=0.0,
        with_entropies=False,
        with_grad=False,
        backend=backend,
    )[0].lse
    scaled = logits.float()
    if temperature not in (0.0, 1.0):
        scaled = scaled / temperature
    finite = torch.isfinite(normaliser)
    if temperature == 0 or not finite.all():
        chosen = logits.argmax(-1)
    else:
        chosen = torch.zeros_like(normaliser, dtype=torch.int64)
    if temperature > 0:
        uniforms = [torch.rand((), generator=g, dtype=torch.float64).item() for g in generators]
        shares = (scaled - normaliser[:, None]).exp_()
        drawn = _draw(shares, torch.tensor(uniforms, dtype=torch.float64))
        chosen = torch.where(finite, drawn, chosen)
    return chosen, scaled.gather(1, chosen[:, None])[:, 0] - normaliser


def _draw(shares: Tensor, uniforms: Tensor) -> Tensor:
    """Return the token ``[B]`` of each row of ``shares [B, V]`` at ``uniforms [B]`` in [0, 1)."""
    rows, size = shares.shape
    if size % _BLOCK:
        shares = functional.pad(shares, (0, -size % _BLOCK))
    blocks = shares.view(rows, -(-size // _BLOCK), _BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cpu().cumsum(-1)
    wanted = uniforms * ends[:, -1]
    block = _first_above(ends, wanted)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = blocks[torch.arange(rows, device=shares.device), block.to(shares.device)]
    place = _first_above(inside.cpu().double().cumsum(-1), wanted - before)
    return (block * _BLOCK + place).to(shares.device)


def _first_above(ends: Tensor, wanted: Tensor) -> Tensor:
    """Return the first place ``[B]`` where ``ends [B, n]`` exceeds ``wanted [B]``.

    Where rounding leaves none, the last at which something was added: never one of probability 0.
    """
    place = torch.searchsorted(ends, wanted[:, None].contiguous(), right=True)[:, 0]
    last = torch.searchsorted(ends, ends[:, -1:].contiguous())[:, 0]
    return torch.minimum(place, last).clamp(max=ends.shape[1] - 1)
