"""Every launch of a gpt-oss training step, made through its real path on tensors without values.

gpt-oss-20b and gpt-oss-120b share H = I = 2880, K = 4, 64 query heads on 8 key-value heads of size
64 and the vocabulary; they differ in E, which reaches the products as data only. The scenarios go
in order and a kernel belongs to the first one that launches it.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank,
# N columns out and K columns in of a product.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from fake_driver import CARDS, Compiled
from gptoss_kernels import ExpertProjection, LowRankTerm, Mxfp4Weight, swiglu
from gptoss_kernels.attention.attention import Documents, attention
from gptoss_kernels.attention.sinks import add_sinks, row_sums
from gptoss_kernels.attention.triton_engine import TritonEngine, choose_attention_tiles
from gptoss_kernels.experts import experts
from gptoss_kernels.linear_cross_entropy import linear_cross_entropy
from gptoss_kernels.mxfp4 import _launch_quantize
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.tiles import choose_tiles, gpu_of

HIDDEN = INTERMEDIATE = 2880
HEADS, KEY_VALUE_HEADS, HEAD_SIZE, WINDOW, VOCABULARY = 64, 8, 64, 128, 201_088
META = torch.device("meta")
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Scenario:
    """Some launches.

    Attributes:
        name: Added to the names of its kernels; empty for the main path.
        call: Launches them on an architecture.
    """

    name: str
    call: Callable[[str], None]


def scenarios() -> list[Scenario]:
    """Return every scenario, the main path first."""
    return [
        Scenario("", partial(layer, engine="fused")),
        Scenario("few rows", partial(layer, tokens=1024, engine="fused")),
        Scenario("in-loop", partial(layer, tokens=512, engine="packed")),
        Scenario("grouped_mm", given_products),
        Scenario("TMA", tma_products),
        Scenario("E 128", partial(layer, num_experts=128, rank=8, engine="fused")),
        Scenario("bf16 base", partial(layer, packed=False, engine="fused")),
        Scenario("tiles", partial(layer, tile_tokens=8192, engine="fused")),
        Scenario("merge-aware", partial(layer, merge_aware=True, engine="fused")),
        Scenario("no LoRA", partial(layer, rank=0, engine="fused")),
        *(Scenario(f"r {r}", partial(layer, rank=r, engine="fused")) for r in (64, 128, 256)),
        Scenario("fp16", partial(layer, dtype=torch.float16, engine="fused")),
        Scenario("fp32", partial(layer, dtype=torch.float32, engine="fused")),
        Scenario("r 128, fp32", partial(layer, dtype=torch.float32, rank=128, engine="fused")),
        Scenario("alone", passes),
        Scenario("window", partial(attend, window=WINDOW)),
        Scenario("full", partial(attend, window=None)),
        Scenario("part of a row, window", partial(attend, window=WINDOW, before=WINDOW - 1)),
        Scenario("part of a row, full", partial(attend, window=None, before=49157)),
        Scenario("sinks", sinks_of_stock_kernels),
        Scenario("", loss),
        Scenario("by rows", loss_by_rows),
    ]


def projection(
    out: int, inner: int, num_experts: int, rank: int, dtype: torch.dtype, packed: bool
) -> ExpertProjection:
    """Return a projection of a layer without values; the factors are fp32, as in training."""
    empty = partial(torch.empty, device=META)
    weight = empty(num_experts, inner, out, dtype=dtype)
    if packed:
        weight = Mxfp4Weight(
            empty(num_experts, out, inner // 32, 16, dtype=torch.uint8),
            empty(num_experts, out, inner // 32, dtype=torch.uint8),
        )
    lora_A = lora_B = None
    if rank:
        lora_A = empty(num_experts, rank, inner, requires_grad=True)
        # As PEFT holds it: [out, R * E], seen as [E, out, R].
        lora_B = empty(out, rank, num_experts, requires_grad=True).permute(2, 0, 1)
    bias = empty(num_experts, out, dtype=dtype)
    return ExpertProjection(weight, bias, lora_A, lora_B, scaling=2.0)


def layer(
    architecture: str,
    *,
    tokens: int = 16384,
    num_experts: int = 32,
    rank: int = 16,
    dtype: torch.dtype = BF16,
    packed: bool = True,
    **options: Any,
) -> None:
    """Run an expert layer forward and backward."""
    gate_up = projection(2 * INTERMEDIATE, HIDDEN, num_experts, rank, dtype, packed)
    down = projection(HIDDEN, INTERMEDIATE, num_experts, rank, dtype, packed)
    hidden = torch.empty(tokens, HIDDEN, dtype=dtype, device=META, requires_grad=True)
    weights = torch.empty(tokens, 4, dtype=dtype, device=META, requires_grad=True)
    indices = torch.empty(tokens, 4, dtype=torch.int64, device=META)
    out = experts(hidden, indices, weights, gate_up, down, backend="triton", **options)
    factors = (gate_up.lora_A, gate_up.lora_B, down.lora_A, down.lora_B)
    leaves = [hidden, weights, *(factor for factor in factors if factor is not None)]
    torch.autograd.grad(out, leaves, torch.empty_like(out))


def given_products(architecture: str) -> None:
    """Add bias, rank-r term and activation to products that torch's ``grouped_mm`` has made."""
    num_experts, rows, rank = 32, 65536, 16
    maps = TileMaps(torch.empty(num_experts + 1, dtype=torch.int32, device=META), rows)
    for columns, activated in ((2 * INTERMEDIATE, True), (HIDDEN, False)):
        out = torch.empty(rows, columns, dtype=BF16, device=META)
        tiles = choose_tiles("given", n=columns, k=HIDDEN, dtype=BF16, gpu=gpu_of(META), rank=rank)
        factor = torch.empty(num_experts, columns, rank, dtype=BF16, device=META)
        launch_product(
            out,
            None,
            maps.get(tiles.block_m, 0, num_experts),
            tiles,
            out,
            bias=torch.empty(num_experts, columns, dtype=BF16, device=META),
            low_rank=LowRankTerm(torch.empty(rows, rank, dtype=BF16, device=META), factor, 2.0),
            activation=out.new_empty(rows, columns // 2) if activated else None,
        )


def tma_products(architecture: str) -> None:
    """Multiply with matrices copied by TMA, as measured tiles may ask on Hopper and Blackwell."""
    if architecture not in ("sm_90", "sm_100"):
        return
    num_experts, tokens, rank = 32, 16384, 16
    maps = TileMaps(torch.empty(num_experts + 1, dtype=torch.int32, device=META), 4 * tokens)
    indices = torch.empty(4 * tokens, dtype=torch.int32, device=META)
    for n, k, turned in (
        (HIDDEN, INTERMEDIATE, False),
        (INTERMEDIATE, HIDDEN, True),
        (HIDDEN, 2 * INTERMEDIATE, True),
    ):
        gather = turned and k == HIDDEN
        bias = None if turned else torch.empty(num_experts, n, dtype=BF16, device=META)
        matrices = torch.empty(
            num_experts, *((k, n) if turned else (n, k)), dtype=BF16, device=META
        )
        shape = {"n": n, "k": k, "dtype": BF16, "gpu": gpu_of(META), "rank": rank}
        tiles = choose_tiles("store", turned=turned, bias=not turned, **shape)
        factor = torch.empty(num_experts, n, rank, dtype=BF16, device=META)
        launch_product(
            torch.empty(tokens if gather else 4 * tokens, k, dtype=BF16, device=META),
            matrices.mT if turned else matrices,
            maps.get(tiles.block_m, 0, num_experts),
            replace(tiles, tma=True),
            torch.empty(4 * tokens, n, dtype=BF16, device=META),
            indices=indices if gather else None,
            bias=bias,
            low_rank=LowRankTerm(
                torch.empty(4 * tokens, rank, dtype=BF16, device=META), factor, 2.0
            ),
        )


def passes(architecture: str) -> None:
    """Run what the layer does not: the activation by itself, and quantising."""
    gate_up = torch.empty(4096, 2 * INTERMEDIATE, dtype=BF16, device=META, requires_grad=True)
    out = swiglu(gate_up, backend="triton")
    torch.autograd.grad(out, gate_up, torch.empty_like(out))
    # ``quantize`` first looks for a value that is not finite; there are none to look at here.
    _launch_quantize(torch.empty(4096, HIDDEN, dtype=BF16, device=META))


def attend(architecture: str, *, window: int | None, before: int = 0) -> None:
    """Run our attention forward and backward, on packed documents.

    Args:
        architecture: One of ``CARDS``.
        window: Keys a query sees.
        before: Keys before the first query, of a part of a row that is spread over ranks.
    """
    tokens = 16384
    tiles = choose_attention_tiles(BF16, CARDS[architecture].shared_bytes >> 10)
    heads = (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
    leaves = [
        torch.empty(1, length, n, HEAD_SIZE, dtype=BF16, device=META).transpose(1, 2)
        for n, length in zip(heads, (tokens, before + tokens, before + tokens), strict=True)
    ]
    leaves = [leaf.requires_grad_() for leaf in (*leaves, torch.empty(HEADS, device=META))]
    first_key, last_query = (
        torch.empty(1, length, dtype=torch.int32, device=META)
        for length in (tokens, before + tokens)
    )
    documents = Documents(first_key, last_query)
    out = attention(
        *leaves,
        scaling=HEAD_SIZE**-0.5,
        window=window,
        documents=documents,
        engine=TritonEngine(tiles),
    )
    torch.autograd.grad(out, leaves, torch.empty_like(out))


def sinks_of_stock_kernels(architecture: str) -> None:
    """Add sinks to what an attention kernel without them returns, laid out as flash has it."""
    tokens = 16384
    out = torch.empty(1, tokens, HEADS, HEAD_SIZE, dtype=BF16, device=META)
    lse = torch.empty(HEADS, tokens, device=META).view(HEADS, 1, tokens).transpose(0, 1)
    add_sinks(out, lse, torch.empty(HEADS, dtype=BF16, device=META), backend="triton")
    row_sums(out, out, backend="triton")


def loss(architecture: str) -> None:
    """Run the loss over the vocabulary, forward with and without a gradient."""
    hidden = torch.empty(2048, HIDDEN, dtype=BF16, device=META, requires_grad=True)
    weight = torch.empty(VOCABULARY, HIDDEN, dtype=BF16, device=META)
    targets = torch.empty(2048, dtype=torch.int64, device=META)
    weights = torch.empty(2048, device=META)
    total, _ = linear_cross_entropy(
        hidden, weight, targets, weights, selected_rows=2048, backend="triton"
    )
    torch.autograd.grad(total, hidden)


def loss_by_rows(architecture: str) -> None:
    """Run the loss with weights that depend on it, a temperature and entropies."""
    hidden = torch.empty(2048, HIDDEN, dtype=BF16, device=META, requires_grad=True)
    weight = torch.empty(VOCABULARY, HIDDEN, dtype=BF16, device=META)
    total, _ = linear_cross_entropy(
        hidden,
        weight,
        torch.empty(2048, dtype=torch.int64, device=META),
        torch.empty(2048, device=META),
        temperature=0.7,
        row_weights=lambda losses, rows: losses.exp(),
        entropies=torch.empty(2048, device=META),
        selected_rows=2048,
        backend="triton",
    )
    torch.autograd.grad(total, hidden)


def name_of(kernel: Compiled) -> str:
    """Return what a kernel computes, by the words of the expert layer's formulas."""
    if kernel.name == "_grouped_matmul_kernel":
        return _product_name(kernel.constants)
    if kernel.name == "_ragged_outer_kernel":
        return _factor_name(kernel.constants)
    return kernel.name.removeprefix("_").removesuffix("_kernel").replace("_", " ")


def _product_name(constants: dict[str, Any]) -> str:
    wide, gather = 2 * INTERMEDIATE, constants["GATHER"]
    n, k, bias = constants["N"], constants["K"], constants["BIAS"]
    if n <= 256 + 16:
        of_wide = "dZB" if k == wide else "HA"
        return ("dYB and bias" if n % 16 and n > 1 else "XA or dYB") if gather else of_wide
    if n == wide:
        return "gate_up"
    if k == wide:
        return "d gate_up"
    return "down" if bias and not gather else "d down"


def _factor_name(constants: dict[str, Any]) -> str:
    if constants["GATED"]:
        return "dB down" if constants["GATHER"] else "dA down"
    return "dA gate_up" if constants["GATHER"] else "dB gate_up"
