"""``Int8Linear``, ``Nf4Head``, and the function that makes one of a weight as it is read.

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
from gptoss_kernels.packed_linear import tiles
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


class Nf4Head(nn.Module):
    """``lm_head`` in bitsandbytes' NF4, in tiles of rows that are decoded one at a time.

    Each tile is a 4-bit parameter of its own with its own statistics, so that it decodes alone:
    25 of 8,192 rows for the released vocabulary.
    """

    def __init__(self, weight: Tensor) -> None:
        """Pack ``weight`` ``[V, H]``; it decodes to its dtype."""
        super().__init__()
        bnb = _bitsandbytes("model.head_precision")
        self._shape, self.compute_dtype = weight.shape, weight.dtype
        self.tiles = nn.ParameterList()
        for first, stop in tiles(weight.shape[0]):
            part = weight[first:stop].detach().clone()  # the layer keeps a view of nothing
            held = bnb.nn.Params4bit(part, requires_grad=False, quant_type="nf4")
            self.tiles.append(held.to(weight.device))
        self._first_rows = {first: n for n, (first, _) in enumerate(tiles(weight.shape[0]))}

    @property
    def packed(self) -> Nf4Head:
        """What the layer multiplies by: it says its own rows."""
        return self

    @property
    def shape(self) -> torch.Size:
        """``(V, H)``."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoded rows."""
        return self.compute_dtype

    @property
    def device(self) -> torch.device:
        """Where the tiles are."""
        return self.tiles[0].device

    def rows(self, first: int, stop: int) -> Tensor:
        """Return the decoded rows ``[stop - first, H]`` of the tile that begins at ``first``.

        Raises:
            ValueError: ``first`` begins no tile, or the tile ends before ``stop``.
        """
        bnb: Any = _bitsandbytes("model.head_precision")
        number = self._first_rows.get(first)
        held: Any = None if number is None else self.tiles[number]
        if held is None or stop - first > held.quant_state.shape[0]:
            raise ValueError(f"rows {first} to {stop} are not within one tile of the packed head")
        decoded = bnb.functional.dequantize_4bit(held.data, held.quant_state)
        return decoded.to(self.compute_dtype)[: stop - first]

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[..., V]`` in the compute dtype for ``input`` ``[..., H]``."""
        return packed_linear(input, self)


def packed_layer(layer: nn.Linear, weight: Tensor, precision: Packed, *, head: bool) -> nn.Module:
    """Return what stands for ``layer`` with its ``weight`` packed, on the weight's device.

    Args:
        layer: Its sizes and its bias; a weight without storage is enough.
        weight: ``[V, H]`` in the compute dtype.
        precision: In which form.
        head: Whether it is ``lm_head``, which is decoded by tiles.

    Raises:
        MachineError: NF4 is asked for, but bitsandbytes cannot be used here.
        RecipeError: The form cannot hold a weight of these sizes.
    """
    bias = cast("nn.Parameter | None", layer.bias)
    key = "model.head_precision" if head else "model.linear_precision"
    if precision == "int8":
        try:
            return Int8Linear(quantize_int8(weight), bias)
        except ValueError as error:
            raise RecipeError(f"{key}: int8: {error}; or set {key}: bf16") from error
    if head:
        return Nf4Head(weight)
    bnb = _bitsandbytes(key)
    quantized = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=bias is not None,
        compute_dtype=weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    options: dict[str, Any] = {"quant_type": "nf4", "module": quantized}
    quantized.weight = bnb.nn.Params4bit(weight, requires_grad=False, **options).to(weight.device)
    quantized.bias = bias
    return quantized


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
