"""A row of tokens spread over several ranks: every rank computes its part of it, exactly.

Norms, experts, router and head see one token at a time and need nothing. Attention sees the whole
row: ``gptoss_kernels.attention.context_parallel`` fetches what a rank's queries see of the others'
keys and values. What the documents of the row are is asked of all ranks once per forward pass, by a
hook on the decoder.

S tokens of the whole row, N ranks, B rows.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn


def set_context_parallel(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Let every forward pass of ``model`` compute this rank's part of rows that a group shares.

    From then on ``input_ids`` and ``position_ids`` are ``[B, S / N]``, the tokens of
    ``RowShard(S, N, rank).indices()`` with their positions in their documents, which every rank of
    the group has to pass at the same time; logits, hidden states and losses come back for these
    tokens. Gradients are this rank's share: their sum over the group is the gradient of the row.

    There is no ``attention_mask``: padding at the end of a row is a document, its positions start
    again from 0. Generation, a cache and ``labels``, which are shifted among local tokens, do not
    fit: switch off first.

    Args:
        model: A gpt-oss model, bare or inside PEFT, after ``set_attention``.
        group: The ranks that share a row, in the order of their parts; ``None`` ends it.

    Raises:
        ValueError: ``model`` is not gpt-oss, has no attention engine yet, or has one that cannot
            serve a part of a row.
    """
    decoders: list[Any] = [m for m in model.modules() if type(m).__name__ == "GptOssModel"]
    if len(decoders) != 1:
        raise ValueError(f"{type(model).__name__} holds no GptOssModel; only gpt-oss is supported")
    (decoder,) = decoders
    decoder.context_group = group
