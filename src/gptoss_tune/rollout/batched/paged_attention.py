"""Attention of requests that share a forward pass, with keys and values in pages.

transformers' continuous batching lays the new tokens of all requests behind each other in one row
and keeps keys and values in a paged cache. It refuses attention that it does not know, so this is
an implementation of its own name, registered beside the one that trains; ``paged`` switches a model
to it and back. What a query sees is exact: its own request, causally, the window counted as in
training, and the sink in every softmax.

Three kinds of requests come together, and each is computed as its equivalent elsewhere: a prompt
that begins goes through the engine that trains, as a document of a packed row; a token that
continues goes through the explicit mask of decoding, all of them in one product; and a piece of a
prompt that is longer than a pass may be goes through the exact torch engine, with the keys before
it.

T new tokens of all requests, Tk their keys with those of the cache, n requests, Hq query heads, Hkv
key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gptoss_kernels.attention.attention import Documents, attention, find_documents
from gptoss_kernels.attention.eager import EagerEngine
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from gptoss_tune.model.attention import masked_attention

PAGED_IMPLEMENTATION = "gptoss_tune_paged"


@dataclass(frozen=True)
class Piece:
    """The new tokens of one request in a pass.

    Attributes:
        start: The first of them in the row.
        length: How many there are.
        past: How many of the request came in passes before.
    """

    start: int
    length: int
    past: int


class PagedPass:
    """One forward pass: which tokens are whose, and the cache.

    Attributes:
        beginning: Numbers in the row of the tokens of requests that begin, ``[Tb]``; ``None``:
            there are none.
        documents: Those tokens as documents of a packed row.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        cache: Any,
        indices: dict[str, Any],
        device: torch.device,
    ) -> None:
        """Sort the pieces by how they are computed.

        Args:
            pieces: In the order of the row.
            cache: A ``PagedAttentionCache``.
            indices: ``cu_seq_lens_k``, ``max_length_k``, ``read_index`` and ``write_index`` of the
                pass, as transformers' continuous batching makes them.
            device: Where the model computes.
        """
        self._pieces, self._cache, self._indices, self._device = pieces, cache, indices, device
        begins = [piece for piece in pieces if not piece.past]
        self.continuing = [n for n, p in enumerate(pieces) if p.past and p.length == 1]
        self.partial = [n for n, p in enumerate(pieces) if p.past and p.length > 1]
        self.beginning, self.documents = None, None
        if begins:
            numbers = [range(p.start, p.start + p.length) for p in begins]
            self.beginning = self._tensor([token for tokens in numbers for token in tokens])
            ends = torch.tensor([0, *(p.length for p in begins)]).cumsum(0)
            self.documents = find_documents(
                1,
                int(ends[-1]),
                device,
                cu_seqlens=ends,
                max_length=max(p.length for p in begins),
            )
        self._seen: dict[int | None, _Seen] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``[1, Hkv, T, D]`` into the cache; return ``[1, Hkv, Tk, D]``, with what it had."""
        dtype = self._cache.dtype
        return self._cache.update(
            key.to(dtype), value.to(dtype), layer_idx=layer, kwargs=dict(self._indices)
        )

    def seen(self, window: int | None) -> _Seen:
        """Return which of the ``Tk`` keys belong to whom, in layers with ``window``."""
        if window not in self._seen:
            self._seen[window] = self._find(window)
        return self._seen[window]

    def _find(self, window: int | None) -> _Seen:
        pasts = [p.past if window is None else min(p.past, window - 1) for p in self._pieces]
        starts, lengths, place = [], [], 0
        for piece, past in zip(self._pieces, pasts, strict=True):
            starts.append(place)
            lengths.append(past + piece.length)
            place += past + piece.length
        seen = _Seen(starts, lengths)
        if self.continuing:
            longest = max(lengths[n] for n in self.continuing)
            columns = torch.arange(longest)
            first = torch.tensor([starts[n] for n in self.continuing])[:, None]
            length = torch.tensor([lengths[n] for n in self.continuing])[:, None]
            seen.keys = (first + columns.minimum(length - 1)).to(self._device)
            seen.visible = (columns < length)[:, None, None].to(self._device)
            seen.queries = self._tensor([self._pieces[n].start for n in self.continuing])
        return seen

    def piece(self, number: int) -> Piece:
        """Return one of the pieces."""
        return self._pieces[number]

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)


@dataclass
class _Seen:
    """The keys of a pass in the layers of one kind.

    Attributes:
        starts: By piece, its first key among the ``Tk``.
        lengths: By piece, how many it has.
        queries: ``[n]``, the row's numbers of the tokens that continue a request.
        keys: ``[n, longest]``, the keys of each; the last one repeats where it has fewer.
        visible: ``[n, 1, 1, longest]`` bool, which of them are its own.
    """

    starts: list[int]
    lengths: list[int]
    queries: Tensor = field(default_factory=lambda: torch.empty(0))
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    visible: Tensor = field(default_factory=lambda: torch.empty(0))


def paged_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    s_aux: Tensor,
    sliding_window: int | None = None,
    paged: PagedPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention output of one layer, as transformers' ``AttentionInterface`` asks.

    Args:
        module: The layer.
        query: ``[1, Hq, T, D]`` after rotation.
        key: ``[1, Hkv, T, D]``.
        value: As ``key``.
        attention_mask: ``None``; ``paged`` knows who sees what.
        scaling: Factor of the scores.
        s_aux: The sinks ``[Hq]``.
        sliding_window: Keys a query sees, itself included; ``None`` in full layers.
        paged: The pass.
        kwargs: Of the model's other layers; ignored.

    Returns:
        ``[1, T, Hq, D]`` and no attention weights.

    Raises:
        ValueError: Called without ``paged``.
    """
    if paged is None:
        raise ValueError(f"{PAGED_IMPLEMENTATION} computes passes of BatchedSampler alone")
    layer: Any = module
    keys, values = paged.extend(layer.layer_idx, key, value)
    out = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    seen = paged.seen(sliding_window)
    settings: dict[str, Any] = {"scaling": scaling, "window": sliding_window}
    tokens = paged.beginning
    if tokens is not None:
        out[:, tokens] = attention(
            query[:, :, tokens],
            key[:, :, tokens],
            value[:, :, tokens],
            s_aux,
            documents=paged.documents,
            engine=getattr(layer, "attention_engine", None),
            **settings,
        )
    if paged.continuing:
        out[0, seen.queries] = masked_attention(
            query[0][:, seen.queries].transpose(0, 1)[:, :, None],
            keys[0][:, seen.keys].transpose(0, 1),
            values[0][:, seen.keys].transpose(0, 1),
            s_aux,
            seen.visible,
            scaling,
        )[:, 0]
    for number in paged.partial:
        piece = paged.piece(number)
        rows = slice(piece.start, piece.start + piece.length)
        columns = slice(seen.starts[number], seen.starts[number] + seen.lengths[number])
        out[:, rows] = attention(
            query[:, :, rows],
            keys[:, :, columns],
            values[:, :, columns],
            s_aux,
            documents=_one_run(piece.length, seen.lengths[number], query.device),
            engine=EagerEngine(),
            **settings,
        )
    return out, None


def _one_run(queries: int, keys: int, device: torch.device) -> Documents:
    """Return the run of the last ``queries`` of ``keys`` tokens."""
    first = torch.zeros(1, queries, dtype=torch.int32, device=device)
    return Documents(first, torch.full((1, keys), queries - 1, dtype=torch.int32, device=device))


def no_mask(**kwargs: Any) -> None:
    """Return no mask, as transformers' ``AttentionMaskInterface`` allows."""


@contextmanager
def paged(model: nn.Module) -> Iterator[None]:
    """Let ``model`` compute passes with pages, and as before afterwards.

    Args:
        model: gpt-oss after ``set_attention``.
    """
    (decoder,) = (m for m in model.modules() if type(m).__name__ == "GptOssModel")
    decoder: Any
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(PAGED_IMPLEMENTATION)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


AttentionInterface.register(PAGED_IMPLEMENTATION, paged_attention_forward)
AttentionMaskInterface.register(PAGED_IMPLEMENTATION, no_mask)
