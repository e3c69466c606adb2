"""Compile on a CPU what a lease launches on a GPU, for a cache that travels along.

    python kernels/bench/lease/precompile.py .tcache --key-of triton-3.6.0-cp312-....whl
    python kernels/bench/lease/precompile.py .tcache --check

Every kernel goes through its real launch with a driver that launches nothing, so its signature,
constants and alignments are those of the launches to come. Compile with the version of Triton that
the GPU machine has; ``--key-of`` names the wheel installed there, where that is for another Python.
Source and its line numbers enter the key: compile again after each change of a kernel. ``--check``
moves the cache, launches all again and fails when anything is compiled.

``--tiles`` also compiles the tiles that ``tune.py`` may try, and writes those to
``tile_lists/<architecture>.json`` whose machine code has no spill, a pipelined loop and no narrow
stores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product as combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_kernels.tiles import Tiles

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), *(str(HERE.parents[2] / name) for name in ("src", "kernels"))]
KEPT = (".cubin", ".json")
"""What Triton loads; the stages on the way are ten times as large."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="a new folder")
    parser.add_argument("--arch", default="sm_90", choices=("sm_80", "sm_90", "sm_100", "sm_120"))
    parser.add_argument("--key-of", type=Path, help="Triton's wheel on the GPU machine")
    parser.add_argument("--tiles", action="store_true", help="also tune.py's, inspected")
    parser.add_argument("--only", default="", help="launches whose name contains this")
    parser.add_argument(
        "--check", action="store_true", help="launch from a moved copy of the cache"
    )
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.cache, arguments.only)
    if arguments.cache.exists():
        shutil.rmtree(arguments.cache)
    os.environ["TRITON_CACHE_DIR"] = str(arguments.cache.resolve())

    from cache_key import MADE, cache_key, key_of_wheel
    from fake_driver import launch_and_time, pretend_gpu

    key = key_of_wheel(arguments.key_of) if arguments.key_of else cache_key()
    _compile_under(key)
    started, kernels = time.perf_counter(), 0
    with pretend_gpu(arguments.arch) as fake:
        for name, launch in launches(arguments.arch):
            if arguments.only not in name:
                continue
            found, seconds = launch_and_time(fake, launch)
            kernels += len(found)
            print(f"{name}: {len(found)} kernels, {seconds:.1f} s", flush=True)
        if arguments.tiles:
            kept, tried = inspect_tiles(fake, arguments.arch)
            kernels += tried
            write_list(arguments.arch, kept)
    before, after = strip(arguments.cache)
    made = {"key": key, "architecture": arguments.arch, "kernels": kernels}
    (arguments.cache / MADE).write_text(json.dumps(made), encoding="utf-8")
    print(f"{kernels} kernels in {time.perf_counter() - started:.0f} s, ", end="")
    print(f"{before / 1e6:.1f} MB, stripped to {after / 1e6:.1f} MB")
    return 0


def check(cache: Path, only: str) -> int:
    """Launch all again from a copy in another folder; return 1 when a kernel was compiled."""
    from cache_key import MADE, unpack

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        unpack(cache, Path(folder))
        made = json.loads((cache / MADE).read_text(encoding="utf-8"))

        from fake_driver import pretend_gpu
        from triton import knobs

        _compile_under(made["key"])
        hits: list[bool] = []
        knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
        started = time.perf_counter()
        with pretend_gpu(made["architecture"]):
            for name, launch in launches(made["architecture"]):
                if only in name:
                    launch()
        seconds = time.perf_counter() - started
    print(f"{sum(hits)} kernels loaded, {len(hits) - sum(hits)} compiled, {seconds:.1f} s")
    return 0 if hits and all(hits) else 1


def _compile_under(key: str) -> None:
    """Let this process file kernels under the key of another machine."""
    from triton.runtime import cache

    cache.triton_key = lambda: key


