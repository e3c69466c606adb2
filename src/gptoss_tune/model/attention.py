"""Attention with sinks in transformers' gpt-oss, packing and padding included.

transformers dispatches attention by name; this module adds the name ``gptoss_tune`` to its two
interfaces (the function and the mask) and patches nothing. Two facts make the detour necessary.
transformers' gpt-oss does not hand ``position_ids`` to its mask functions, so with every stock
implementation but varlen flash the documents of a packed row see each other. And its engines either
build S x S scores, or round or drop the gradient of the sinks.

Documents are told apart by whatever the caller gives: ``position_ids`` that restart, a 2-d
``attention_mask``, or ``cu_seq_lens_q``. They are found once per forward pass by a hook that
``set_attention`` puts on the decoder, openly: its ``attention_handle.remove()`` takes it away, and
the attention function then finds them itself in every layer. Where ranks share rows
(``parallel.context``), the rows come from a hook of that module, and documents with them.

B rows, S tokens of a row, Hq query heads, Hkv key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from gptoss_kernels.attention.attention import Documents, attention, find_documents
from gptoss_kernels.attention.context_parallel import ContextRows, context_attention
from gptoss_kernels.attention.engines import EngineChoice, choose_engine
from gptoss_kernels.backend import without_autocast
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

ATTENTION_IMPLEMENTATION = "gptoss_tune"


def set_attention(
    model: nn.Module, wanted: str = "auto", *, deterministic: bool = False
) -> EngineChoice:
    """Let every attention layer of ``model`` run on the engine ``wanted``; return what was chosen.

    Args:
        model: A gpt-oss model, bare or inside PEFT, on the device it will run on.
        wanted: ``auto`` or an engine's name, as in the recipe's ``model.attention``.
        deterministic: Only an engine whose gradients have the same bits in every run, as in
            ``train.deterministic``.

    Returns:
        The choice; its ``reason`` is the name and why, for the log.

    Raises:
        ValueError: ``model`` is not gpt-oss, or the engine asked for cannot run here or fails its
            proof of gradients.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, cast(type, GptOssAttention))]
    decoders: list[Any] = [m for m in model.modules() if type(m).__name__ == "GptOssModel"]
    if not layers or len(decoders) != 1:
        raise ValueError(f"{type(model).__name__} holds no GptOssModel; only gpt-oss has sinks")
    (decoder,) = decoders
    sinks = layers[0].sinks
    choice = choose_engine(
        wanted,
        sinks.device,
        _compute_dtype(decoder),
        layers[0].head_dim,
        deterministic=deterministic,
    )
    for layer in layers:
        layer.attention_engine = choice.engine
    decoder.set_attn_implementation(ATTENTION_IMPLEMENTATION)
    if not hasattr(decoder, "attention_handle"):
        decoder.attention_handle = decoder.register_forward_pre_hook(
            _find_documents_once, with_kwargs=True
        )
    return choice


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    s_aux: Tensor,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    context_rows: ContextRows | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention output of one layer, as transformers' ``AttentionInterface`` asks.

    Args:
        module: The layer; its ``attention_engine`` computes where it has one, and its
            ``attention_kept`` spares a recomputation the scores.
        query: ``[B, Hq, S, D]`` after rotation.
        key: ``[B, Hkv, S, D]``, or longer than the query where a cache precedes it.
        value: As ``key``.
        attention_mask: ``None``, the 2-d mask ``[B, S]``, or a 4-d boolean one from a cache.
        scaling: Factor of the scores.
        s_aux: The sinks ``[Hq]``.
        sliding_window: Keys a query sees, itself included; ``None`` in full layers.
        dropout: Must be 0, as gpt-oss was trained.
        documents: The runs of tokens, where they were found before.
        context_rows: The rows that ranks share, where the tokens are this rank's part of them.
        position_ids: ``[B, S]``, restarting in every document.
        cu_seq_lens_q: Starts of the documents over all tokens, from a padding-free collator.
        max_length_q: The longest document by ``cu_seq_lens_q``.
        kwargs: ``output_attentions`` and ``is_causal=False`` are refused, the rest is ignored.

    Returns:
        ``[B, S, Hq, D]`` and no attention weights.

    Raises:
        ValueError: Something is asked for that this attention does not compute.
    """
    _refuse(dropout, kwargs)
    settings: dict[str, Any] = {
        "scaling": scaling,
        "window": sliding_window,
        "engine": getattr(module, "attention_engine", None),
        "kept": getattr(module, "attention_kept", None),
    }
    if context_rows is not None:
        return context_attention(query, key, value, s_aux, rows=context_rows, **settings), None
    if attention_mask is not None and attention_mask.ndim == 4:
        return masked_attention(query, key, value, s_aux, attention_mask, scaling), None
    if documents is None:
        documents = find_documents(
            query.shape[0],
            query.shape[2],
            query.device,
            position_ids=position_ids,
            attention_mask=attention_mask,
            cu_seqlens=cu_seq_lens_q,
            max_length=max_length_q,
        )
    return attention(query, key, value, s_aux, documents=documents, **settings), None


def attention_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """Return the 2-d mask as it is, or a 4-d boolean one where a cache or custom rule needs it."""
    fresh = isinstance(q_offset, int) and q_offset == 0 and kv_offset == 0
    if fresh and q_length == kv_length and not use_vmap:
        return attention_mask
    kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,  # pyright: ignore[reportArgumentType]
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        use_vmap=use_vmap,
        **kwargs,
    )


def _find_documents_once(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Add ``documents`` to the decoder's keyword arguments when it runs without a cache."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is None:
        tokens = kwargs.get("inputs_embeds")
    mask = kwargs.get("attention_mask")
    if "context_rows" in kwargs or "paged" in kwargs:
        return None
    # The cache's name up to transformers 5.23, and from 5.24 on.
    cached = any(kwargs.get(name) is not None for name in ("past_key_values", "cache"))
    if tokens is None or cached or isinstance(mask, Mapping):
        return None
    if isinstance(mask, Tensor) and (mask.ndim != 2 or mask.shape[1] != tokens.shape[1]):
        return None
    documents = find_documents(
        tokens.shape[0],
        tokens.shape[1],
        tokens.device,
        position_ids=kwargs.get("position_ids"),
        attention_mask=mask,
        cu_seqlens=kwargs.get("cu_seq_lens_q"),
        max_length=kwargs.get("max_length_q"),
    )
    return args, {**kwargs, "documents": documents}


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, visible: Tensor, scaling: float
) -> Tensor:
    """Return attention under an explicit mask: the path of decoding, a few queries at a time.

    ``visible`` is boolean, or additive as somebody else's 4-d mask may be.
    """
    groups, queries = key.shape[1], query.shape[2]
    # Autocast would multiply in bf16 what is widened here.
    with without_autocast(query.device):
        part = query.float().unflatten(1, (groups, -1))
        sizes = (part.shape[2], queries)
        # Heads of a group fold into rows: broadcasting would copy keys and values for each of them.
        scores = (part.flatten(2, 3) @ _widened(key).mT * scaling).unflatten(2, sizes)
        if visible.dtype == torch.bool:
            scores = scores.masked_fill(~visible.unsqueeze(2), float("-inf"))
        else:
            scores = scores + visible.unsqueeze(2)
        sink = sinks.float().view(1, groups, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]
        out = (weights.flatten(2, 3) @ _widened(value)).unflatten(2, sizes)
    return out.flatten(1, 2).transpose(1, 2).to(query.dtype).contiguous()


def _widened(values: Tensor) -> Tensor:
    """Return ``values`` in fp32 and in order, in one copy at most; a product copies the rest."""
    return values.to(torch.float32, memory_format=torch.contiguous_format)


def _refuse(dropout: float, kwargs: Mapping[str, Any]) -> None:
    if dropout:
        raise ValueError(f"attention_dropout is {dropout}; gpt-oss has none, set it to 0")
    if kwargs.get("output_attentions"):
        raise ValueError("output_attentions needs S x S weights; load with attention 'eager'")
    if kwargs.get("is_causal") is False:
        raise ValueError("gpt-oss attends causally; is_causal=False is not supported")


def _compute_dtype(decoder: Any) -> torch.dtype:
    """Return the dtype of the hidden states: that of the embeddings, which are never packed."""
    return decoder.get_input_embeddings().weight.dtype


AttentionInterface.register(ATTENTION_IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(ATTENTION_IMPLEMENTATION, attention_mask)
