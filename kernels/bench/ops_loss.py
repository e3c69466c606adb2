"""``bench.py --op loss``: linear cross-entropy, ours beside the unfused one, torch's and Liger's.

H = 2880, V = 201,088 (64 and 1,024 with ``--cpu``), bf16, a frozen head, every row with loss,
forward and backward together. "bare products" is the head's product and that of its gradient with
nothing between them: the floor. Two more lines show what a prompt costs: a quarter of the rows with
loss, told to the op or not; and two what a weight costs that depends on its row's loss: asked for
inside the pass, with entropies, or with a pass for the losses before it. The error is the relative
RMS of the hidden states' gradient against float64 at 128 rows.
"""

# Legend: N rows, H hidden, V vocabulary.

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gptoss_kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from gptoss_kernels.testing import relative_rms
from measure import device_of, measure, no_figure
from torch import Tensor

TESTS = ["test_linear_cross_entropy.py", "test_row_weights.py"]
"""What must be green before a number is printed."""

HIDDEN, VOCABULARY = 2880, 201_088
CPU_ROWS, CPU_HIDDEN, CPU_VOCABULARY = 64, 64, 1024
RIGHT = 2e-2
"""Relative RMS above which a gradient is wrong: bf16 roundings stay below 1e-2."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Figure = dict[str, Any]
FLOOR = "bare products"


def run(arguments: argparse.Namespace) -> None:
    """Print one table for each number of rows."""
    title = None
    for figure in figures([CPU_ROWS] if arguments.cpu else arguments.tokens, arguments.runs):
        if title != (title := f"loss, {figure['rows']} rows"):
            print(f"\n{title}")
            print(f"{'':36}{'ms':>9}{'+-':>7}{'of floor':>10}{'peak MiB':>10}{'error':>10}")
        name = figure["name"]
        if arguments.only not in name and name != FLOOR:
            continue
        if "not_run" in figure:
            print(f"{name:36}{figure['not_run']}")
            continue
        error = "-" if figure["error"] is None else f"{figure['error']:.1e}"
        print(
            f"{name:36}{figure['ms']:9.2f}{figure['spread']:7.2f}{figure['of_floor']:8.2f} x"
            f"{figure['peak_mib']:10.0f}{error:>10}",
            flush=True,
        )


def figures(all_rows: list[int], runs: int) -> Iterator[Figure]:
    """Yield the figures of each number of rows and candidate, or why there are none."""
    for rows in all_rows:
        floor = None
        for name, loss in candidates():
            figure: Figure = {"name": name, "rows": rows}
            if isinstance(loss, str):
                yield figure | {"not_run": loss}
                continue
            try:
                found = one(name, loss, rows, runs)
            except Exception as error:
                yield figure | no_figure(name, error)
                continue
            floor = found["ms"] if name == FLOOR else floor
            yield figure | found | {"of_floor": found["ms"] / floor if floor else float("nan")}


def candidates() -> list[tuple[str, Loss | str]]:
    """Return names with functions, or with the reason why there is none here."""
    on_gpu = device_of().type == "cuda"
    return [
        (FLOOR, bare),
        ("ours, triton", ours("triton") if on_gpu else "it needs a GPU"),
        ("ours, torch", ours("torch")),
        ("ours, triton, weights by row", by_rows("triton") if on_gpu else "it needs a GPU"),
        ("ours, torch, weights by row", by_rows("torch")),
        ("ours, torch, weights in two passes", in_two_passes("torch")),
        ("ours, torch, a quarter with loss", ours("torch", share=4)),
        ("ours, torch, a quarter, told", ours("torch", share=4, told=True)),
        ("unfused, fp32 logits", unfused),
        ("torch linear_cross_entropy", torch_fused()),
        ("Liger", liger() if on_gpu else "it needs a GPU"),
    ]


def ours(backend: str, *, share: int = 1, told: bool = False) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        rows = labels.shape[0]
        weights = torch.zeros(rows, device=labels.device)
        weights[: rows // share] = 1
        return linear_cross_entropy(
            hidden,
            weight,
            labels,
            weights,
            selected_rows=rows // share if told else None,
            backend=backend,  # pyright: ignore[reportArgumentType]
        )[0]

    return loss


def by_rows(backend: str) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        ones = torch.ones(labels.shape[0], device=labels.device)
        return linear_cross_entropy(
            hidden,
            weight,
            labels,
            ones,
            row_weights=lambda losses, rows: torch.where(losses > 0, 1.0, losses.exp()),
            entropies=torch.empty_like(ones),
            backend=backend,  # pyright: ignore[reportArgumentType]
        )[0]

    return loss


def in_two_passes(backend: str) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        ones = torch.ones(labels.shape[0], device=labels.device)
        options: Any = {"backend": backend}
        with torch.no_grad():
            _, losses = linear_cross_entropy(hidden, weight, labels, ones, **options)
        weights = torch.where(losses > 0, 1.0, losses.exp())
        return linear_cross_entropy(hidden, weight, labels, weights, **options)[0]

    return loss


def unfused(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = (hidden @ weight.T).float()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def torch_fused() -> Loss | str:
    fused = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if fused is None:
        return f"not in this torch ({torch.__version__})"
    return lambda hidden, weight, labels: fused(hidden, weight, labels, reduction="sum")


def liger() -> Loss | str:
    if importlib.util.find_spec("liger_kernel") is None:
        return "not installed"
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    module = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda hidden, weight, labels: module(weight, hidden, labels)


class _Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        logits = hidden @ weight.T
        ctx.save_for_backward(logits, weight)
        return logits[0, 0].float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, weight = ctx.saved_tensors
        return logits @ weight, None


def bare(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return _Bare.apply(hidden, weight)


def problem(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, the head's weight and labels."""
    size, vocabulary = HIDDEN, VOCABULARY
    if device_of().type == "cpu":
        size, vocabulary = CPU_HIDDEN, CPU_VOCABULARY
    generator = torch.Generator(device_of()).manual_seed(0)
    kind = {"generator": generator, "device": device_of(), "dtype": torch.bfloat16}
    hidden = torch.randn(rows, size, **kind)
    weight = torch.randn(vocabulary, size, **kind).mul_(size**-0.5)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator, device=device_of())
    return hidden, weight, labels


def one(name: str, loss: Loss, rows: int, runs: int) -> Figure:
    """Return time, memory and error of one candidate."""
    hidden, weight, labels = problem(rows)
    hidden.requires_grad_()
    found = measure(lambda: torch.autograd.grad(loss(hidden, weight, labels), hidden), runs=runs)
    # Rows without loss have another gradient than the reference's, and a floor has none.
    error = None if name == FLOOR or "quarter" in name else error_of(loss)
    return {
        "ms": round(found.milliseconds, 4),
        "spread": round(found.spread, 4),
        "peak_mib": found.peak_bytes / 2**20,
        "error": error,
        "right": error is None or error <= RIGHT,
    }


def error_of(loss: Loss) -> float:
    hidden, weight, labels = problem(128)
    wide = hidden.double().requires_grad_()
    ones = torch.ones(128, dtype=torch.float64, device=hidden.device)
    truth, _ = linear_cross_entropy_reference(wide, weight.double(), labels, ones)
    (expected,) = torch.autograd.grad(truth, wide)
    hidden.requires_grad_()
    (grad,) = torch.autograd.grad(loss(hidden, weight, labels), hidden)
    return relative_rms(grad, expected)
