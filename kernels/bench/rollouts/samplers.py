"""Rollouts per second of the samplers `own` and `batched`, side by side in one process.

    python kernels/bench/rollouts/samplers.py
    python kernels/bench/rollouts/samplers.py --base /models/gpt-oss-20b --dtype bfloat16 --group 16

Groups of requests share a prompt; every request has a longest answer of its own, so that some end
long before others, as answers do. Both samplers get the same requests, batch and seeds and run in
turns, after a round that is not counted. The share of answers with the same tokens is told: a draw
from 201,088 nearly equal words falls to a neighbour where a product is summed in another order. In
fp32 answers with the same tokens have to have the same log-probabilities within 1e-4, or the exit
code is 1. Without --base a tiny gpt-oss is made (released
layout, MXFP4, the real vocabulary). On a CPU read the CPU seconds where other work runs beside.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_tune.model.build import build
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.batched.sampler import BatchedSampler
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.rollout.sampler import Request, Sampled
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.entrypoint import quiet_libraries
from gptoss_tune.weights import open_checkpoint

MIB = 2**20
_ROUNDING = 1e-4
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@dataclass
class Seen:
    """What a sampler showed: seconds of each round, on the clock and of the CPU, and its answers.

    Attributes:
        passes: Forward passes of a round: what decoding on a GPU costs, nearly whatever is in them.
        peak: Bytes on the GPU above what was held before; 0 without one.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    answers: list[Sampled] = field(default_factory=list)
    passes: int = 0
    peak: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="a checkpoint; left out: a tiny one is made")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe, key=value")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8, help="requests of each prompt")
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(100, 300))
    parser.add_argument("--new-tokens", type=int, nargs=2, default=(8, 64))
    parser.add_argument("--batch", type=int, default=16, help="sequences at a time")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-replay", action="store_true", help="record no experts")
    arguments = parser.parse_args()
    quiet_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    requests = made_requests(arguments)
    print(head(arguments, requests), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = made_model(Path(folder), arguments, device)
    options: dict[str, Any] = {"batch": arguments.batch, "replay": not arguments.no_replay}
    samplers = (OwnSampler(model, **options), BatchedSampler(model, **options))
    seen = [Seen(sampler.name) for sampler in samplers]
    for counted in [False] + [True] * arguments.rounds:
        for sampler, one in zip(samplers, seen, strict=True):
            one.passes = 0
            handle = model.register_forward_hook(partial(count, one))
            run(sampler, requests, arguments.temperature, device, one, counted=counted)
            handle.remove()
    lines, apart = table(seen, requests)
    print("\n".join(lines), flush=True)
    return int(not apart < _ROUNDING and arguments.dtype == "float32")


def made_requests(arguments: argparse.Namespace) -> list[Request]:
    """Return ``prompts`` groups of ``group`` requests; the same arguments give the same ones."""
    draws = np.random.default_rng(0)
    requests = []
    for _ in range(arguments.prompts):
        low, high = arguments.prompt_tokens
        prompt = tuple(draws.integers(0, 199_000, draws.integers(low, high + 1)).tolist())
        low, high = arguments.new_tokens
        for length in draws.integers(low, high + 1, arguments.group).tolist():
            requests.append(Request(prompt, length, seed=len(requests)))
    return requests


def made_model(folder: Path, arguments: argparse.Namespace, device: torch.device) -> Any:
    """Return the model of a recipe on the base, with fresh adapters, as training builds it."""
    base = arguments.base or str(tiny_checkpoint(folder / "base"))
    (folder / "rows.jsonl").write_text(ROW, encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {base}, dtype: {arguments.dtype}}}\n"
        f"data: {{train: {folder}/rows.jsonl}}\n"
        f"train: {{output_dir: {folder}/run, max_steps: 1}}\n",
        encoding="utf-8",
    )
    return build(load_recipe(recipe, arguments.set), open_checkpoint(base), device).model.train()


def count(seen: Seen, *_: Any) -> None:
    """Note a forward pass."""
    seen.passes += 1


def run(
    sampler: Any,
    requests: Sequence[Request],
    temperature: float,
    device: torch.device,
    seen: Seen,
    *,
    counted: bool,
) -> None:
    """Sample all requests once; note seconds where the round is counted."""
    gpu = device.type == "cuda"
    before = 0
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    clock, cpu = time.perf_counter(), time.process_time()
    seen.answers = sampler.sample(requests, temperature)
    if gpu:
        torch.cuda.synchronize()
        seen.peak = max(seen.peak, torch.cuda.max_memory_allocated() - before)
    if counted:
        seen.seconds.append(time.perf_counter() - clock)
        seen.cpu_seconds.append(time.process_time() - cpu)


def head(arguments: argparse.Namespace, requests: Sequence[Request]) -> str:
    """Return what is measured where."""
    lengths = [len(r.prompt) for r in requests]
    gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if gpu else "CPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return (
        f"{date.today()}, {card}, Python {platform.python_version()}, {versions}\n"
        f"{arguments.base or 'tiny base'}, {arguments.dtype}, {arguments.prompts} prompts of "
        f"{min(lengths)} to {max(lengths)} tokens x {arguments.group} requests, answers of "
        f"{arguments.new_tokens[0]} to {arguments.new_tokens[1]} tokens, {arguments.batch} at a "
        f"time, temperature {arguments.temperature:g}"
        f"{'' if gpu else ', 1 thread'}"
    )


def table(seen: Sequence[Seen], requests: Sequence[Request]) -> tuple[list[str], float]:
    """Return the lines to show, and how far log-probabilities of the same tokens are apart."""
    lines = [
        "",
        "| sampler | rollouts/s, median (least to most) | rollouts a CPU second | tokens/s "
        "| passes | peak MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for one in seen:
        rates = sorted(len(requests) / seconds for seconds in one.seconds)
        by_cpu = len(requests) / statistics.median(one.cpu_seconds)
        tokens = sum(len(answer.token_ids) for answer in one.answers)
        peak = f"{one.peak / MIB:,.0f}" if one.peak else "not measured"
        lines.append(
            f"| `{one.name}` | {statistics.median(rates):.2f} ({rates[0]:.2f} to {rates[-1]:.2f}) "
            f"| {by_cpu:.2f} | {tokens / statistics.median(one.seconds):,.0f} "
            f"| {one.passes} | {peak} |"
        )
    own, batched = seen
    clock = statistics.median(own.seconds) / statistics.median(batched.seconds)
    cpu = statistics.median(own.cpu_seconds) / statistics.median(batched.cpu_seconds)
    pairs = list(zip(own.answers, batched.answers, strict=True))
    same = [one.token_ids == other.token_ids for one, other in pairs]
    apart = max(
        (
            np.abs(a.logps - b.logps).max()
            for (a, b), equal in zip(pairs, same, strict=True)
            if equal
        ),
        default=float("nan"),
    )
    lines += [
        "",
        f"batched / own: {clock:.2f} by the clock, {cpu:.2f} by CPU seconds; {sum(same)} of "
        f"{len(same)} answers are the same tokens, log-probabilities {apart:.1e} apart at most",
    ]
    return lines, float(apart)


if __name__ == "__main__":
    sys.exit(main())
