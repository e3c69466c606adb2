"""Attention with sinks for training: gpt-oss's softmax, exact in both directions, on any engine.

Every head has a learned logit, its sink, that takes part in the softmax and carries no value. With
``LSE`` the log-sum-exp of a row without the sink::

    LSE' = logaddexp(LSE, sink)          O' = O * exp(LSE - LSE')
    dsink_h = -sum over rows of exp(sink_h - LSE') * rowsum(dO * O')

and dQ, dK, dV are what a stock flash backward computes when it is handed O' and LSE' for O and LSE,
because it only ever forms ``P = exp(S - LSE')`` and ``rowsum(dO * O')``. So one autograd function
serves every engine that can give O and LSE and run a backward from them, and the sink's gradient is
made in fp32 beside it. In float64 all four gradients agree with autograd to 4e-16.

Rejected: rescaling the output of an attention whose backward ignores the gradient of its LSE (torch
``varlen_attn``): the forward is right and dQ, dK are silently wrong. Rescaling by an LSE rounded to
bf16 (transformers' flex path): 1.2 % mean output error. A sink as an extra key: it shifts every
causal and window index by one.

B rows, S tokens of a row, Hq query heads, Hkv key-value heads, G = Hq / Hkv, D head size, P keys
before the first query: 0 but for a part of a row that is spread over ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.attention.documents import Documents, find_documents
from gptoss_kernels.attention.interface import (
    AttentionEngine,
    AttentionRule,
    DifferentiableEngine,
    KeptAttention,
)
from gptoss_kernels.backend import on_device, without_autocast

__all__ = [
    "AttentionEngine",
    "AttentionRule",
    "DifferentiableEngine",
    "Documents",
    "KeptAttention",
    "attention",
    "attention_reference",
    "find_documents",
]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    *,
    scaling: float,
    window: int | None = None,
    documents: Documents | None = None,
    engine: AttentionEngine | DifferentiableEngine | None = None,
    kept: KeptAttention | None = None,
) -> Tensor:
    """Return ``softmax([Q K^T * scaling | sink])[..., :-1] V`` under causal, window and documents.

    Heads come before tokens in the inputs and after them in the result, as in transformers'
    attention functions. The window counts the token itself.

    Args:
        query: ``[B, Hq, S, D]``, any strides with contiguous D.
        key: ``[B, Hkv, P + S, D]``, Hkv a divisor of Hq.
        value: As ``key``.
        sinks: ``[Hq]``, floating, trainable or frozen.
        scaling: Factor of the scores, ``D ** -0.5`` for gpt-oss.
        window: Keys a query sees, itself included; ``None`` for all.
        documents: Runs of tokens that see each other; ``None``: each row is one run. They know P.
        engine: Who computes; ``None`` is the exact torch engine, which runs anywhere.
        kept: Filled by a first call and used by the second; an engine with its own autograd
            computes twice.

    Returns:
        ``[B, S, Hq, D]``, contiguous, dtype of ``query``.

    Raises:
        ValueError: Shapes, dtypes or the window do not fit.

    See ``attention_reference``; openai/gpt-oss, gpt_oss/torch/model.py; Dao, FlashAttention-2,
    arXiv 2307.08691.
    """
    validate(query, key, value, sinks, window, documents)
    if documents is None:
        documents = find_documents(query.shape[0], query.shape[2], query.device)
    if engine is None:
        from gptoss_kernels.attention.eager import EagerEngine

        engine = EagerEngine()
    rule = AttentionRule(scaling, window, documents)
    if isinstance(engine, DifferentiableEngine):
        return engine.differentiable(query, key, value, sinks, rule)
    return _SinkAttention.apply(query, key, value, sinks, rule, engine, kept)


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    *,
    scaling: float,
    window: int | None = None,
    documents: Documents | None = None,
) -> Tensor:
    """Return what ``attention`` returns, with the whole score matrix and plain autograd.

    Args, returns: as ``attention``; computed in the dtype of ``query``.
    """
    batch, heads, length, _ = query.shape
    if documents is None:
        documents = find_documents(batch, length, query.device)
    key, value = (t.repeat_interleave(heads // key.shape[1], dim=1) for t in (key, value))
    columns = torch.arange(key.shape[2], device=query.device)
    rows = columns[documents.keys_before :, None]
    visible = (columns <= rows) & (columns >= documents.first_key[:, None, :, None])
    if window is not None:
        visible = visible & (columns > rows - window)
    scores = (query @ key.mT * scaling).masked_fill(~visible, float("-inf"))
    sink = sinks.to(scores.dtype).view(1, heads, 1, 1).expand(batch, heads, length, 1)
    weights = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]
    return (weights @ value).transpose(1, 2)


def validate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    window: int | None,
    documents: Documents | None,
) -> None:
    """Refuse what ``attention`` cannot compute; its docstring has the shapes."""
    if query.ndim != 4 or key.shape != value.shape or key.ndim != 4:
        raise ValueError(
            f"attention needs query [B, Hq, S, D] and key and value [B, Hkv, S, D], got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    batch, heads, length, size = query.shape
    before = documents.keys_before if documents is not None else 0
    expected = (batch, before + length, size)
    if expected != (key.shape[0], key.shape[2], key.shape[3]) or heads % key.shape[1]:
        raise ValueError(
            f"query {tuple(query.shape)} does not fit key {tuple(key.shape)}: same B, S and D, and "
            f"Hq a multiple of Hkv; decoding with a cache has another path"
        )
    if documents is not None and documents.first_key.shape != (batch, length):
        raise ValueError(
            f"documents are for {tuple(documents.first_key.shape)} tokens, the query has "
            f"{(batch, length)}"
        )
    if sinks.shape != (heads,):
        raise ValueError(f"sinks need shape [{heads}], one per head, got {tuple(sinks.shape)}")
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        raise ValueError(
            f"query, key and value need one floating dtype, got {query.dtype}, {key.dtype}, "
            f"{value.dtype}"
        )
    if window is not None and window < 1:
        raise ValueError(f"window counts the token itself and is at least 1, got {window}")


class _SinkAttention(torch.autograd.Function):
    """One node for every engine; only the engine's raw forward and backward differ."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor,
        rule: AttentionRule,
        engine: AttentionEngine,
        kept: KeptAttention | None,
    ) -> Tensor:
        """Run the engine and keep O' and LSE' beside its inputs."""
        if kept is not None and kept.out is not None and kept.lse is not None:
            # A view: autograd must not tie this node to the tensor of the first pass.
            out, lse = kept.out.view_as(kept.out), kept.lse
            kept.out = kept.lse = None
        else:
            with without_autocast(query.device), on_device(query):
                out, lse = engine.forward(query, key, value, sinks, rule)
            if kept is not None:
                kept.out, kept.lse = out.detach(), lse
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.rule, ctx.engine = rule, engine
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key, value and sinks."""
        query, key, value, sinks, out, lse = ctx.saved_tensors
        with without_autocast(query.device), on_device(query):
            grads = ctx.engine.backward(grad_out, query, key, value, out, lse, ctx.rule)
            grad_sinks = None
            if ctx.needs_input_grad[3]:
                grad_sinks = sinks_gradient(ctx.engine, grad_out, sinks, out, lse)
        return (*grads, grad_sinks, None, None, None)


def sinks_gradient(
    engine: AttentionEngine, grad_out: Tensor, sinks: Tensor, out: Tensor, lse: Tensor
) -> Tensor:
    """Return ``-sum over rows of exp(sink - LSE') * rowsum(dO * O')``, ``[Hq]``, dtype of sinks.

    Args:
        engine: Who sums the rows.
        grad_out: ``[B, S, Hq, D]``, dO.
        sinks: ``[Hq]``.
        out: ``[B, S, Hq, D]``, O'.
        lse: ``[B, Hq, S]``, LSE'.
    """
    weight = torch.exp(sinks.to(lse.dtype)[:, None] - lse)
    return (weight * engine.row_sums(grad_out, out)).sum(dim=(0, 2)).neg().to(sinks.dtype)