def launches(architecture: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield names and calls of all that a lease launches."""
    import launches as steps
    import part_correct
    from gptoss_kernels.experts import engines
    from measure import SHAPES

    # torch's own product computes shapes here; its proof needs a GPU.
    engines.grouped_mm_obstacle = lambda device, dtype: None
    sizes = SHAPES["gpt-oss-20b"].hidden, SHAPES["gpt-oss-20b"].intermediate
    settings = {(tokens, e, rank, p) for tokens, e, rank, *_ in part_correct.CASES for p in (0, 1)}
    settings |= {(16384, 32, 16, 1), (4096, 32, 16, 1), (16384, 32, 16, 0)}
    for tokens, num_experts, rank, packed in sorted(settings):
        base = "MXFP4" if packed else "bf16"
        for engine in ("fused", "grouped_mm", "packed")[: 2 + packed]:
            name = f"layer, T {tokens}, E {num_experts}, r {rank}, {base}, {engine}"
            yield name, layer(tokens, num_experts, rank, bool(packed), sizes, engine=engine)
    for options in ({"merge_aware": True}, {"recompute_gate_up": True}):
        call = layer(16384, 32, 16, True, sizes, engine="fused", **options)
        yield f"layer, {next(iter(options))}", call
    # As the model calls it: fp32 factors, PEFT's layout.
    for tokens, num_experts, rank in ((16384, 32, 16), (8192, 128, 8)):
        for engine in ("fused", "grouped_mm"):
            name = f"step, T {tokens}, E {num_experts}, r {rank}, {engine}"
            case = {"tokens": tokens, "num_experts": num_experts, "rank": rank, "engine": engine}
            yield name, partial(steps.layer, architecture, **case)
    for tokens in (512, 4096, 16384):
        yield f"attention, S {tokens}", attention_call(tokens)
    for window in (steps.WINDOW, None):
        yield f"attention, documents, {window}", partial(steps.attend, architecture, window=window)
    yield "loss", partial(steps.loss, architecture)


def layer(
    tokens: int,
    num_experts: int,
    rank: int,
    packed: bool,
    sizes: tuple[int, int],
    **options: Any,
) -> Callable[[], object]:
    """Return a call of the layer of the benchmarks, whose factors are bf16, without values."""
    import torch
    from gptoss_kernels import ExpertProjection, Mxfp4Weight
    from gptoss_kernels.experts import experts

    hidden, intermediate = sizes

    def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    def projection(out: int, inner: int) -> ExpertProjection:
        weight = empty(num_experts, inner, out)
        if packed:
            shape = (num_experts, out, inner // 32)
            blocks, scales = (empty(*s, dtype=torch.uint8) for s in ((*shape, 16), shape))
            weight = Mxfp4Weight(blocks, scales)
        lora_A = empty(num_experts, rank, inner, dtype=torch.bfloat16).requires_grad_()
        lora_B = empty(num_experts, out, rank, dtype=torch.bfloat16).requires_grad_()
        return ExpertProjection(weight, empty(num_experts, out), lora_A, lora_B, scaling=2.0)

    def call() -> object:
        x, weights = empty(tokens, hidden).requires_grad_(), empty(tokens, 4).requires_grad_()
        indices = empty(tokens, 4, dtype=torch.int64)
        gate_up, down = projection(2 * intermediate, hidden), projection(hidden, intermediate)
        out = experts(x, indices, weights, gate_up, down, backend="triton", **options)
        leaves = [x, weights, gate_up.lora_A, gate_up.lora_B, down.lora_A, down.lora_B]
        return torch.autograd.grad(out, leaves, torch.empty_like(out))

    return call


def attention_call(tokens: int) -> Callable[[], object]:
    """Return a call of our attention, a full layer and one with a window."""
    import ops_attention
    import torch
    from gptoss_kernels.attention.attention import attention
    from gptoss_kernels.attention.triton_engine import TritonEngine

    heads = (ops_attention.HEADS, ops_attention.GROUPS, ops_attention.GROUPS)

    def call() -> None:
        for window in (None, ops_attention.WINDOW):
            shapes = [(1, n, tokens, ops_attention.SIZE) for n in heads] + [heads[:1]]
            kind = {"dtype": torch.bfloat16, "device": "meta"}
            leaves = [torch.empty(s, **kind).requires_grad_() for s in shapes]
            settings = {"scaling": ops_attention.SIZE**-0.5, "window": window}
            out = attention(*leaves, engine=TritonEngine(), **settings)
            torch.autograd.grad(out, leaves, torch.empty_like(out))

    return call


def candidates(product: str, n: int) -> Iterator[Tiles]:
    """Yield the tiles worth compiling for a product with N columns out."""
    from gptoss_kernels.tiles import Tiles

    if product == "skinny":
        width = max(16, 1 << (n - 1).bit_length())
        sizes = combinations((32, 64, 128), (width,), (64, 128), (4,), (3, 4))
    elif product.startswith("packed"):
        sizes = combinations((16, 32, 64), (64, 128), (64,), (4, 8), (3, 4))
    else:
        sizes = [
            (m, n, k, warps, stages)
            for m, n, k, warps in (
                *((128, 256, 64, 8), (256, 128, 64, 8), (128, 128, 64, 8), (128, 128, 64, 4)),
                *((64, 256, 64, 4), (128, 256, 32, 8), (256, 128, 32, 8)),
            )
            for stages in ((3, 4) if k == 64 else (4, 5))
        ]
    for size in sizes:
        yield Tiles(*size)
        if product in ("store", "swiglu") and size[2] == 64:
            yield Tiles(*size, tma=True)


def inspect_tiles(fake: Any, architecture: str) -> tuple[list[dict[str, Any]], int]:
    """Return the tiles that the compiler makes good code of, and how many were tried."""
    import torch
    import tune
    from gptoss_kernels.routing import route
    from machine_code import machine_code
    from measure import SHAPES

    shape, rank, kept, tried = SHAPES["gpt-oss-20b"], 16, [], 0
    routed = torch.empty((16384, shape.top_k), dtype=torch.int64, device="meta")
    routing = route(routed, shape.num_experts, backend="triton")
    for case in tune.cases(shape, rank):
        problem = tune.Problem(case, shape, routing, rank)
        for tiles in candidates(case.product, case.n):
            before = {id(kernel): kernel.launches for kernel in fake.compiled}
            problem.run(tiles)
            # Be it new or known from a layer; a tile map of its own may be new as well.
            (product,) = [
                kernel
                for kernel in fake.compiled
                if "grouped" in kernel.name and kernel.launches > before.get(id(kernel), 0)
            ]
            code, tried = machine_code(product.machine_code(), architecture), tried + 1
            reason = _reason(code)
            print(f"{case.product} [{case.n}, {case.k}] {tiles}: {reason or 'kept'}, {code}")
            if reason is None:
                key = {"product": case.product, "turned": case.turned, "n": case.n, "k": case.k}
                taken = replace(tiles, programs=code.programs)
                kept.append(key | {"tiles": asdict(taken), "registers": code.registers})
    return kept, tried


def _reason(code: Any) -> str | None:
    """Return why a tile is not worth a GPU's time."""
    if code.programs < 1:
        return f"does not fit: {code.registers} registers, {code.shared} bytes shared"
    if code.spilled:
        return f"spills {code.spilled} bytes"
    if code.copy_waits and not any(code.copy_waits):
        return "waits for every copy"
    if code.product_waits and not any(code.product_waits):
        return "waits for every product"
    if code.stores.get(2):
        return "stores single bf16 values"
    return None


def write_list(architecture: str, kept: list[dict[str, Any]]) -> None:
    import triton
    import tune

    tune.TILE_LISTS.mkdir(exist_ok=True)
    file = tune.TILE_LISTS / f"{architecture}.json"
    entries = ",\n".join(json.dumps(entry) for entry in kept)  # a line each
    version = json.dumps(triton.__version__)
    file.write_text(f'{{"triton": {version}, "tiles": [\n{entries}\n]}}\n', encoding="utf-8")
    print(f"wrote {len(kept)} tiles to {file}")


def strip(cache: Path) -> tuple[int, int]:
    """Delete what Triton does not load; return the bytes before and after."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    before = sum(path.stat().st_size for path in files)
    for path in files:
        if path.suffix not in KEPT:
            path.unlink()
    return before, sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
