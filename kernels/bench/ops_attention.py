"""``bench.py --op attention``: attention with sinks, our engines beside transformers' ways.

Shapes are gpt-oss's: 64 query heads on 8 key-value heads of size 64, one row, a full layer and one
with a window of 128. The error is the worst relative RMS of the output and the four gradients
against float64, at 512 tokens. The backward's time is that of forward and backward less the
forward's. Masks are built before the clock runs. What holds scores of the whole row (eager) or
compiles for each length (flex) stops at 4,096 tokens: above it would take most of a table's time.
"""

# Legend: S tokens, Hq query heads, Hkv key-value heads, D head size.

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from gptoss_kernels.attention.attention import attention, attention_reference
from gptoss_kernels.attention.engines import ENGINE_NAMES, choose_engine
from gptoss_kernels.testing import relative_rms
from measure import attended_pairs, device_of, measure, no_figure
from torch import Tensor

TESTS = [f"attention/test_{name}.py" for name in ("attention", "documents", "engines")]
"""What must be green before a number is printed."""

HEADS, GROUPS, SIZE, WINDOW = 64, 8, 64, 128
CPU_TOKENS, ERROR_TOKENS = 136, 512
SLOW, SLOW_TOKENS = ("eager", "flex"), 4096
RIGHT = 2e-2
"""Relative RMS above which a result is wrong: bf16 roundings stay below 1e-2."""
Function = Callable[..., Tensor]
Prepare = Callable[[int, int | None], Function]
Figure = dict[str, Any]


def run(arguments: argparse.Namespace) -> None:
    """Print one table for each number of tokens and kind of layer."""
    lengths = [CPU_TOKENS] if arguments.cpu else arguments.tokens
    title = None
    for figure in figures(lengths, arguments.runs, arguments.only):
        kind = "full layer" if figure["window"] is None else f"window of {figure['window']}"
        if title != (title := f"attention, {figure['tokens']} tokens, {kind}"):
            print(f"\n{title}")
            print(f"{'':28}{'fwd ms':>9}{'bwd ms':>9}{'TFLOP/s':>16}{'peak MiB':>10}{'error':>10}")
        if "not_run" in figure:
            print(f"{figure['name']:28}{figure['not_run']}", flush=True)
            continue
        print(
            f"{figure['name']:28}{figure['forward_ms']:9.3f}{figure['backward_ms']:9.3f}"
            f"{figure['forward_tflops']:8.1f}{figure['backward_tflops']:8.1f}"
            f"{figure['peak_mib']:10.0f}{figure['error']:10.1e}",
            flush=True,
        )


def figures(
    lengths: list[int], runs: int, only: str = "", leave_out: tuple[str, ...] = ()
) -> Iterator[Figure]:
    """Yield the figures of each length, kind of layer and candidate, or why there are none."""
    found = candidates(leave_out)
    for length in lengths:
        for window in (None, WINDOW):
            for name, prepare in found:
                if only not in name:
                    continue
                figure: Figure = {"name": name, "tokens": length, "window": window}
                if isinstance(prepare, str):
                    yield figure | {"not_run": prepare}
                elif length > SLOW_TOKENS and any(slow in name for slow in SLOW):
                    yield figure | {"not_run": f"measured up to {SLOW_TOKENS} tokens only"}
                else:
                    try:
                        yield figure | one(prepare, length, window, runs)
                    except Exception as error:
                        yield figure | no_figure(name, error)


def candidates(leave_out: tuple[str, ...] = ()) -> list[tuple[str, Prepare | str]]:
    """Return names with what prepares a function, or with the reason why there is none here.

    Args:
        leave_out: Parts of names that are not even tried: flex compiles before it computes.
    """
    found: list[tuple[str, Prepare | str]] = []
    for name in ENGINE_NAMES:
        if any(part in name for part in leave_out):
            continue
        try:
            engine = choose_engine(name, device_of(), torch.bfloat16, SIZE).engine
        except ValueError as error:
            found.append((f"ours, {name}", str(error).partition(": ")[2]))
        else:
            found.append((f"ours, {name}", ours(engine)))
    flex = transformers_flex if device_of().type == "cuda" else "it needs a GPU"
    found += [("transformers eager", transformers_eager), ("transformers flex", flex)]
    return [pair for pair in found if not any(part in pair[0] for part in leave_out)]


