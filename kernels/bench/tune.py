"""Measure tiles and engines on this GPU and write ``gptoss_kernels/tuned/<gpu>.json``.

    python kernels/bench/tune.py --model gpt-oss-20b --tokens 16384

Every product of the layer is timed with every tile of ``tile_lists/<architecture>.json``: those
that were compiled and inspected without a GPU and have no spill, a pipelined loop and wide stores
(``lease/precompile.py --tiles`` writes the list). A tile that does not fit or gives other numbers
than torch, in any part of the result, is dropped with the reason. Then whole layers decide from how
many rows on each engine is the faster one. ``choose_tiles`` and ``choose_engine`` read the file.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

# As a script only: who imports this may compile for a GPU that is not here.
if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import gptoss_kernels
import triton
from gptoss_kernels import LowRankTerm, grouped_matmul_reference, swiglu_reference
from gptoss_kernels.experts import experts
from gptoss_kernels.experts.engines import Engine, find_obstacle
from gptoss_kernels.mxfp4 import Mxfp4Weight, dequantize
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.routing import Routing, route
from gptoss_kernels.testing import relative_rms
from gptoss_kernels.tiles import Product, Tiles, gpu_of
from measure import SHAPES, Shape, device_of, environment, failure, median_ms
from ops_experts import random_layer, random_mxfp4
from torch import Tensor

TOLERANCE = 2e-2
"""Relative RMS against torch: bf16 roundings stay below 1e-2, a wrong product is off by about 1."""
PART, PART_TOLERANCE = 64, 6e-2
"""Columns of a piece of a row, and the bound of its RMS error relative to the RMS of the whole: one
value of 64 that is off by half its size is seen, a row that was not written at once."""
TILE_LISTS = Path(__file__).parent / "tile_lists"
Figure = dict[str, Any]


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
        Case("skinny", rank + 1, h, gather=True),  # dYB, whose factor holds the bias as well
        Case("skinny", rank, 2 * i),
    ]
    return [*found, Case("packed_swiglu", 2 * i, h, gather=True), Case("packed", h, i)]


def space(case: Case, architecture: str) -> list[Tiles]:
    """Return the tiles to try.

    Raises:
        ValueError: No list was made for this architecture.
    """
    if architecture == "interpreter":
        return [Tiles(16, 64, 64, 4, 1), Tiles(32, 32, 32, 4, 1)]
    file = TILE_LISTS / f"{architecture}.json"
    if not file.is_file():
        made = sorted(path.stem for path in TILE_LISTS.glob("*.json"))
        raise ValueError(
            f"there are no inspected tiles for {architecture}, only for {', '.join(made) or 'none'}"
            f"; make them: python kernels/bench/lease/precompile.py --tiles --arch {architecture}"
        )
    listed = json.loads(file.read_text(encoding="utf-8"))["tiles"]
    same = [e for e in listed if (e["product"], e["turned"]) == (case.product, case.turned)]
    # Of another size of model, where this one was not compiled.
    exact = [e for e in same if (e["n"], e["k"]) == (case.n, case.k)]
    return list(dict.fromkeys(Tiles(**entry["tiles"]) for entry in exact or same))


def fault(actual: Tensor, expected: Tensor) -> str | None:
    """Return what is wrong with a result, None when nothing is.

    Args:
        actual: ``[M, N]``.
        expected: The same by torch.
    """
    unwritten = int((~torch.isfinite(actual)).sum())
    if unwritten:
        return f"{unwritten} of {actual.numel()} values are not finite"
    error = relative_rms(actual, expected)
    if not error <= TOLERANCE:
        return f"relative RMS {error:.1e}"
    scale = expected.float().square().mean().sqrt()
    difference = (actual.float() - expected.float()).square_()
    width = PART if difference.shape[1] % PART == 0 else difference.shape[1]
    worst = float(difference.unflatten(1, (-1, width)).mean(-1).max().sqrt() / scale)
    return None if worst <= PART_TOLERANCE else f"a part of a row is off by {worst:.1e}"


class Problem:
    """A case with its tensors and a way to run it with given tiles.

    The launch is the layer's own: bias and rank-r term where the layer has them, so that what is
    compiled here is what the layer takes.
    """

    def __init__(self, case: Case, shape: Shape, routing: Routing, rank: int) -> None:
        self.case, self.routing = case, routing
        device = routing.row_indices.device
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        rows = routing.row_indices.shape[0] if case.gather else routing.num_rows

        def draw(*size: int) -> Tensor:
            return torch.randn(size, device=device).to(dtype)

        self.rows = draw(rows, case.k)
        self.source: Tensor | Mxfp4Weight
        self.bias = self.low_rank = None
        if case.product == "skinny":
            self.source = self.dense = draw(shape.num_experts, case.n, case.k)
        else:
            packed = random_mxfp4(shape.num_experts, case.n, case.k, device)
            self.dense = dequantize(packed.blocks, packed.scales, dtype=dtype, backend="triton")
            self.source = self.dense.mT.contiguous().mT if case.turned else self.dense
            if case.product.startswith("packed"):
                self.source = packed
            if not case.turned:
                self.bias = draw(shape.num_experts, case.n)
            factor = draw(shape.num_experts, case.n, rank)
            self.low_rank = LowRankTerm(draw(routing.num_rows, rank), factor, 0.1)
        self.indices = routing.token_indices if case.gather else None
        # The layer's skinny products stand in rows of a multiple of 16 columns.
        width = -(-case.n // 16) * 16 if case.product == "skinny" else case.n
        self._padded = torch.empty((routing.num_rows, width), device=device, dtype=dtype)
        self.out = self._padded[:, : case.n]
        self.activation = None
        if case.product.endswith("swiglu"):
            self.activation = self.out.new_empty((routing.num_rows, case.n // 2))

    @functools.cached_property
    def expected(self) -> Tensor:
        """The result by torch."""
        return grouped_matmul_reference(
            self.rows,
            self.dense,
            self.routing.expert_offsets,
            token_indices=self.indices,
            bias=self.bias,
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
            self._padded,
            indices=self.indices,
            bias=self.bias,
            low_rank=self.low_rank,
            activation=self.activation,
        )

    def timed(self, tiles: Tiles, runs: int) -> float | str:
        """Return the time with these tiles, or why they cannot be taken."""
        self.out.fill_(float("nan"))
        if self.activation is not None:
            self.activation.fill_(float("nan"))
        try:
            self.run(tiles)
        except (triton.runtime.errors.OutOfResources, triton.CompilationError) as error:
            return failure(error)  # does not fit this card
        wrong = fault(self.out, self.expected)
        if self.activation is not None:
            wrong = wrong or fault(self.activation, swiglu_reference(self.expected))
        return wrong or median_ms(lambda: self.run(tiles), warmup=2, runs=runs)[0]


def tile_figures(
    shape: Shape, tokens: int, rank: int, runs: int, limit: int, only: str = ""
) -> Iterator[Figure]:
    """Yield the time of every tile, or why it is not taken, and each case's best under "best"."""
    scores = torch.rand((tokens, shape.num_experts), device=device_of())
    routing = route(scores.topk(shape.top_k).indices, shape.num_experts, backend="triton")
    architecture = gpu_of(device_of()).architecture
    for case in cases(shape, rank):
        if only not in case.product:
            continue
        problem = Problem(case, shape, routing, rank)
        dtype = str(problem.rows.dtype).removeprefix("torch.")
        key = {"product": case.product, "n": case.n, "k": case.k}
        key |= {"turned": case.turned, "dtype": dtype, "rank": rank}
        flops, found = 2 * routing.num_rows * case.n * case.k, []
        for tiles in space(case, architecture)[:limit]:
            timed = problem.timed(tiles, runs)
            figure: Figure = key | {"tiles": asdict(tiles)}
            if isinstance(timed, str):
                yield figure | {"not_taken": timed}
                continue
            found.append((timed, tiles))
            yield figure | {"ms": round(timed, 4), "tflops": round(flops / timed / 1e9, 1)}
        if found:
            milliseconds, tiles = min(found, key=lambda pair: pair[0])
            best = key | {"tiles": asdict(tiles), "milliseconds": round(milliseconds, 4)}
            yield {"best": best, "taken": len(found)}


