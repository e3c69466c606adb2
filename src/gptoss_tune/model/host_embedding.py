"""Token embeddings that stay in host memory: 1.1 GiB of a GPU for one small copy per step.

A step reads one row of the table per token, 24 MB at 4,096 tokens, and the table is frozen; the
other 201,088 rows need not be on the GPU. ``lm_head`` is as large and is read whole, so it stays.

The table is no parameter and no buffer of the module: ``model.to(device)``, which trainers call,
would otherwise bring it back. It is not in ``state_dict()`` either, which is right for a run that
saves adapters, and wrong for anything that saves a whole model.

V vocabulary, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class HostEmbedding(nn.Module):
    """``nn.Embedding`` whose table lives in host memory and whose result lives on ``device``."""

    def __init__(self, table: Tensor, device: torch.device) -> None:
        """Keep ``table`` ``[V, H]`` in host memory, pinned where a GPU will read from it."""
        super().__init__()
        table = table.detach().cpu()
        self._table = (table.pin_memory() if device.type == "cuda" else table,)
        self.device = device

    @property
    def weight(self) -> Tensor:
        """The table ``[V, H]``, for those who ask an embedding for its shape and dtype."""
        return self._table[0]

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the rows of ``input_ids``, ``[..., H]`` on ``device``; the host waits for the ids.

        Args:
            input_ids: ``[...]`` int64 on any device.
        """
        rows = torch.nn.functional.embedding(input_ids.cpu(), self.weight)
        return rows.to(self.device)


def keep_embeddings_on_host(model: Any, device: torch.device) -> int:
    """Replace the token embeddings of ``model`` by ``HostEmbedding``; return the bytes that move.

    Args:
        model: A gpt-oss model, bare or inside PEFT, its embeddings frozen.
        device: Where the layers are.

    Raises:
        ValueError: The embeddings are trained, or shared with ``lm_head``.
    """
    embedding = model.get_input_embeddings()
    if isinstance(embedding, HostEmbedding):
        return 0
    if embedding.weight.requires_grad:
        raise ValueError("the token embeddings are trained; those of a frozen base can move")
    if embedding.weight is getattr(model.get_output_embeddings(), "weight", None):
        raise ValueError("the token embeddings are lm_head's weight, which a GPU reads whole")
    moved = embedding.weight.nbytes
    model.set_input_embeddings(HostEmbedding(embedding.weight, device))
    return moved
