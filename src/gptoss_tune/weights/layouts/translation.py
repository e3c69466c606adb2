"""The tensors of a checkpoint's files, given the release's names, shapes and order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.layouts.experts import Expert, Place, StackedExperts, expert_of
from gptoss_tune.weights.layouts.experts import stack_experts as add_stacks
from gptoss_tune.weights.layouts.names import how_named, released_name
from gptoss_tune.weights.layouts.openai import (
    dense_experts,
    is_openais,
    openai_name,
    query_key_value,
)
from gptoss_tune.weights.layouts.tensors import TensorEntry, TensorFile

_AS_RELEASED = "as in the release"


@dataclass(frozen=True)
class ReadAs:
    """One way in which tensors were stored, and how many of the release's were read of them.

    ``ReadAs("query, key and value in one", 48, 144)``: 48 stored tensors are 144 of the release's.
    """

    stored_as: str
    stored: int
    read: int

    @property
    def otherwise(self) -> bool:
        """Whether it is another way than the release's."""
        return self.stored_as != _AS_RELEASED


@dataclass(frozen=True)
class Translation:
    """What was found in the files.

    Attributes:
        stacks: Stacks that are made while they are read; ``None``: every tensor lies in a file.
        read_as: The ways in which tensors were stored, in the order of the files.
    """

    stacks: StackedExperts | None
    read_as: tuple[ReadAs, ...]

    @property
    def other_names(self) -> bool:
        """Whether a program that knows the release's names alone would miss a tensor."""
        return any(each.otherwise for each in self.read_as)


def translated(path: Path, config: Mapping[str, Any], files: Sequence[TensorFile]) -> Translation:
    """Give the tensors of ``files`` the release's names.

    What has no place in the release keeps its name, for ``refuse_other_tensors`` to tell its cause.

    Args:
        path: The checkpoint's folder, for messages.
        config: Its configuration.
        files: Opened; their entries are replaced.

    Raises:
        CheckpointError: Two tensors mean the same one, or an expert lacks a tensor.
    """
    job = _Job(path, config)
    for file in files:
        file.entries = job.entries_of(file)
    job.add_stacks()
    read_as = tuple(ReadAs(how, job.stored[how], job.read[how]) for how in job.stored)
    return Translation(job.stacks if job.stacks.entries else None, read_as)


class _Job:
    """A translation at work."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.stacks = StackedExperts(path)
        self.stored, self.read = Counter[str](), Counter[str]()
        self._path, self._config = path, config
        self._meant: dict[str, str] = {}
        self._experts: dict[Expert, Place] = {}

    def entries_of(self, file: TensorFile) -> dict[str, TensorEntry]:
        """Return those tensors of a file that lie in it as the release has them, by their names."""
        entries: dict[str, TensorEntry] = {}
        for stored, entry in file.entries.items():
            parts = dict(query_key_value(self._config, entry))
            dense = dense_experts(stored) if entry.spec.dtype.is_floating_point else None
            name = openai_name(stored) if is_openais(stored) else released_name(entry.spec)
            if parts:
                self._count("query, key and value in one", len(parts))
            elif dense is not None and len(entry.spec.shape) == 3 and entry.spec.shape[0]:
                self._mean(dense, stored)
                self._count("dense experts `[E, out, in]`, OpenAI's order", 1)
                self.stacks.add(dense, [[(file, part)] for part in entry.each_row(dense)])
                continue
            elif (expert := expert_of(name)) and entry.spec.dtype.is_floating_point:
                self._mean(f"{expert.stack}[{expert.number}], part {expert.half}", stored)
                self.stored[expert.layout] += 1
                self._experts[expert] = (file, entry)
                continue
            else:
                parts = {name: entry.named(name)}
                self._count(_how(stored, name, entry), 1)
            for name in parts:
                self._mean(name, stored)
            entries |= parts
        return entries

    def add_stacks(self) -> None:
        """Add the stacks of single experts, whose tensors may lie in several files."""
        add_stacks(self.stacks, self._config, self._experts)
        layouts = {expert.stack: expert.layout for expert in self._experts}
        for stack, layout in layouts.items():
            self._mean(stack, stack)
            self.read[layout] += 1

    def _count(self, how: str, read: int) -> None:
        self.stored[how] += 1
        self.read[how] += read

    def _mean(self, name: str, stored: str) -> None:
        """Note that the stored tensor is the release's ``name``.

        Raises:
            CheckpointError: Another one is it as well.
        """
        if name in self._meant:
            raise CheckpointError(
                f"{self._path}: '{self._meant[name]}' and '{stored}' are both '{name}'; the folder "
                "holds two models, keep the files of one"
            )
        self._meant[name] = stored


def _how(stored: str, name: str, entry: TensorEntry) -> str:
    if stored == name:
        return _AS_RELEASED
    if is_openais(stored):
        return "OpenAI's names"
    return how_named(entry.spec)
