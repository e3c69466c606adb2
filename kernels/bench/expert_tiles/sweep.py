"""Print what tiles of tokens cost and save: planned and counted, and timed on a CPU.

    python kernels/bench/expert_tiles/sweep.py --write kernels/bench/results/expert-tiles.md

Needs no GPU. The first table plans a step of one layer of the released sizes and counts it on
tensors without values (``gptoss_tune.testing.traced``); the second runs a smaller layer on a CPU,
whole and in tiles, in one process. On a GPU: ``step.py --expert-tile``; not measured yet.
"""

# Legend: T tokens, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from gptoss_kernels.experts import experts
from gptoss_kernels.testing import LayerInputs, make_layer, make_routing, relative_rms

from gptoss_tune.plan.architecture import RELEASED
from gptoss_tune.plan.memory import model_saved, moments
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.recipe import Recipe
from gptoss_tune.testing.measured import RELEASED_LAYER
from gptoss_tune.testing.traced import AliveBytes, traced_step

LENGTHS, TILES = (4096, 32_768, 131_072), (None, 32_768, 8192)
TOKENS, SIZES = 2048, {"num_experts": 16, "hidden": 256, "intermediate": 256, "rank": 8}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="also write the tables into this file")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        "# Tiles of tokens in the expert layer",
        "",
        f"{date.today():%-d %B %Y}, {versions}, one thread of a CPU. On a GPU: not measured;",
        "`python kernels/bench/step.py --expert-tile 8192` will.",
        "",
        "## One layer of the released sizes, rank 16, `full`",
        "",
        "Beyond weights and gradients; counted from allocations of a real step without values.",
        "",
        "| layer of | tokens | tile | planned GiB | counted GiB | ratio |",
        "|---|---:|---:|---:|---:|---:|",
        *counted_rows(),
        "",
        f"## On a CPU, {TOKENS:,} tokens, H = I = {SIZES['hidden']}, E = {SIZES['num_experts']}",
        "",
        "fp32, backend torch, MXFP4 decoded expert by expert for each product, forward and",
        f"backward, medians of {arguments.repeats}. Errors against the whole call, relative RMS.",
        "",
        "| tile | seconds | ratio | peak MiB | ratio | output, dX | factors |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *timed_rows(arguments.repeats),
    ]
    print("\n".join(lines))
    if arguments.write is not None:
        arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


def counted_rows() -> list[str]:
    found = []
    for name in ("gpt-oss-20b", "gpt-oss-120b"):
        layer = replace(RELEASED_LAYER, experts=RELEASED[f"openai/{name}"].experts)
        for length in LENGTHS:
            for tile in TILES:
                if tile is not None and tile >= length:
                    continue
                setup = setup_of(layer, length, tile)
                passing, saved = moments(setup), model_saved(setup).bytes(length)
                planned = saved + passing.rerun + passing.rows + passing.scratch
                # The trace was given the layer's input, which the plan keeps.
                counted = traced_step(setup).peak + 2 * length * layer.hidden
                words = "all" if tile is None else f"{tile:,}"
                figures = f"{planned / GIB:.2f} | {counted / GIB:.2f} | {planned / counted:.3f}"
                found.append(f"| {name} | {length:,} | {words} | {figures} |")
    return found


def setup_of(layer: object, length: int, tile: int | None) -> TrainingSetup:
    recipe = Recipe.model_validate(
        {
            "model": {"name_or_path": "unused"},
            "data": {"train": "a.jsonl", "max_length": length},
            "train": {"output_dir": "run", "max_steps": 1, "expert_tile": tile},
        }
    )
    sections = (recipe.model, recipe.lora, recipe.method, recipe.data, recipe.train)
    return TrainingSetup(layer, *sections)  # pyright: ignore[reportArgumentType]


def timed_rows(repeats: int) -> list[str]:
    inputs = make_layer(
        make_routing(TOKENS, 4, SIZES["num_experts"]), dtype=torch.float32, device="cpu", **SIZES
    )
    d_out = torch.randn(TOKENS, SIZES["hidden"], generator=torch.Generator().manual_seed(1))
    whole, found = None, []
    first_seconds = first_peak = 0.0
    for tile in (None, 1024, 512, 256, 128):
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            values = step(inputs, d_out, tile)
            seconds.append(time.perf_counter() - started)
        with AliveBytes() as alive:
            values = step(inputs, d_out, tile)
        median, peak = statistics.median(seconds), alive.peak / 2**20
        if whole is None:
            whole, first_seconds, first_peak = values, median, peak
        errors = {n: relative_rms(values[n], whole[n]) for n in values}
        tokens = max(error for name, error in errors.items() if "lora" not in name)
        factors = max(error for name, error in errors.items() if "lora" in name)
        words = "all" if tile is None else f"{tile:,}"
        found.append(
            f"| {words} | {median:.2f} | {median / first_seconds:.2f} | {peak:.0f} | "
            f"{peak / first_peak:.2f} | {tokens:.1e} | {factors:.1e} |"
        )
    return found


def step(inputs: LayerInputs, d_out: torch.Tensor, tile: int | None) -> dict[str, torch.Tensor]:
    out = experts(*inputs.arguments(), recompute_gate_up=True, tile_tokens=tile)
    leaves = inputs.leaves()
    gradients = torch.autograd.grad(out, list(leaves.values()), d_out)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


if __name__ == "__main__":
    main()
