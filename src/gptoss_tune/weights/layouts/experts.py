"""Stacks of experts that no file holds as such: made of other tensors while they are read.

E experts, H hidden, I intermediate. Read as are ``gate_up_proj [E, H, 2I]``, gate and up
alternating, ``down_proj [E, I, H]`` and their biases. Stored are

* a linear layer for each expert, ``gate_up_projs.N.weight [2I, H]`` with the rows alternating (what
  Unsloth and GPTQModel train and save), or ``gate_proj``, ``up_proj`` and ``down_proj`` apart (what
  LLM Compressor makes of the stack);
* a stack in the order of OpenAI's own code, ``[E, out, in]``.

A linear layer is ``[out, in]`` wherever torch wrote it, so its order is known also where a matrix
is square. Where gate and up lie in one tensor of an unknown program, their order is not known:
such names are not taken.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.layouts.tensors import TensorEntry, TensorFile, TensorSpec

Place = tuple[TensorFile, TensorEntry]
"""Where a tensor, or a part of one, lies."""

_OF_ONE = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(?:experts\.)?(.+)\.(weight|bias)")
_ALTERNATING = {
    "gate_up_projs": "gate_up_proj",
    "gate_up": "gate_up_proj",
    "down_projs": "down_proj",
    "down": "down_proj",
}
_LAYOUTS = {
    first: f"a linear layer an expert, {family}"
    for family, pair in (
        ("`gate_up_projs.N`, `down_projs.N`", ("gate_up_projs", "down_projs")),
        ("`gate_up.N`, `down.N`", ("gate_up", "down")),
    )
    for first in pair
}
_APART = {
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "down_proj": ("down_proj", 0),
}
_HALVES = {"gate_up_proj": 2, "down_proj": 1}


@dataclass(frozen=True)
class Expert:
    """The tensor of one expert: ``experts.3.up_proj.bias`` is half 1 of the ``gate_up_proj_bias``.

    Attributes:
        stack: The release's name of the stack that it belongs to.
        number: Which expert.
        half: 0, or 1 for what alternates with it.
        halves: Tensors of one expert in that stack.
        layout: In words, how the experts lie.
    """

    stack: str
    number: int
    half: int
    halves: int
    layout: str


def expert_of(name: str) -> Expert | None:
    """Return what a tensor of the release's prefix is of a stack; ``None``: not of one expert."""
    match = _OF_ONE.fullmatch(name)
    if match is None:
        return None
    prefix, inner, kind = match.groups()
    suffix = "_bias" if kind == "bias" else ""
    first, _, second = inner.partition(".")
    if second.isdecimal() and first in _ALTERNATING:
        stack = f"{prefix}.{_ALTERNATING[first]}{suffix}"
        return Expert(stack, int(second), 0, 1, _LAYOUTS[first])
    if first.isdecimal() and second in _APART:
        projection, half = _APART[second]
        halves = _HALVES[projection]
        layout = "linear layers an expert, `N.gate_proj`, `N.up_proj`, `N.down_proj`"
        return Expert(f"{prefix}.{projection}{suffix}", int(first), half, halves, layout)
    return None


@dataclass(frozen=True)
class _Stack:
    """One stack: what it is, and of each expert the tensors that alternate in it."""

    spec: TensorSpec
    experts: tuple[tuple[Place, ...], ...]

    def read(self, start: int, stop: int) -> Tensor:
        """Return experts ``start`` to ``stop``."""
        stack = torch.empty((stop - start, *self.spec.shape[1:]), dtype=self.spec.dtype)
        for row, places in enumerate(self.experts[start:stop]):
            halves = [file.read_entry(entry) for file, entry in places]
            whole = halves[0] if len(halves) == 1 else torch.stack(halves, 1).flatten(0, 1)
            stack[row] = whole.T if whole.dim() == 2 else whole
        return stack


class StackedExperts:
    """The stacks of one checkpoint; has what a ``SafetensorsFile`` has to read tensors by.

    A stack is made of the tensors of its experts each time it is read, one expert after the other,
    so its memory is what is asked for and one expert more.
    """

    def __init__(self, path: Path) -> None:
        """Begin without a stack; ``path`` is the checkpoint's folder, for messages."""
        self.path = path
        self.entries: dict[str, TensorEntry] = {}
        self._stacks: dict[str, _Stack] = {}

    def add(self, name: str, experts: Sequence[Sequence[Place]]) -> None:
        """Add the stack ``name`` of places ``[out, in]`` or ``[out]``, one or two an expert.

        Raises:
            CheckpointError: They do not have one shape.
        """
        shapes = {entry.spec.shape for places in experts for _, entry in places}
        first = experts[0][0][1].spec
        if len(shapes) != 1 or len(first.shape) not in (1, 2):
            raise CheckpointError(
                f"{self.path}: the experts of '{name}' have the shapes "
                f"{', '.join(str(list(shape)) for shape in sorted(shapes)[:3])}; expected one of "
                "all, copy the checkpoint again"
            )
        shape = (first.shape[0] * len(experts[0]), *first.shape[1:])
        dtypes = (entry.spec.dtype for places in experts for _, entry in places)
        dtype = functools.reduce(torch.promote_types, dtypes)
        spec = TensorSpec(name, dtype, (len(experts), *reversed(shape)))
        self._stacks[name] = _Stack(spec, tuple(tuple(places) for places in experts))
        self.entries[name] = TensorEntry(spec, 0)

    def read(self, name: str) -> Tensor:
        """Return the stack ``name``."""
        return self.read_rows(name, 0, self.entries[name].spec.shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return experts ``start`` to ``stop`` of the stack ``name``."""
        return self._stacks[name].read(start, stop)

    def pieces(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes that a file would hold of the stack, an expert at a time."""
        for expert in range(self.entries[name].spec.shape[0]):
            yield self.read_rows(name, expert, expert + 1).view(-1).view(torch.uint8).numpy().data

    def first_bytes(self, name: str, count: int) -> bytes:
        """Return at most ``count`` bytes from the start of the stack."""
        found = bytearray()
        for piece in self.pieces(name):
            found += piece[: count - len(found)]
            if len(found) == count:
                break
        return bytes(found)

    def prefetch(self, name: str) -> None:
        """Ask the kernel to read the parts of a stack ahead of its use."""
        for places in self._stacks[name].experts:
            for file, entry in places:
                file.prefetch_entry(entry)

    def close(self) -> None:
        """Nothing is held open here; the files are the checkpoint's."""


def stack_experts(
    stacks: StackedExperts, config: Mapping[str, Any], found: Mapping[Expert, Place]
) -> None:
    """Add every stack that the tensors of single experts make.

    Raises:
        CheckpointError: An expert lacks a tensor, or there is one more than the configuration has.
    """
    count = config["num_local_experts"]
    for stack in dict.fromkeys(expert.stack for expert in found):
        mine = {(e.number, e.half): place for e, place in found.items() if e.stack == stack}
        halves = next(expert.halves for expert in found if expert.stack == stack)
        wanted = [(number, half) for number in range(count) for half in range(halves)]
        missing = [number for number, half in wanted if (number, half) not in mine]
        if missing or len(mine) != len(wanted):
            raise CheckpointError(
                f"{stacks.path}: '{stack}' has {len({number for number, _ in mine})} experts in "
                f"the files, config.json says {count}"
                + (f"; expert {missing[0]} lacks a tensor" if missing else "")
                + "; copy the checkpoint again"
            )
        stacks.add(stack, [[mine[number, h] for h in range(halves)] for number in range(count)])
