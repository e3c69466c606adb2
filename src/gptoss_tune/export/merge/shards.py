"""A merge in safetensors files: transformers' folder, one shard at a time.

A shard takes its name when it is whole and on the disk, so after a kill at any point the next run
keeps the whole shards and writes the others. Beside each shard lies its hash: one whose bytes
changed while the merge lay still is written again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.assets import copy_companions, deciding_companions
from gptoss_tune.export.merge.lineage import REPORT
from gptoss_tune.export.merge.options import MergeOptions
from gptoss_tune.export.merge.produce import Producer
from gptoss_tune.export.merge.quantize import Survival
from gptoss_tune.export.merge.steps import Step, merged_config
from gptoss_tune.files.atomic import disk_errors, to_json, write_text
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.weights.hashes import hash_of, write_manifest
from gptoss_tune.weights.names import INDEX_NAME, ExpertFormat
from gptoss_tune.weights.write import Shard, ShardWriter, index_json, plan_shards

_NOTE = ".note.json"
"""After a shard's name: its hash, and what of the changes in it survived."""


class SafetensorsFiles:
    """The shards of a merge and what lies beside them; a ``Container``."""

    dense_format: ClassVar[str] = "bf16"

    def __init__(
        self,
        producer: Producer,
        steps: Sequence[Step],
        folder: Path,
        name: str,
        completed: Mapping[str, bytes],
        options: MergeOptions,
    ) -> None:
        """Divide the outputs of ``steps`` over files of ``folder``; see ``ContainerOpener``."""
        self._producer, self._steps, self._folder = producer, steps, folder
        self._format: ExpertFormat = options.expert_format
        outputs = (spec for step in steps for spec in step.outputs)
        self._shards = plan_shards(outputs, options.max_shard_size)
        self.identity: Mapping[str, Any] = {}
        self.nbytes = sum(shard.nbytes for shard in self._shards)

    def prepare(self) -> None:
        """Remove what an earlier try left of shards that are not what it wrote."""
        for shard in self._shards:
            file, note = self._folder / shard.name, self._note(shard)
            try:
                noted = read_object(note)
                sound = hash_of(file) == {key: noted.get(key) for key in ("sha256", "bytes")}
            except (CheckpointError, OSError):
                sound = False
            if not sound:
                with disk_errors(file):
                    file.unlink(missing_ok=True)
                    note.unlink(missing_ok=True)

    def missing_bytes(self) -> int:
        """Return the bytes of the shards that are not there."""
        return sum(s.nbytes for s in self._shards if not (self._folder / s.name).exists())

    def holds_anything(self) -> bool:
        """Return whether a shard is there."""
        return any(self._folder.glob("*.safetensors"))

    def write(self, progress: Callable[[int, int], None]) -> None:
        """Write the shards that are not there."""
        done = 0
        for shard in self._shards:
            if not (self._folder / shard.name).exists():
                self._write(shard)
            done += shard.nbytes
            progress(done, self.nbytes)

    def survivals(self) -> list[Survival]:
        """Return the notes of all shards in the order of the model."""
        notes = [read_object(self._note(shard)) for shard in self._shards]
        return [Survival.from_state(state) for note in notes for state in note["survival"]]

    def finish(self, report: Mapping[str, Any], completed: Mapping[str, bytes]) -> None:
        """Write what goes with the shards, last the hashes of all that decides what is served."""
        index, base = index_json(self._shards), self._producer.base
        if index is not None:
            write_text(self._folder / INDEX_NAME, index)
        write_text(self._folder / "config.json", to_json(merged_config(base, self._format)))
        write_text(self._folder / REPORT, to_json(report))
        adapters = [each.adapter for each in self._producer.adapters]
        copy_companions(base, adapters, self._folder, completed)
        hashes = {}
        for shard in self._shards:
            noted = read_object(self._note(shard))
            hashes[shard.name] = {key: noted[key] for key in ("sha256", "bytes")}
        small = ["config.json", *deciding_companions(self._folder)]
        small += [] if index is None else [INDEX_NAME]
        hashes |= {name: hash_of(self._folder / name) for name in small}
        write_manifest(self._folder, hashes)

    def remove_notes(self) -> None:
        """Remove the notes of the shards."""
        for note in self._folder.glob(f"*{_NOTE}"):
            note.unlink()

    def _note(self, shard: Shard) -> Path:
        return self._folder / f"{shard.name}{_NOTE}"

    def _write(self, shard: Shard) -> None:
        """Write one shard and note what of the changes in it survived."""
        names = {spec.name for spec in shard.specs}
        mine = [step for step in self._steps if any(out.name in names for out in step.outputs)]
        survivals: list[Survival] = []
        with ShardWriter(self._folder, shard) as writer:
            for position, step in enumerate(mine):
                if position + 1 < len(mine):
                    self._producer.prefetch(mine[position + 1])
                survival = Survival(step.source)
                self._run(step, writer, names, survival)
                if self._producer.measures(step) and step.outputs[0].name in names:
                    survivals.append(survival)
        # A shard without its note is written again; so is one whose bytes are not the note's.
        note = {**hash_of(writer.path), "survival": [survival.state() for survival in survivals]}
        write_text(self._note(shard), to_json(note))

    def _run(self, step: Step, writer: ShardWriter, names: set[str], survival: Survival) -> None:
        """Write those outputs of ``step`` that are among ``names``."""
        if step.kind == "copy":
            writer.copy(step.source, self._producer.source.file_of(step.source))
            return
        for row, parts in self._producer.tensors(step, survival):
            for out, part in zip(step.outputs, parts, strict=True):
                if out.name in names:
                    writer.write(out.name, part, row)
