"""Preference steps beside TRL's: time, peak bytes, adapter values, and that the losses agree.

    python kernels/bench/preference.py
    python kernels/bench/preference.py --rounds 1 --variants trl-counted ours-packed --json

A tiny gpt-oss (released layout, MXFP4, the real vocabulary) learns the same pairs by DPO, once with
TRL's ``DPOTrainer`` on transformers' own expanded model and PEFT's adapters, once as gptoss-tune
trains. Both get the same token ids, the same first factors, the same settings, all pairs in every
step, fp32 on one thread of a CPU. Variants run in turns, each in a process of its own. Losses,
margins, gradient norms and log-probabilities have to agree, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import environment
from preference_sides import VARIANTS, Case, Seen, prepare, run

from gptoss_tune.train.entrypoint import quiet_libraries

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_STEP, LATER_STEPS = 1e-5, 1e-3
"""How far figures may be apart, relative: at the start, and after steps of AdamW, whose first one
takes the sign of a gradient that is all rounding where it should be 0."""
NAMES = {
    "trl": "TRL, reference in each step",
    "trl-precomputed": "TRL, reference before",
    "trl-counted": "TRL, reference before, GPU's head",
    "trl-started": "TRL, started adapter",
    "ours": "ours, a pair a row",
    "ours-packed": "ours, packed",
    "ours-packed-started": "ours, packed, started adapter",
}
BESIDE = (
    ("ours-packed", "trl"),
    ("ours-packed", "trl-precomputed"),
    ("ours-packed", "trl-counted"),
    ("ours-packed-started", "trl-started"),
)
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=192)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=2, help="in every step")
    parser.add_argument("--steps", type=int, default=6, help="of which all after 3 are timed")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--data", default=str(REPOSITORY / "data/preferences/pairs.jsonl"))
    parser.add_argument("--json", action="store_true", help="print all figures as the last line")
    arguments = parser.parse_args()
    if arguments.steps < 4:
        parser.error("--steps: expected at least 4, the first three are not timed")
    case = Case(
        layers=arguments.layers,
        hidden=arguments.hidden,
        intermediate=arguments.intermediate,
        experts=arguments.experts,
        pairs=arguments.pairs,
        steps=arguments.steps,
        rank=arguments.rank,
        beta=0.1,
        learning_rate=2e-4,
        max_length=4096,
        data=arguments.data,
    )
    quiet_libraries()
    print(head(case), flush=True)
    runs: list[Seen] = []
    seen: list[Seen] = []
    with tempfile.TemporaryDirectory() as folder:
        forked(Path(folder, "log.txt"), prepare, Path(folder), case)
        for _ in range(arguments.rounds):
            runs += [measured(Path(folder), variant) for variant in arguments.variants]
            by_variant = ([r for r in runs if r.variant == name] for name in arguments.variants)
            seen = [joined(own) for own in by_variant]
            told = (line for line, _ in disagreements(seen))
            print("\n".join(["", *table(seen), "", *ratios(seen), "", *told, ""]), flush=True)
    if arguments.json:
        print(json.dumps({"preference": [vars(one) for one in seen]}))
    return int(not all(right for _, right in disagreements(seen)))


def head(case: Case) -> str:
    """Return what was measured where, two lines."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "peft"))
    return (
        f"{environment()}, {libraries}\n"
        f"{case.layers} layers, hidden {case.hidden}, intermediate {case.intermediate}, "
        f"{case.experts} experts, rank {case.rank}, {case.pairs} pairs a step, fp32, 1 thread"
    )


def measured(folder: Path, variant: str) -> Seen:
    """Run a variant in a process of its own and return what it showed."""
    seen: Seen = forked(folder / "log.txt", run, folder, variant)
    print(f"{NAMES[variant]}: {statistics.median(seen.seconds):.1f} s a step", flush=True)
    return seen


