"""Attention and loss as they are launched for gpt-oss, to be compiled without a GPU.

Both sizes of gpt-oss share 64 query heads on 8 key-value heads of size 64, H = 2880 and the
vocabulary, so one variant stands for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gptoss_kernels._triton import _attention, _attention_backward, _cross_entropy
from gptoss_kernels.attention_triton import Tile, choose_attention_tiles

SHARED_KIB = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
_FP32 = ("lse_ptr", "delta_ptr", "scales_ptr", "losses_ptr")
_OTHER = {
    "first_key_ptr": "*i32",
    "last_query_ptr": "*i32",
    "targets_ptr": "*i64",
    "scaling": "fp32",
    "scaling_log2": "fp32",
    "z_loss": "fp32",
}


def attention_variants(architecture: str, variant: Callable[..., Any]) -> list[Any]:
    """Return the launches of these kernels; ``variant`` makes one, as in compile_variants."""
    tiles = choose_attention_tiles(torch.bfloat16, SHARED_KIB[architecture])
    cuts = (
        ("forward", _attention._attention_forward_kernel, tiles.forward),
        ("dK and dV", _attention_backward._attention_key_value_kernel, tiles.key_value),
        ("dQ", _attention_backward._attention_query_kernel, tiles.query),
    )
    found = [
        attention(variant, f"attention {name}, {layer}", kernel, tile, windowed)
        for name, kernel, tile in cuts
        for layer, windowed in (("window", True), ("full", False))
    ]
    delta = _attention_backward._attention_delta_kernel
    loss = _cross_entropy._cross_entropy_kernel
    return [
        *found,
        row_wise(variant, "attention delta", delta, {"HEAD_SIZE": 64, "BLOCK_M": 128}, 4),
        row_wise(variant, "cross-entropy", loss, {"WITH_GRAD": True, "BLOCK_V": 8192}, 8),
    ]


def attention(
    variant: Callable[..., Any], name: str, kernel: Any, tile: Tile, windowed: bool
) -> Any:
    constants = {
        "GROUP": 8,
        "HAS_WINDOW": windowed,
        "HEAD_SIZE": 64,
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
    }
    return variant(
        name, kernel, constants, types(kernel), tile.warps, tile.stages, tensor_cores=True
    )


def row_wise(
    variant: Callable[..., Any], name: str, kernel: Any, constants: dict[str, Any], warps: int
) -> Any:
    return variant(name, kernel, constants, types(kernel), warps)


def types(kernel: Any) -> dict[str, str]:
    found = {name: "*bf16" for name in kernel.arg_names if name.endswith("_ptr")}
    found |= {name: "*fp32" for name in kernel.arg_names if name in _FP32}
    return found | {name: kind for name, kind in _OTHER.items() if name in kernel.arg_names}
