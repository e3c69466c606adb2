"""A merge in GGUF files, which can be a single one of 13 GB: continued inside the file.

While it is written a file has a name of its own, and a journal beside it has a line for each step
that is in it, with the hashes of its tensors. After a kill at any point the next run compares the
bytes of every line with its hash, keeps what is right and writes the rest. So nothing has to reach
the disk before its line does: what a power loss takes is found by its hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.assets import LICENCES, write_notice
from gptoss_tune.export.device import arithmetic_of
from gptoss_tune.export.gguf.layout import GgufStep, GgufTensor, by_name, encode, plan_tensors
from gptoss_tune.export.gguf.metadata import (
    Header,
    headers,
    refuse_inexpressible,
    require_gguf,
)
from gptoss_tune.export.merge.lineage import REPORT
from gptoss_tune.export.merge.options import MergeOptions
from gptoss_tune.export.merge.produce import Producer
from gptoss_tune.export.merge.quantize import Survival
from gptoss_tune.export.merge.steps import Step
from gptoss_tune.files.atomic import disk_errors, to_json, write_text
from gptoss_tune.files.paths import inside
from gptoss_tune.files.positioned import read_at, write_at
from gptoss_tune.files.regular import flag
from gptoss_tune.weights.hashes import hash_of, write_manifest

UNFINISHED = ".unfinished"
"""After a file's name until every tensor is in it."""
JOURNAL = "tensors.jsonl"
_READ = 16 << 20