def ours(engine: object) -> Prepare:
    def function(*leaves: Tensor, **settings: object) -> Tensor:
        return attention(*leaves, engine=engine, **settings)

    return lambda length, window: function


def transformers_eager(length: int, window: int | None) -> Function:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    rows = torch.arange(length, device=device_of())[:, None]
    columns = torch.arange(length, device=device_of())
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    mask = torch.zeros(length, length, dtype=torch.bfloat16, device=device_of())
    mask = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)[None, None]

    def function(
        query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, *, scaling: float, window: object
    ) -> Tensor:
        module = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, sinks=sinks, training=True)
        return eager_attention_forward(module, query, key, value, mask, scaling)[0]

    return function


def transformers_flex(length: int, window: int | None) -> Function:
    from torch.nn.attention.flex_attention import create_block_mask
    from transformers.integrations.flex_attention import flex_attention_forward

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        seen = column <= row
        return seen if window is None else seen & (column > row - window)

    mask = create_block_mask(visible, 1, None, length, length, device_of(), _compile=True)

    def function(
        query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, *, scaling: float, window: object
    ) -> Tensor:
        module = SimpleNamespace(training=True)
        return flex_attention_forward(module, query, key, value, mask, scaling, s_aux=sinks)[0]

    return function


def problem(length: int) -> tuple[list[Tensor], Tensor]:
    """Return query, key, value and sinks, and a gradient of the output, in bf16."""
    generator = torch.Generator(device_of()).manual_seed(0)
    shapes = [(1, heads, length, SIZE) for heads in (HEADS, GROUPS, GROUPS)] + [(HEADS,)]
    made = [
        torch.randn(shape, generator=generator, device=device_of()).bfloat16()
        for shape in (*shapes, (1, length, HEADS, SIZE))
    ]
    return made[:-1], made[-1]


def one(prepare: Prepare, length: int, window: int | None, runs: int) -> Figure:
    """Return times, rates, memory and error of one candidate."""
    settings = {"scaling": SIZE**-0.5, "window": window}
    function = prepare(length, window)
    leaves, grad = problem(length)
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def both() -> None:
        torch.autograd.grad(function(*leaves, **settings), leaves, grad)

    forward = measure(lambda: function(*leaves, **settings), runs=runs)
    total = measure(both, runs=runs)
    backward_ms = max(total.milliseconds - forward.milliseconds, 1e-6)
    flops = useful_flops(length, window)
    error = worst_error(prepare, settings)
    return {
        "forward_ms": round(forward.milliseconds, 4),
        "backward_ms": round(backward_ms, 4),
        "forward_tflops": round(flops / forward.milliseconds / 1e9, 1),
        "backward_tflops": round(2.5 * flops / backward_ms / 1e9, 1),
        "peak_mib": total.peak_bytes / 2**20,
        "error": error,
        "right": error <= RIGHT,
    }


def worst_error(prepare: Prepare, settings: dict[str, Any]) -> float:
    length = CPU_TOKENS if device_of().type == "cpu" else ERROR_TOKENS
    leaves, grad = problem(length)

    def results(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        out = function(*leaves, **settings)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out))]

    expected = results(attention_reference, [leaf.double() for leaf in leaves])
    actual = results(prepare(length, settings["window"]), leaves)
    errors = torch.tensor([relative_rms(a, e) for a, e in zip(actual, expected, strict=True)])
    return float(errors.max())  # NaN where one is


def useful_flops(length: int, window: int | None) -> float:
    """Return the forward's operations: two products over the pairs that see each other."""
    return 4 * attended_pairs(length, window) * HEADS * SIZE
