"""Measure tiles and engines on this GPU and write ``gptoss_kernels/tuned/<gpu>.json``.

    python kernels/bench/tune.py --model gpt-oss-20b --tokens 16384

Every product of the layer is timed with every tile of a small space; a tile that does not compile,
does not fit or gives other numbers than torch is dropped. Then whole projections decide from how
many rows on each engine is the faster one. ``choose_tiles`` and ``choose_engine`` read the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product as combinations
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import gptoss_kernels
import triton
from gptoss_kernels import LowRankTerm, experts, grouped_matmul_reference, swiglu_reference
from gptoss_kernels.grouped_mm import grouped_mm_obstacle
from gptoss_kernels.mxfp4 import Mxfp4Weight, dequantize
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.routing import Routing, route
from gptoss_kernels.testing import relative_rms
from gptoss_kernels.tiles import Product, Tiles, gpu_of
from measure import SHAPES, Shape, device_of, environment, median_ms
from ops_experts import random_layer, random_mxfp4
from torch import Tensor

TOLERANCE = 2e-2
"""Relative RMS against torch: bf16 roundings stay below 1e-2, a wrong tile is off by about 1."""


@dataclass(frozen=True)
class Case:
    """One product of the layer.

    Attributes:
        product: As in ``choose_tiles``.
        n: Columns out.
        k: Columns in.
        turned: The matrix has N contiguous, as in a backward product.
        gather: Rows are picked by token.
    """

    product: Product
    n: int
    k: int
    turned: bool = False
    gather: bool = False


def cases(shape: Shape, rank: int) -> list[Case]:
    """Return the products of a layer on an MXFP4 base."""
    h, i = shape.hidden, shape.intermediate
    found = [
        Case("swiglu", 2 * i, h, gather=True),
        Case("store", h, i),
        Case("store", i, h, turned=True, gather=True),
        Case("store", h, 2 * i, turned=True),
        Case("skinny", rank, h, gather=True),
        Case("skinny", rank, 2 * i),
    ]
    return [*found, Case("packed_swiglu", 2 * i, h, gather=True), Case("packed", h, i)]


def space(case: Case) -> Iterator[Tiles]:
    """Yield the tiles to try."""
    if case.product == "skinny":
        width = max(16, 1 << (case.n - 1).bit_length())
        choices = combinations((32, 64, 128), (width,), (64, 128), (4, 8), (3, 4))
    elif case.product.startswith("packed"):
        choices = combinations((16, 32, 64), (64, 128), (128, 256), (4, 8), (2, 3))
    else:
        shapes = (64, 128, 256)
        choices = combinations(shapes, shapes, (32, 64, 128), (4, 8), (3, 4, 5))
    for block_m, block_n, block_k, warps, stages in choices:
        if block_m * block_n <= 128 * 256:
            yield Tiles(block_m, block_n, block_k, warps, stages)


class Problem:
    """A case with its tensors, the answer by torch, and a way to run it with given tiles."""

    def __init__(self, case: Case, shape: Shape, routing: Routing, rank: int) -> None:
        self.case, self.routing = case, routing
        device = device_of()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        rows = int(routing.token_indices.max()) + 1 if case.gather else routing.num_rows
        self.rows = torch.randn((rows, case.k), device=device).to(dtype)
        self.source: Tensor | Mxfp4Weight
        packed = (
            random_mxfp4(shape.num_experts, case.n, case.k) if case.product != "skinny" else None
        )
        if packed is None:
            self.source = torch.randn((shape.num_experts, case.n, case.k), device=device).to(dtype)
        else:
            self.source = dequantize(packed.blocks, packed.scales, dtype=dtype, backend="triton")
        dense = self.source
        if case.turned:
            self.source = self.source.mT.contiguous().mT
        if case.product.startswith("packed") and packed is not None:
            self.source = packed
        self.low_rank = None
        if case.product != "skinny":
            low = torch.randn((routing.num_rows, rank), device=device).to(dtype)
            factor = torch.randn((shape.num_experts, case.n, rank), device=device).to(dtype)
            self.low_rank = LowRankTerm(low, factor, 0.1)
        self.indices = routing.token_indices if case.gather else None
        self.out = torch.empty((routing.num_rows, case.n), device=device, dtype=dtype)
        self.activation = None
        if case.product.endswith("swiglu"):
            self.activation = self.out.new_empty((routing.num_rows, case.n // 2))
        self.expected = grouped_matmul_reference(
            self.rows,
            dense,
            routing.expert_offsets,
            token_indices=self.indices,
            low_rank=self.low_rank,
        )

    def run(self, tiles: Tiles) -> None:
        """Compute the product."""
        maps = TileMaps(self.routing.expert_offsets, self.routing.num_rows)
        launch_product(
            self.rows,
            self.source,
            maps.get(tiles.block_m, 0, self.routing.num_experts),
            tiles,
            self.out,
            indices=self.indices,
            low_rank=self.low_rank,
            activation=self.activation,
        )

    def milliseconds(self, tiles: Tiles, runs: int) -> float | None:
        """Return the time with these tiles; None when they cannot run or compute wrongly."""
        self.out.fill_(float("nan"))
        try:
            self.run(tiles)
        except (triton.runtime.errors.OutOfResources, triton.CompilationError, RuntimeError):
            return None  # does not fit this card
        wrong = relative_rms(self.out, self.expected) > TOLERANCE
        if self.activation is not None:
            activated = swiglu_reference(self.expected)
            wrong = wrong or relative_rms(self.activation, activated) > TOLERANCE
        return None if wrong else median_ms(lambda: self.run(tiles), warmup=2, runs=runs)[0]


def tune_tiles(shape: Shape, tokens: int, rank: int, runs: int, limit: int) -> list[dict]:
    """Return the fastest tiles of every case, as entries of the file."""
    scores = torch.rand((tokens, shape.num_experts), device=device_of())
    routing = route(scores.topk(shape.top_k).indices, shape.num_experts, backend="triton")
    entries = []
    for case in cases(shape, rank):
        problem = Problem(case, shape, routing, rank)
        tried = list(space(case))[:limit]
        timed = [
            (milliseconds, tiles)
            for tiles in tried
            if (milliseconds := problem.milliseconds(tiles, runs)) is not None
        ]
        print(f"{len(timed)} of {len(tried)} tiles run and compute rightly here")
        if not timed:
            continue
        milliseconds, tiles = min(timed, key=lambda pair: pair[0])
        flops = 2 * routing.num_rows * case.n * case.k
        rate = flops / (1e9 * milliseconds)
        name = f"{case.product} [{case.n}, {case.k}]"
        print(f"{name}: {milliseconds:.3f} ms, {rate:.0f} TFLOP/s, {tiles}")
        dtype = str(problem.rows.dtype).removeprefix("torch.")
        key = {"product": case.product, "n": case.n, "k": case.k}
        key |= {"turned": case.turned, "dtype": dtype}
        entries.append(key | {"tiles": asdict(tiles), "milliseconds": round(milliseconds, 4)})
    return entries


def tune_engines(shape: Shape, rank: int, runs: int) -> dict[str, int]:
    """Return from how many rows on, and up to how many, another engine beats the fused one."""
    if not torch.cuda.is_available():
        return {}
    limits = {"packed_max_rows": 0}
    trusted = grouped_mm_obstacle(device_of(), torch.bfloat16) is None
    for tokens in (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768):
        inputs = random_layer(shape, tokens, rank)
        leaves, d_out = list(inputs.leaves().values()), torch.randn_like(inputs.hidden_states)

        def timed(engine: str, inputs=inputs, leaves=leaves, d_out=d_out) -> float:
            def call() -> object:
                out = experts(*inputs.arguments(), backend="triton", engine=engine)
                return torch.autograd.grad(out, leaves, d_out)

            return median_ms(call, runs=runs)[0]

        times = {e: timed(e) for e in ("fused", "packed", *(["grouped_mm"] if trusted else []))}
        print(f"{tokens} tokens: " + ", ".join(f"{e} {t:.2f} ms" for e, t in times.items()))
        rows = tokens * shape.top_k
        if times["packed"] < times["fused"]:
            limits["packed_max_rows"] = rows
        if trusted and times["grouped_mm"] < times["fused"]:
            limits.setdefault("grouped_mm_min_rows", rows)
        else:
            limits.pop("grouped_mm_min_rows", None)
    return limits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="gpt-oss-20b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder of the file; default: the package's tuned")
    parser.add_argument("--limit", type=int, default=10**6, help="tiles to try of each space")
    parser.add_argument("--cpu", action="store_true", help="check the script without a GPU")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu:
        print("no GPU: nothing to tune (--cpu --model tiny --limit 2 --out DIR checks the script)")
        return 3
    shape = SHAPES[arguments.model]
    tiles = tune_tiles(shape, arguments.tokens, arguments.rank, arguments.runs, arguments.limit)
    measured = {
        "measured": environment(),
        "model": shape.name,
        "tokens": arguments.tokens,
        "tiles": tiles,
        "engines": tune_engines(shape, arguments.rank, arguments.runs),
    }
    folder = arguments.out or Path(gptoss_kernels.__file__).parent / "tuned"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{gpu_of(device_of()).name}.json"
    file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
