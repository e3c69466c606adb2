"""Every kernel of the expert layer as it is launched for gpt-oss, to be compiled without a GPU.

gpt-oss-20b and gpt-oss-120b share H = I = 2880 and K = 4; they differ in E, which reaches the
products as data only. So one variant stands for both, except where a kernel is built for E.
"""

# Legend: E experts, R rank, N columns out and K columns in of a product.

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from gptoss_kernels._triton import _combine, _grouped_matmul, _lora, _mxfp4, _routing, _swiglu
from gptoss_kernels.tiles import Gpu, Product, Tiles, choose_outer_tiles, choose_tiles

HIDDEN = INTERMEDIATE = 2880
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304}
ELEMENT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Variant:
    """One kernel with its constants, as one launch would have it."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    types: dict[str, str]
    warps: int = 4
    stages: int = 3
    tensor_cores: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def variants(architecture: str) -> list[Variant]:
    """Return every variant that is shipped for an architecture."""
    gpu = Gpu("", architecture, PROCESSORS[architecture])
    return [*products(gpu), *reductions(), *passes(), *routing(gpu)]


def products(gpu: Gpu) -> list[Variant]:
    """The grouped products: each projection, direction, source, rank and dtype in use."""
    of, wide = partial(product, gpu), 2 * INTERMEDIATE
    up = partial(of, n=wide, k=HIDDEN, gather=True, bias=True)
    down = partial(of, n=HIDDEN, k=INTERMEDIATE, bias=True)
    d_down = partial(of, kind="store", n=INTERMEDIATE, k=HIDDEN, gather=True)
    d_up = partial(of, kind="store", n=HIDDEN, k=wide)
    found = [
        up("gate_up", kind="swiglu"),
        up("gate_up, bf16 base", kind="swiglu", turned=True),
        up("gate_up, no LoRA", kind="swiglu", rank=0),
        up("gate_up, few rows", kind="swiglu", rows_per_expert=128),
        up("gate_up, grouped_mm", kind="given", gather=False, swiglu=True),
        up("gate_up, in-loop", kind="packed_swiglu"),
        down("down", kind="store"),
        down("down, bf16 base", kind="store", turned=True),
        down("down, grouped_mm", kind="given"),
        down("down, in-loop", kind="packed"),
        d_down("d down", turned=True),
        d_down("d down, bf16 base"),
        d_up("d gate_up", turned=True),
        d_up("d gate_up, bf16 base"),
        of("XA", kind="skinny", n=16, k=HIDDEN, rank=0, gather=True),
        of("HA", kind="skinny", n=16, k=INTERMEDIATE, rank=0),
        of("dYB and bias", kind="skinny", n=17, k=HIDDEN, rank=0, gather=True),
        of("dZB", kind="skinny", n=16, k=wide, rank=0),
        up("gate_up, fp16", kind="swiglu", dtype=torch.float16),
        up("gate_up, fp32", kind="swiglu", dtype=torch.float32),
    ]
    for rank in (64, 128, 256):
        found += [
            up(f"gate_up, r {rank}", kind="swiglu", rank=rank),
            d_up(f"d gate_up, r {rank}", turned=True, rank=rank),
            of(f"XA, r {rank}", kind="skinny", n=rank, k=HIDDEN, rank=0, gather=True),
            up(f"gate_up, r {rank}, fp32", kind="swiglu", rank=rank, dtype=torch.float32),
        ]
    return found


def product(
    gpu: Gpu,
    name: str,
    *,
    kind: Product,
    n: int,
    k: int,
    rank: int = 16,
    gather: bool = False,
    bias: bool = False,
    turned: bool = False,
    swiglu: bool = False,
    rows_per_expert: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
) -> Variant:
    """Return one grouped product; ``turned`` has N contiguous in the matrix instead of K."""
    tiles = choose_tiles(
        kind,
        n=n,
        k=k,
        dtype=dtype,
        gpu=gpu,
        rank=rank,
        rows_per_expert=rows_per_expert,
        turned=turned,
    )
    source = "given" if kind == "given" else "packed" if kind.startswith("packed") else "dense"
    swiglu = swiglu or kind.endswith("swiglu")
    constants = product_constants(gpu, tiles, n, k, rank) | {
        "BIAS": bias,
        "GATHER": gather,
        "SOURCE": getattr(_grouped_matmul, source.upper()).value,
        "EPILOGUE": "swiglu" if swiglu else "store",
        # Strides of 1 become constants at a launch.
        "stride_mn" if turned else "stride_mk": 1,
        "stride_fn" if turned else "stride_fr": 1,
    }
    types = product_types("*" + ELEMENT[dtype], source)
    absent = {
        "indices_ptr": not gather,
        "matrix_ptr": source == "given",
        "scales_ptr": source != "packed",
        "bias_ptr": not bias,
        "low_ptr": rank == 0,
        "factor_ptr": rank == 0,
        "activation_ptr": not swiglu,
    }
    constants |= {parameter: None for parameter, missing in absent.items() if missing}
    return Variant(
        name,
        _grouped_matmul._grouped_matmul_kernel,
        constants,
        types,
        tiles.warps,
        tiles.stages,
        tensor_cores=dtype != torch.float32 and (source != "given" or rank > 0),
    )


def product_constants(gpu: Gpu, tiles: Tiles, n: int, k: int, rank: int) -> dict[str, Any]:
    """The constants of a grouped product that follow from its shape."""
    return {
        "N": n,
        "K": k,
        "R": rank,
        "R_PAD": max(16, 1 << max(rank - 1, 0).bit_length()),
        "ALPHA": 1.702,
        "LIMIT": 7.0,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "GROUP": tiles.group,
        "PROGRAMS": gpu.processors,
        "FLATTEN": tiles.flatten,
    }


def product_types(element: str, source: str) -> dict[str, str]:
    """The types of a grouped product's arguments."""
    types = {
        "rows_ptr": element,
        "indices_ptr": "*i32",
        "matrix_ptr": "*u8" if source == "packed" else element,
        "scales_ptr": "*u8",
        "bias_ptr": element,
        "low_ptr": element,
        "factor_ptr": element,
        "scaling": "fp32",
        "out_ptr": element,
        "activation_ptr": element,
        "stride_me": "i64" if source == "dense" else "i32",
    }
    types |= {f"tile_{field}_ptr": "*i32" for field in ("expert", "start", "stop", "count")}
    return types


