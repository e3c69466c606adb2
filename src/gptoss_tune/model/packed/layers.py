"""``Int8Linear``, ``Nf4Linear``, ``HostLinear``, and what makes one of a weight as it is read.

The weight of a layer is packed tile by tile on the device where it will stay, before the next one
is read: the peak of loading is the packed model and one layer in full. Nothing of it is written
anywhere: a run saves adapters, and merging and exporting read the released bytes again.

The embeddings, the router and the experts are never packed here: the router decides which experts
train, the experts are in MXFP4 already, and ``model.embeddings: cpu`` takes the embeddings off the
GPU without rounding them.

V outputs, H inputs.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from gptoss_kernels import Int8Weight, PackedWeight, packed_linear, quantize_int8
from gptoss_kernels.packed_linear import TILE_ROWS, tiles
from torch import Tensor, nn

from gptoss_tune.errors import MachineError, RecipeError

Packed = Literal["int8", "nf4"]


class Int8Linear(nn.Linear):
    """``nn.Linear`` whose weight is an ``Int8Weight``; PEFT adapts it as it adapts any other.

    ``weight`` ``[V, H]`` is int8 and ``scales`` ``[V, H / 64]`` bf16. Both are cut along V by
    FSDP2, which gathers them together.
    """

    scales: nn.Parameter

    def __init__(self, packed: Int8Weight, bias: nn.Parameter | None) -> None:
        """Hold ``packed`` and the frozen ``bias`` ``[V]`` of the layer that it stands for."""
        super().__init__(packed.shape[1], packed.shape[0], bias=False, device="meta")
        self.compute_dtype = packed.dtype
        self.weight = nn.Parameter(packed.values, requires_grad=False)
        self.scales = nn.Parameter(packed.scales, requires_grad=False)
        self.bias = bias

    @property
    def packed(self) -> Int8Weight:
        """What the layer multiplies by."""
        return Int8Weight(self.weight, self.scales, self.compute_dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[..., V]`` in the compute dtype for ``input`` ``[..., H]``."""
        return packed_linear(input, self.packed, self.bias)


class Nf4Linear(nn.Linear):
    """``nn.Linear`` held in bitsandbytes' NF4, in tiles of rows that are decoded one at a time.

    Each tile is a 4-bit parameter of its own with its own statistics, so that it decodes alone: one
    for a projection of attention, 25 of 8,192 rows for the released ``lm_head``. The first is
    ``weight``. bitsandbytes' own layer is not used: without a gradient it computes with other
    kernels than with one, on a CPU in bf16 whatever the dtype, and packs its weight anew for them.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, key: str) -> None:
        """Pack ``weight`` ``[V, H]``, which decodes to its dtype; ``key`` is named in errors."""
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self._library = _bitsandbytes(key)
        self.bias = bias
        self.compute_dtype = weight.dtype
        held: list[Any] = []
        for first, stop in tiles(weight.shape[0]):
            part = weight[first:stop].detach()
            tile = self._library.nn.Params4bit(part, requires_grad=False, quant_type="nf4")
            held.append(tile.to(weight.device))
        self.weight = held[0]
        self.further_tiles = nn.ParameterList(held[1:])

    @property
    def packed(self) -> Nf4Linear:
        """What the layer multiplies by: it says its own rows."""
        return self

    @property
    def shape(self) -> torch.Size:
        """``(V, H)``."""
        return torch.Size((self.out_features, self.in_features))

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoded rows."""
        return self.compute_dtype

    @property
    def device(self) -> torch.device:
        """Where the tiles are."""
        return self.weight.device

    def rows(self, first: int, stop: int) -> Tensor:
        """Return the decoded rows ``[stop - first, H]`` of the tile that begins at ``first``.

        Raises:
            ValueError: ``first`` begins no tile, or the tile ends before ``stop``.
        """
        number, rest = divmod(first, TILE_ROWS)
        held: Any = self.weight if number == 0 else self.further_tiles[number - 1]
        if rest or stop - first > held.quant_state.shape[0]:
            raise ValueError(f"rows {first} to {stop} are not within one tile of the packed weight")
        decoded = self._library.functional.dequantize_4bit(held.data, held.quant_state)
        return decoded.to(self.compute_dtype)[: stop - first]

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[..., V]`` in the compute dtype for ``input`` ``[..., H]``."""
        return packed_linear(input, self, self.bias)


class HostLinear(nn.Module):
    """A frozen linear layer whose weight waits in host memory, from where it comes tile by tile.

    Nothing is rounded that was not before. What it costs is the bus: for each chunk of the loss the
    whole weight comes twice, 1.16 GB of the released ``lm_head`` in bf16, 0.6 in int8. The weight
    is no parameter and no buffer, as in ``HostEmbedding``, and for the same reasons.
    """

    def __init__(self, held: Tensor | Int8Weight, device: torch.device) -> None:
        """Keep ``held`` ``[V, H]`` in host memory, pinned where a GPU will read from it."""
        super().__init__()
        parts = (held,) if isinstance(held, Tensor) else (held.values, held.scales)
        pinned = device.type == "cuda"
        hosted = [part.detach().cpu() for part in parts]
        self._parts = tuple(part.pin_memory() if pinned else part for part in hosted)
        self.dtype, self.device = held.dtype, device

    @property
    def packed(self) -> HostLinear:
        """What the layer multiplies by: it says its own rows."""
        return self

    @property
    def shape(self) -> torch.Size:
        """``(V, H)``."""
        return self._parts[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes in host memory."""
        return sum(part.nbytes for part in self._parts)

    def rows(self, first: int, stop: int) -> Tensor:
        """Return the rows ``[stop - first, H]`` on ``device``; the host does not wait for them."""
        moved = [part[first:stop].to(self.device, non_blocking=True) for part in self._parts]
        if len(moved) == 1:
            return moved[0]
        return Int8Weight(moved[0], moved[1], self.dtype).rows(0, stop - first)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[..., V]`` on ``device`` for ``input`` ``[..., H]``."""
        return packed_linear(input, self)


def packed_layer(layer: nn.Linear, weight: Tensor, precision: Packed, key: str) -> nn.Linear:
    """Return what stands for ``layer`` with its ``weight`` packed, on the weight's device.

    Args:
        layer: Its bias; a weight without storage is enough.
        weight: ``[V, H]`` in the compute dtype.
        precision: In which form.
        key: The setting that asks for it, for errors.

    Raises:
        MachineError: NF4 is asked for, but bitsandbytes cannot be used here.
        RecipeError: The form cannot hold a weight of these sizes.
    """
    bias = cast("nn.Parameter | None", layer.bias)
    if precision == "int8":
        try:
            return Int8Linear(quantize_int8(weight), bias)
        except ValueError as error:
            raise RecipeError(f"{key}: int8: {error}; or set {key}: bf16") from error
    return Nf4Linear(weight, bias, key)


def head_weight(head: Any) -> Tensor | PackedWeight:
    """Return what ``lm_head`` multiplies by: its weight, or the packed form that says its rows."""
    return getattr(head, "packed", None) or head.weight


def _bitsandbytes(key: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise MachineError(
            f"{key}: nf4 needs bitsandbytes, which is not installed here; "
            f"`pip install bitsandbytes`, or set {key}: int8"
        ) from error
    return bitsandbytes