ENGINE_TOKENS = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def tune_engines(
    shape: Shape, rank: int, runs: int, all_tokens: tuple[int, ...] = ENGINE_TOKENS
) -> dict[str, int] | None:
    """Return the measured limits of the engines, None without a GPU."""
    if not torch.cuda.is_available():
        return None

    def clock(tokens: int) -> Callable[[Engine], float]:
        inputs = random_layer(shape, tokens, rank)
        leaves, d_out = list(inputs.leaves().values()), torch.randn_like(inputs.hidden_states)

        def timed(engine: Engine) -> float:
            def call() -> object:
                out = experts(*inputs.arguments(), backend="triton", engine=engine)
                return torch.autograd.grad(out, leaves, d_out)

            return median_ms(call, runs=runs)[0]

        return timed

    others: list[Engine] = ["grouped_mm", "quack"]
    others = [e for e in others if find_obstacle(e, device_of(), torch.bfloat16) is None]
    return engine_limits(clock, others, all_tokens, shape.top_k)


def engine_limits(
    clock: Callable[[int], Callable[[Engine], float]],
    others: list[Engine],
    all_tokens: tuple[int, ...],
    top_k: int,
) -> dict[str, int]:
    """Return from how many rows on, and up to how many, another engine beats the fused one.

    Args:
        clock: Of a number of tokens; returns the milliseconds of a layer by engine.
        others: Engines of other libraries that nothing speaks against. One that raises is left out
            from there on, and has no limit.
        all_tokens: Ascending.
        top_k: Rows of a token.
    """
    limits, others = {"packed_max_rows": 0}, list(others)
    for tokens in all_tokens:
        timed = clock(tokens)
        # The packed engine decodes once for every tile of rows: hopeless for many.
        few: list[Engine] = ["packed"] if tokens <= 4096 else []
        times = {engine: timed(engine) for engine in ("fused", *few)}
        for engine in tuple(others):
            try:
                times[engine] = timed(engine)
            except Exception as error:  # a proof that failed, or memory
                others.remove(engine)
                limits.pop(f"{engine}_min_rows", None)
                print(f"{tokens} tokens: {engine} is left out, {failure(error)}", flush=True)
        print(f"{tokens} tokens: " + ", ".join(f"{e} {t:.2f} ms" for e, t in times.items()))
        rows, best = tokens * top_k, min(times, key=lambda engine: times[engine])
        if few and times["packed"] < times["fused"]:
            limits["packed_max_rows"] = rows
        for engine in others:
            # From some number of rows on, without a gap.
            if engine == best:
                limits.setdefault(f"{engine}_min_rows", rows)
            else:
                limits.pop(f"{engine}_min_rows", None)
    return limits


def write(
    folder: Path, shape: Shape, tokens: int, tiles: list[Figure], engines: dict[str, int] | None
) -> Path:
    """Write ``<gpu>.json`` and return its path; None for engines that were not measured."""
    measured = {"measured": environment(), "model": shape.name, "tokens": tokens}
    measured |= {"tiles": tiles}
    if engines is not None:  # or ``choose_engine`` would take it for a measurement
        measured["engines"] = engines
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{gpu_of(device_of()).name}.json"
    file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return file


def tuned_folder() -> Path:
    """Return the folder that ``choose_tiles`` reads."""
    return Path(gptoss_kernels.__file__).parent / "tuned"


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
    shape, best = SHAPES[arguments.model], []
    settings = (arguments.tokens, arguments.rank, arguments.runs, arguments.limit)
    for figure in tile_figures(shape, *settings):
        print(figure, flush=True)
        best += [figure["best"]] if "best" in figure else []
    engines = tune_engines(shape, arguments.rank, arguments.runs)
    folder = arguments.out or tuned_folder()
    print(f"wrote {write(folder, shape, arguments.tokens, best, engines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
