"""A tensor in a file: what it is, where it lies, and the rows of it that lie together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of one tensor: ``TensorSpec("lm_head.weight", bf16, (201088, 64))``."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor inside a file.

    Attributes:
        spec: Name, dtype and shape.
        offset: Where its data begins, in bytes from the start of the file.
    """

    spec: TensorSpec
    offset: int

    def named(self, name: str) -> TensorEntry:
        """Return the same bytes under another name."""
        return replace(self, spec=replace(self.spec, name=name))

    def rows(self, name: str, start: int, stop: int) -> TensorEntry:
        """Return ``tensor[start:stop]`` as a tensor of its own, at its place in the file."""
        shape = self.spec.shape[1:]
        row = prod(shape) * self.spec.dtype.itemsize
        spec = TensorSpec(name, self.spec.dtype, (stop - start, *shape))
        return TensorEntry(spec, self.offset + start * row)

    def each_row(self, name: str) -> Iterator[TensorEntry]:
        """Yield ``tensor[0]``, ``tensor[1]`` and so on, at their places in the file."""
        for row in range(self.spec.shape[0]):
            part = self.rows(name, row, row + 1)
            yield replace(part, spec=replace(part.spec, shape=part.spec.shape[1:]))


class TensorFile(Protocol):
    """An opened file that gives the tensors at its places; a ``SafetensorsFile`` is one."""

    path: Path
    entries: dict[str, TensorEntry]

    def read_entry(self, entry: TensorEntry) -> Tensor:
        """Return the tensor at a place."""
        ...

    def prefetch_entry(self, entry: TensorEntry) -> None:
        """Ask the kernel to read a place ahead of its use."""
        ...
