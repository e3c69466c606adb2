"""``bench.py --op attention``: attention with sinks, our engines beside transformers' ways.

Shapes are gpt-oss's: 64 query heads on 8 key-value heads of size 64, one row, a full layer and one
with a window of 128. The error is the worst relative RMS of the output and the four gradients
against float64, at 512 tokens. The backward's time is that of forward and backward less the
forward's.
"""

# Legend: S tokens, Hq query heads, Hkv key-value heads, D head size.

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace

import torch
from gptoss_kernels.attention import attention, attention_reference
from gptoss_kernels.attention_engines import ENGINE_NAMES, choose_engine
from gptoss_kernels.testing import relative_rms
from measure import device_of, measure
from torch import Tensor

TESTS = ["test_attention.py", "test_attention_documents.py", "test_attention_engines.py"]
"""What must be green before a number is printed."""

HEADS, GROUPS, SIZE, WINDOW = 64, 8, 64, 128
CPU_TOKENS = 128
Function = Callable[..., Tensor]


def run(arguments: argparse.Namespace) -> None:
    """Print one table for each number of tokens and kind of layer."""
    for length in [CPU_TOKENS] if arguments.cpu else arguments.tokens:
        for window in (None, WINDOW):
            kind = "full layer" if window is None else f"window of {window}"
            print(f"\nattention, {length} tokens, {kind}")
            print(f"{'':28}{'fwd ms':>9}{'bwd ms':>9}{'TFLOP/s':>16}{'peak MiB':>10}{'error':>10}")
            for name, found in candidates():
                if arguments.only in name:
                    _print(name, found, length, window, arguments.runs)


def candidates() -> list[tuple[str, Function | str]]:
    """Return names with functions, or with the reason why there is none here."""
    found: list[tuple[str, Function | str]] = []
    for name in ENGINE_NAMES:
        try:
            engine = choose_engine(name, device_of(), torch.bfloat16, SIZE).engine
        except ValueError as error:
            found.append((f"ours, {name}", str(error).partition(": ")[2]))
        else:
            found.append((f"ours, {name}", ours(engine)))
    flex = transformers_flex if device_of().type == "cuda" else "it needs a GPU"
    return [*found, ("transformers eager", transformers_eager), ("transformers flex", flex)]


def ours(engine: object) -> Function:
    def function(*leaves: Tensor, **settings: object) -> Tensor:
        return attention(*leaves, engine=engine, **settings)

    return function


def transformers_eager(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, *, scaling: float, window: int | None
) -> Tensor:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    length = query.shape[2]
    rows = torch.arange(length, device=query.device)[:, None]
    columns = torch.arange(length, device=query.device)
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    mask = torch.zeros(length, length, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(hidden, torch.finfo(query.dtype).min)[None, None]
    module = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, sinks=sinks, training=True)
    return eager_attention_forward(module, query, key, value, mask, scaling)[0]


def transformers_flex(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, *, scaling: float, window: int | None
) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask
    from transformers.integrations.flex_attention import flex_attention_forward

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        seen = column <= row
        return seen if window is None else seen & (column > row - window)

    length = query.shape[2]
    mask = create_block_mask(visible, 1, None, length, length, query.device, _compile=True)
    module = SimpleNamespace(training=True)
    return flex_attention_forward(module, query, key, value, mask, scaling, s_aux=sinks)[0]


def problem(length: int) -> tuple[list[Tensor], Tensor]:
    """Return query, key, value and sinks, and a gradient of the output, in bf16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, SIZE) for heads in (HEADS, GROUPS, GROUPS)] + [(HEADS,)]
    made = [
        torch.randn(shape, generator=generator).to(device_of(), torch.bfloat16)
        for shape in (*shapes, (1, length, HEADS, SIZE))
    ]
    return made[:-1], made[-1]


def _print(name: str, function: Function | str, length: int, window: int | None, runs: int) -> None:
    if isinstance(function, str):
        print(f"{name:28}{function}")
        return
    settings = {"scaling": SIZE**-0.5, "window": window}
    leaves, grad = problem(length)
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def both() -> None:
        torch.autograd.grad(function(*leaves, **settings), leaves, grad)

    try:
        forward = measure(lambda: function(*leaves, **settings), runs=runs)
        total = measure(both, runs=runs)
    except torch.OutOfMemoryError:
        print(f"{name:28}out of memory")
        return
    backward_ms = max(total.milliseconds - forward.milliseconds, 1e-6)
    flops = useful_flops(length, window)
    rates = (flops / forward.milliseconds / 1e9, 2.5 * flops / backward_ms / 1e9)
    print(
        f"{name:28}{forward.milliseconds:9.3f}{backward_ms:9.3f}"
        f"{rates[0]:8.1f}{rates[1]:8.1f}{total.peak_bytes / 2**20:10.0f}"
        f"{worst_error(function, settings):10.1e}",
        flush=True,
    )


def worst_error(function: Function, settings: dict[str, object]) -> float:
    leaves, grad = problem(CPU_TOKENS if device_of().type == "cpu" else 512)

    def results(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        out = function(*leaves, **settings)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out))]

    expected = results(attention_reference, [leaf.double() for leaf in leaves])
    actual = results(function, leaves)
    return max(relative_rms(a, e) for a, e in zip(actual, expected, strict=True))


def useful_flops(length: int, window: int | None) -> float:
    """Return the forward's operations: two products over the pairs that see each other."""
    window = length if window is None else min(window, length)
    pairs = length * window - window * (window - 1) / 2
    return 4 * pairs * HEADS * SIZE
