"""KL divergence between the next-token distributions of two sets of hidden states.

Both go through the same ``lm_head``, a few rows at a time: the released vocabulary has 201,088
entries, so the fp32 logits of 4,096 tokens alone are 3.1 GiB, and the divergence needs two of them
and their differences.

N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES = 1 << 28
"""Bytes of one fp32 ``[rows, V]`` at most; four of them exist at a time."""


@torch.no_grad()
def divergence(
    reference: Tensor, states: Tensor, lm_head: Tensor, *, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Return ``KL(p || q) = sum_v p (log p - log q)`` per token, in nats.

    Args:
        reference: ``[N, H]`` final states that give p.
        states: ``[N, H]`` final states that give q.
        lm_head: ``[V, H]``.
        chunk_bytes: Bound of one fp32 block of logits.

    Returns:
        ``[N]`` fp32; the logits are computed in the dtype of ``lm_head``, all after them in fp32.
    """
    rows = max(1, chunk_bytes // (4 * lm_head.shape[0]))
    found = []
    for old, new in zip(reference.split(rows), states.split(rows), strict=True):
        log_p = functional.linear(old.to(lm_head.dtype), lm_head).float().log_softmax(-1)
        log_q = functional.linear(new.to(lm_head.dtype), lm_head).float().log_softmax(-1)
        found.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(found)