def forked(log: Path, target: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``target`` gives in a child that has the imports; what it says is in ``log``.

    The parent computes nothing with torch, whose threads would not live on in a child.

    Raises:
        SystemExit: The child ended without an answer.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(log, sender, target, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"no figures:\n{log.read_text(encoding='utf-8')}") from None
    finally:
        process.join()


def _answer(log: Path, sender: Any, target: Callable[..., Any], arguments: Any) -> None:
    with log.open("w", encoding="utf-8") as said, tempfile.TemporaryDirectory() as cache:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
        os.environ |= {"XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
        torch.set_num_threads(1)
        sender.send(target(*arguments))


def joined(runs: Sequence[Seen]) -> Seen:
    """Return the runs of a variant as one: all its steps, and the largest peaks.

    Raises:
        ValueError: Two of them computed other losses.
    """
    if any(one.losses != runs[0].losses for one in runs):
        raise ValueError(f"{runs[0].variant}: two runs have other losses; nothing here is random")
    return replace(
        runs[0],
        seconds=[second for one in runs for second in one.seconds],
        cpu_seconds=[second for one in runs for second in one.cpu_seconds],
        reference_seconds=statistics.median(one.reference_seconds for one in runs),
        reference_step_seconds=statistics.median(one.reference_step_seconds for one in runs),
        tensors=max(one.tensors for one in runs),
        resident=max(one.resident for one in runs),
    )


def table(seen: Sequence[Seen]) -> Iterator[str]:
    """Yield the table's lines."""
    columns = (
        "step s, median (least to most)",
        "CPU s",
        "reference s",
        "peak MiB, tensors",
        "peak MiB, process",
        "model MiB",
        "adapter values",
        "padding",
    )
    yield f"| {'variant':33} | " + " | ".join(columns) + " |"
    yield f"|{'-' * 35}|" + "|".join("-" * (len(name) + 1) + ":" for name in columns) + "|"
    for one in seen:
        seconds = one.seconds
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        reference = f"{one.reference_seconds:.1f} once"
        if one.reference_step_seconds:
            reference = f"{one.reference_step_seconds:.1f} a step"
        cells = (
            spread,
            f"{statistics.median(one.cpu_seconds):.1f}",
            reference,
            f"{one.tensors / MIB:,.0f}",
            f"{one.resident / MIB:,.0f}",
            f"{one.held / MIB:,.0f}",
            f"{one.adapter_values:,}",
            f"{1 - one.tokens / one.positions:.1%}",
        )
        padded = (f"{cell:>{len(name)}}" for cell, name in zip(cells, columns, strict=True))
        yield f"| {NAMES[one.variant]:33} | " + " | ".join(padded) + " |"


def ratios(seen: Sequence[Seen]) -> Iterator[str]:
    """Yield ours as a share of theirs."""
    by_name = {one.variant: one for one in seen}
    yield f"| {'ours / TRL':66} | step | CPU  | tensors | process |"
    yield f"|{'-' * 68}|-----:|-----:|--------:|--------:|"
    for mine, other in BESIDE:
        if mine in by_name and other in by_name:
            one, two = by_name[mine], by_name[other]
            name = f"{NAMES[mine]} / {NAMES[other]}"
            step = statistics.median(one.seconds) / statistics.median(two.seconds)
            cpu = statistics.median(one.cpu_seconds) / statistics.median(two.cpu_seconds)
            peak, process = one.tensors / two.tensors, one.resident / two.resident
            yield f"| {name:66} | {step:.2f} | {cpu:.2f} | {peak:7.2f} | {process:7.2f} |"


def disagreements(seen: Sequence[Seen]) -> Iterator[tuple[str, bool]]:
    """Yield how far each variant is from the first one with its start, and whether that is near."""
    for started in (False, True):
        same = [one for one in seen if ("started" in one.variant) == started]
        for one in same[1:]:
            first, later = apart(same[0], one)
            near = first <= FIRST_STEP and later <= LATER_STEPS
            yield (
                f"{NAMES[one.variant]} from {NAMES[same[0].variant]}: {first:.1e} apart in the "
                f"first step, {later:.1e} at most later{'' if near else ': TOO FAR'}",
                near,
            )


def apart(one: Seen, other: Seen) -> tuple[float, float]:
    """Return the largest relative difference of the first step, and of the steps after it.

    Of losses, gradient norms, log-probabilities of the chosen answers, and margins; those, which
    begin at 0, relative to the largest one where they are smaller than 1.
    """
    rows = [
        [
            abs(a - b) / scale
            for a, b, scale in (
                (one.losses[step], other.losses[step], abs(one.losses[step])),
                (one.grad_norms[step], other.grad_norms[step], abs(one.grad_norms[step])),
                (one.chosen[step], other.chosen[step], abs(one.chosen[step])),
                (one.margins[step], other.margins[step], max(1.0, abs(one.margins[step]))),
            )
        ]
        for step in range(len(one.losses))
    ]
    return max(rows[0]), max(max(row) for row in rows[1:])


if __name__ == "__main__":
    sys.exit(main())
