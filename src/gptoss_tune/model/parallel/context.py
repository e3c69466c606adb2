"""A row of tokens spread over several ranks: every rank computes its part of it, exactly.

Norms, experts, router, rotation and head see one token at a time and need nothing. Attention sees
the whole row: ``gptoss_kernels.attention.context_parallel`` fetches what a rank's queries see of
the others' keys and values. What the documents of the row are is asked of all ranks once per
forward pass, by a hook on the decoder.

Rejected: torch's ``context_parallel`` context manager, which stands in for
``scaled_dot_product_attention`` and knows neither sinks nor windows nor documents.

S tokens of the whole row, N ranks, B rows.
"""

from __future__ import annotations

from typing import Any, cast

import torch.distributed as dist
from gptoss_kernels.attention.context_parallel import find_context_rows, refusal
from gptoss_kernels.attention.engines import find_part_fault
from gptoss_kernels.attention.interface import DifferentiableEngine
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention


def set_context_parallel(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Let every forward pass of ``model`` compute this rank's part of rows that a group shares.

    From then on ``input_ids`` and ``position_ids`` are ``[B, S / N]``, the tokens of
    ``RowShard(S, N, rank).indices()`` with their positions in their documents, which every rank of
    the group has to pass at the same time; logits, hidden states and losses come back for these
    tokens. Gradients are this rank's share: their sum over the group is the gradient of the row.
    A rank whose tokens have no loss takes part in backward all the same, or the others wait.

    There is no ``attention_mask``: padding at the end of a row is a document, its positions start
    again from 0. Generation and a cache are refused; ``labels``, which transformers shifts among
    the tokens it sees, cannot be: pass ``shift_labels``.

    Args:
        model: A gpt-oss model, bare or inside PEFT, after ``set_attention``.
        group: The ranks that share a row, in the order of their parts; ``None`` ends it.

    Raises:
        ValueError: ``model`` is not gpt-oss, has no attention engine yet, or has one that cannot
            serve a part of a row or computes it wrongly.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, cast(type, GptOssAttention))]
    decoders: list[Any] = [m for m in model.modules() if type(m).__name__ == "GptOssModel"]
    if not layers or len(decoders) != 1:
        raise ValueError(f"{type(model).__name__} holds no GptOssModel; only gpt-oss is supported")
    (decoder,) = decoders
    if group is not None:
        _prove(decoder, layers[0])
    if hasattr(decoder, "context_handle"):
        decoder.context_handle.remove()
        del decoder.context_handle
    for layer in layers:
        layer.context_ranks = 1 if group is None else dist.get_world_size(group)
    if group is not None:

        def share(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "context_rows": _rows(args, kwargs, group)}

        # Before the hook that finds the documents of whole rows.
        decoder.context_handle = decoder.register_forward_pre_hook(
            share, with_kwargs=True, prepend=True
        )


def _prove(decoder: Any, layer: Any) -> None:
    """Let the engine compute a part of a row in front of us, as ``set_attention`` lets whole rows.

    Raises:
        ValueError: There is no engine, it is not of the kind, or its results are wrong.
    """
    engine = getattr(layer, "attention_engine", None)
    if engine is None:
        raise ValueError("the model has no attention engine; call set_attention first")
    if isinstance(engine, DifferentiableEngine):
        raise ValueError(refusal(engine))
    dtype = decoder.get_input_embeddings().weight.dtype
    fault = find_part_fault(engine, layer.sinks.device, dtype, layer.head_dim)
    if fault is not None:
        raise ValueError(
            f"{type(engine).__name__} cannot attend in rows spread over ranks: {fault}; choose "
            f"another engine in model.attention"
        )


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any], group: dist.ProcessGroup) -> Any:
    """Return the rows that the given tokens are a part of.

    Raises:
        ValueError: Positions are missing, or something came that knows of these tokens only.
    """
    # The cache's name up to transformers 5.23, and from 5.24 on.
    cached = any(kwargs.get(name) is not None for name in ("past_key_values", "cache"))
    if cached or kwargs.get("use_cache"):
        raise ValueError(
            "the model computes parts of rows that ranks share (context parallel), which have no "
            "cache and do not generate; call set_context_parallel(model, None) first"
        )
    for name in ("attention_mask", "cu_seq_lens_q"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{name} came for a part of a row that ranks share (context parallel); documents "
                f"and padding are told by position_ids alone"
            )
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is None:
        tokens = kwargs["inputs_embeds"]
    position_ids = kwargs.get("position_ids")
    if position_ids is None or position_ids.shape != tokens.shape[:2]:
        got = None if position_ids is None else tuple(position_ids.shape)
        raise ValueError(
            f"a part of a row that ranks share (context parallel) needs position_ids of the shape "
            f"of its tokens, {tuple(tokens.shape[:2])}, got {got}"
        )
    return find_context_rows(position_ids, group)
