"""The proof that somebody else's grouped product is right here: asked for, not promised.

A library's product (torch's, QuACK's) is believed after it has computed a small problem with the
hazards that routing brings. Each has broken such a kernel somewhere: experts without rows, at the
start, in the middle and at the end; row counts that are no multiple of a tile or of 8; rows past
the last offset, which the product leaves unwritten by design (pytorch issues 154557 and 193633);
matrices with N contiguous; more experts than a warp has threads. What must not be read holds NaN.

Not in it is the form whose inner axis is the rows (dW, 2-D by 2-D). There an expert without rows
has K = 0, which hung before CUTLASS 4 (pytorch issue 152668) and left garbage on Blackwell (issue
172439). This package never asks for that form: the base is frozen, and ``ragged_outer`` reduces the
gradients of the LoRA factors.
"""

# Legend: M rows, E experts, N columns out, K columns in.

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gptoss_kernels.backend import REFUSALS

TOLERANCE = 0.02
"""Relative RMS. Rounding a result to bf16 costs 0.002; a wrong product is off by about 1."""

_GPT_OSS = ((5760, 2880), (2880, 2880), (2880, 5760))
"""(N, K) of the products of gpt-oss: gate_up, down and its gradient, the gradient of gate_up."""
_SMALL = ((192, 96), (96, 96), (96, 192))
"""The same ratios for a CPU, where the product is a loop in torch."""

_COUNTS = (0, 37, 0, 203, 0)
_MANY_COUNTS = tuple(expert * 7 % 5 for expert in range(128))
_REST = 13
"""Rows past the last offset."""

GroupedProduct = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(rows [M, K], matrices [E, N, K], expert_offsets [E + 1]) -> [M, N]``."""


class Problem(NamedTuple):
    """A grouped product whose answer can be worked out expert by expert.

    Attributes:
        name: What is special about it, for a message.
        rows: ``[M, K]``, sorted by expert; NaN past the last offset.
        matrices: ``[E, N, K]``; NaN where an expert has no rows.
        expert_offsets: ``[E + 1]`` int32 on the device.
        offsets: The same as numbers.
    """

    name: str
    rows: Tensor
    matrices: Tensor
    expert_offsets: Tensor
    offsets: list[int]

    def reference(self) -> Tensor:
        """Return ``[offsets[-1], N]`` in float64, rounded to float32."""
        parts = [
            (self.rows[start:stop].double() @ self.matrices[expert].double().mT).float()
            for expert, (start, stop) in enumerate(pairwise(self.offsets))
            if start < stop
        ]
        return torch.cat(parts)

    def error(self, actual: Tensor, expected: Tensor) -> float:
        """Return the relative RMS error of the rows in use; NaN when anything in them is NaN."""
        used = actual[: self.offsets[-1]].float()
        return float((used - expected).norm() / expected.norm())


def problems(device: torch.device, dtype: torch.dtype) -> Iterator[Problem]:
    """Yield the problems; each is valid until the next, since their matrices share one buffer.

    On a GPU the buffer takes 0.15 GiB and float64 as much again, for a moment.

    Args:
        device: Where; on a GPU with the widths of gpt-oss.
        dtype: Of rows and matrices.
    """
    generator = torch.Generator(device).manual_seed(0)
    shapes = _GPT_OSS if device.type == "cuda" else _SMALL
    largest = max(columns * inner for columns, inner in shapes)
    buffer = torch.empty(len(_COUNTS) * largest, dtype=dtype, device=device)
    for columns, inner in shapes:
        for turned in (False, True):
            yield _problem(buffer, _COUNTS, columns, inner, turned, generator)
    buffer = torch.empty(len(_MANY_COUNTS) * 128 * 64, dtype=dtype, device=device)
    for turned in (False, True):
        yield _problem(buffer, _MANY_COUNTS, 128, 64, turned, generator)


def find_product_fault(
    product: GroupedProduct, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return what ``product`` computes wrongly on ``device``, None when all is right.

    Args:
        product: The grouped product.
        device: Where it will run.
        dtype: Of rows and matrices.

    Returns:
        What was wrong, for a message.
    """
    for problem in problems(device, dtype):
        expected = problem.reference()
        try:
            actual = product(problem.rows, problem.matrices, problem.expert_offsets)
        except REFUSALS as error:
            return f"it raised {type(error).__name__} with {problem.name}: {error}"
        error = problem.error(actual, expected)
        if not error <= TOLERANCE:
            return f"it is wrong by {error:.1e} with {problem.name}"
    return None


def _problem(
    buffer: Tensor,
    counts: tuple[int, ...],
    columns: int,
    inner: int,
    turned: bool,
    generator: torch.Generator,
) -> Problem:
    """Return one problem, its matrices in ``buffer``."""
    experts = len(counts)
    shape = (experts, inner, columns) if turned else (experts, columns, inner)
    stored = buffer[: experts * columns * inner].view(shape)
    stored.normal_(generator=generator)
    for expert, count in enumerate(counts):
        if not count:
            stored[expert] = float("nan")
    offsets = [sum(counts[:expert]) for expert in range(experts + 1)]
    rows = torch.empty((offsets[-1] + _REST, inner), dtype=buffer.dtype, device=buffer.device)
    rows.normal_(generator=generator)
    rows[offsets[-1] :] = float("nan")
    contiguous = "N" if turned else "K"
    return Problem(
        f"{experts} experts of [{columns}, {inner}], {contiguous} contiguous",
        rows,
        stored.mT if turned else stored,
        torch.tensor(offsets, dtype=torch.int32, device=buffer.device),
        offsets,
    )