def reductions() -> list[Variant]:
    """The gradients of the LoRA factors."""
    half, ints = "*bf16", "*i32"
    found = []
    for name, q, rank, gather, gated in [
        ("dA gate_up", HIDDEN, 16, True, False),
        ("dB gate_up", 2 * INTERMEDIATE, 16, False, False),
        ("dB down", HIDDEN, 16, True, True),
        ("dA gate_up, r 64", HIDDEN, 64, True, False),
        ("dA gate_up, r 256", HIDDEN, 256, True, False),
    ]:
        tiles = choose_outer_tiles(rank, torch.bfloat16)
        constants = {"Q": q, "R": rank, "R_PAD": tiles.block_k, "GATHER": gather, "GATED": gated}
        constants |= {"BLOCK_Q": tiles.block_n, "BLOCK_M": tiles.block_m, "stride_oq": 1}
        constants |= {} if gated else {"gates_ptr": None}
        constants |= {} if gather else {"indices_ptr": None}
        types = {"skinny_ptr": half, "wide_ptr": half, "out_ptr": "*fp32", "gates_ptr": "*fp32"}
        types |= {"indices_ptr": ints, "expert_offsets_ptr": ints, "scaling": "fp32"}
        kernel = _lora._ragged_outer_kernel
        sizes = (tiles.warps, tiles.stages)
        found.append(Variant(name, kernel, constants, types, *sizes, tensor_cores=True))
    return found


def passes() -> list[Variant]:
    """The kernels that only move and transform."""
    half, ints = "*bf16", "*i32"
    found = []
    activation = {"ALPHA": 1.702, "LIMIT": 7.0, "BLOCK": 1024}
    row = {"gate_up_ptr": half, "d_activation_ptr": half, "d_gate_up_ptr": half}
    row |= {"activation_ptr": half, "gates_ptr": "*fp32", "share_ptr": "*fp32", "count_ptr": ints}
    backward = {"COLUMNS": INTERMEDIATE, "GATED": True} | activation
    kernel = _swiglu._swiglu_backward_kernel
    found.append(Variant("swiglu backward", kernel, backward, row))
    types = {"gate_up_ptr": half, "out_ptr": half}
    found.append(Variant("swiglu", _swiglu._swiglu_forward_kernel, activation, types))
    types = {"rows_ptr": half, "row_indices_ptr": ints, "weights_ptr": half, "out_ptr": half}
    constants = {"H": HIDDEN, "K": 4, "WEIGHTED": True, "BLOCK": 1024}
    found.append(Variant("combine", _combine._combine_kernel, constants, types))
    types = {"blocks_ptr": "*u8", "scales_ptr": "*u8", "out_ptr": half, "values_ptr": half}
    decode, quantise = _mxfp4._dequantize_kernel, _mxfp4._quantize_kernel
    found.append(Variant("decode", decode, {"BLOCK": 128}, types))
    found.append(Variant("quantise", quantise, {"BLOCK": 256}, types))
    merged = {
        "N": 2 * INTERMEDIATE,
        "K": HIDDEN,
        "R": 16,
        "PACKED": True,
        "BLOCK_N": 16,
        "BLOCK_K": 128,
    }
    merged |= {"dense_ptr": None}
    types |= {"lora_a_ptr": "*fp32", "lora_b_ptr": "*fp32", "scaling": "fp32"}
    found.append(
        Variant(
            "merge, quantise, decode",
            _mxfp4._merged_kernel,
            merged,
            types,
            options={"enable_fp_fusion": False},
        )
    )
    return found


def routing(gpu: Gpu) -> list[Variant]:
    """The routing kernels, which are built for E."""
    names = ("counts", "totals", "expert_offsets", "token_indices", "slot_indices", "row_indices")
    types = {"router_indices_ptr": "*i64"} | {f"{name}_ptr": "*i32" for name in names}
    types |= {f"tile_{field}_ptr": "*i32" for field in ("expert", "start", "stop", "count")}
    found = [
        Variant("routing scan", _routing._routing_scan_kernel, {"BLOCK": 1024}, types),
    ]
    for experts in (32, 128):
        pad = {"E": experts, "E_PAD": 2 * experts, "BLOCK": 64}
        tiles = choose_tiles(
            "store", n=HIDDEN, k=INTERMEDIATE, dtype=torch.bfloat16, gpu=gpu, rank=16
        )
        found += [
            Variant(f"routing count, E {experts}", _routing._routing_count_kernel, pad, types),
            Variant(
                f"routing scatter, E {experts}",
                _routing._routing_scatter_kernel,
                pad | {"K": 4},
                types,
            ),
            Variant(
                f"tile map, E {experts}",
                _routing._tile_map_kernel,
                pad | {"E_PAD": experts, "BLOCK_M": tiles.block_m},
                types,
            ),
        ]
    return found