class GgufFiles:
    """The GGUF of a merge, in one file or several; a ``Container``."""

    dense_format: ClassVar[str] = "gguf-bf16"

    def __init__(
        self,
        producer: Producer,
        steps: Sequence[Step],
        folder: Path,
        name: str,
        completed: Mapping[str, bytes],
        options: MergeOptions,
    ) -> None:
        """Plan the files of ``folder``, which will be called ``name``; see ``ContainerOpener``.

        Raises:
            CheckpointError: A GGUF cannot hold this base, or llama.cpp not read its tokenizer.
            MachineError: The library ``gguf`` is not installed.
        """
        require_gguf()
        refuse_inexpressible(producer.base)
        self._producer, self._folder = producer, folder
        self._steps = plan_tensors(steps)
        self._files = headers(
            producer.base,
            options.expert_format,
            name,
            list(by_name(self._steps).values()),
            completed,
            stem=f"{name}-{options.expert_format}",
            max_shard_size=options.max_shard_size,
        )
        self._place = {
            tensor: (number, offset)
            for number, header in enumerate(self._files)
            for tensor, offset in header.offsets.items()
        }
        self.nbytes = sum(header.nbytes for header in self._files)
        computed_by = arithmetic_of(producer.device)
        told = {"container": "gguf", "name": name, "computed_by": computed_by}
        self.identity: Mapping[str, Any] = told
        self._journal = folder / JOURNAL
        self._done: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        """Find out which steps of an earlier try are in the files, by the hashes of their bytes."""
        for header in self._files:
            if (self._folder / header.name).exists():  # stopped after its last tensor
                (self._folder / header.name).rename(self._folder / f"{header.name}{UNFINISHED}")
        lines = _lines(self._journal)
        with self._opened() as descriptors:
            for step in self._steps:
                line = lines.get(step.step.source)
                if line is not None and line.get("hashes") == self._found(step, descriptors):
                    self._done[step.step.source] = line
        kept = "".join(f"{json.dumps(line)}\n" for line in self._done.values())
        write_text(self._journal, kept)

    def missing_bytes(self) -> int:
        """Return the bytes of the tensors that are not in the files, and of what lies around."""
        there = [t for step in self._steps if self._is_done(step) for t in step.tensors]
        return self.nbytes - sum(tensor.nbytes for tensor in there)

    def holds_anything(self) -> bool:
        """Return whether a tensor is in the files."""
        return bool(_lines(self._journal))

    def write(self, progress: Callable[[int, int], None]) -> None:
        """Write the tensors that are not in the files, then give the files their names."""
        done = sum(len(header.start) for header in self._files)
        with self._opened() as descriptors:
            for position, step in enumerate(self._steps):
                if not self._is_done(step):
                    if position + 1 < len(self._steps):
                        self._producer.prefetch(self._steps[position + 1].step)
                    self._write(step, descriptors)
                done += sum(tensor.nbytes for tensor in step.tensors)
                progress(min(done, self.nbytes), self.nbytes)
            with disk_errors(self._folder):
                for descriptor in descriptors:
                    os.fsync(descriptor)
        progress(self.nbytes, self.nbytes)
        with disk_errors(self._folder):
            for header in self._files:
                (self._folder / f"{header.name}{UNFINISHED}").replace(self._folder / header.name)

    def survivals(self) -> list[Survival]:
        """Return what survived of each changed stack, in the order of the model."""
        states = [line["survival"] for line in self._done.values() if line["survival"] is not None]
        found = [Survival.from_state(state) for state in states]
        return sorted(found, key=lambda each: (each.as_dict()["layer"], "down" in each.module))

    def finish(self, report: Mapping[str, Any], completed: Mapping[str, bytes]) -> None:
        """Write report, licence and notice, last the hashes of the files."""
        base = self._producer.base
        with disk_errors(self._folder):
            for pattern in LICENCES:
                for file in sorted(base.companions.glob(pattern)):
                    source = inside(base.companions, file.name, f"{base.companions}: has")
                    shutil.copyfile(source, self._folder / file.name)
        write_notice(base, [each.adapter for each in self._producer.adapters], self._folder)
        write_text(self._folder / REPORT, to_json(report))
        names = [header.name for header in self._files]
        write_manifest(self._folder, {name: hash_of(self._folder / name) for name in names})

    def remove_notes(self) -> None:
        """Remove the journal."""
        self._journal.unlink()

    def _is_done(self, step: GgufStep) -> bool:
        return step.step.source in self._done

    @contextlib.contextmanager
    def _opened(self) -> Iterator[list[int]]:
        """Yield the descriptors of the unfinished files, each of its full size with its header."""
        descriptors: list[int] = []
        try:
            for header in self._files:
                path = self._folder / f"{header.name}{UNFINISHED}"
                with disk_errors(path):
                    descriptors.append(_open(path))
                    self._lay_out(header, descriptors[-1])
            yield descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _lay_out(self, header: Header, descriptor: int) -> None:
        """Write the header, and zeros between the tensors, where an earlier try may have erred."""
        os.ftruncate(descriptor, header.nbytes)
        write_at(descriptor, memoryview(header.start), 0)
        sizes = by_name(self._steps)
        ends = [offset + sizes[name].nbytes for name, offset in header.offsets.items()]
        starts = [*list(header.offsets.values())[1:], header.nbytes]
        for end, start in zip(ends, starts, strict=True):
            if start > end:
                write_at(descriptor, memoryview(bytes(start - end)), end)

    def _write(self, step: GgufStep, descriptors: Sequence[int]) -> None:
        """Write the tensors of one step, then its line in the journal."""
        hashes = {tensor.name: hashlib.sha256() for tensor in step.tensors}
        survival = Survival(step.step.source)
        for row, parts in self._producer.tensors(step.step, survival):
            for tensor in step.tensors:
                data = encode(tensor, parts).numpy().data
                number, offset = self._place[tensor.name]
                with disk_errors(self._folder / self._files[number].name):
                    write_at(descriptors[number], data, offset + row * tensor.row_nbytes)
                hashes[tensor.name].update(data)
        measured = self._producer.measures(step.step)
        line = {
            "step": step.step.source,
            "hashes": {name: digest.hexdigest() for name, digest in hashes.items()},
            "survival": survival.state() if measured else None,
        }
        with disk_errors(self._journal), self._journal.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
        self._done[step.step.source] = line

    def _found(self, step: GgufStep, descriptors: Sequence[int]) -> dict[str, str]:
        """Return the hashes of the bytes that lie where the tensors of a step belong."""
        return {
            tensor.name: self._hash_of(tensor, descriptors[self._place[tensor.name][0]])
            for tensor in step.tensors
        }

    def _hash_of(self, tensor: GgufTensor, descriptor: int) -> str:
        digest, offset = hashlib.sha256(), self._place[tensor.name][1]
        buffer, done = memoryview(bytearray(min(_READ, tensor.nbytes))), 0
        while done < tensor.nbytes:
            count = read_at(descriptor, buffer[: tensor.nbytes - done], offset + done)
            if count == 0:
                break
            digest.update(buffer[:count])
            done += count
        return digest.hexdigest()


def _open(path: Path) -> int:
    """Return the descriptor of a file to continue, or of a new one; a link is not followed."""
    safely = flag("O_NOFOLLOW") | flag("O_CLOEXEC") | flag("O_BINARY") | flag("O_NONBLOCK")
    return os.open(path, os.O_RDWR | os.O_CREAT | safely, 0o666)


def _lines(journal: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a journal by step; one that was torn is not there."""
    found: dict[str, dict[str, Any]] = {}
    try:
        text = journal.read_bytes()
    except FileNotFoundError:
        return found
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
            Survival.from_state(line["survival"]) if line["survival"] is not None else None
            found[line["step"]] = line
        except (ValueError, KeyError, TypeError, AttributeError, CheckpointError):
            continue
    return found
