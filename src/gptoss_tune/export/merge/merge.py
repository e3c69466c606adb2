"""Adapter + base -> merged checkpoint: streamed, exact, resumable, named only when complete.

The result is prepared in a hidden folder beside its final place, one shard at a time. A shard takes
its name when it is whole and on the disk, so after a kill at any point the next run keeps the whole
shards, writes the others and ends with the same bytes as a run that was never stopped: nothing in
the result depends on time, order or what was there before. The hidden folder also holds what the
merge was made of; another base, adapter or format does not continue it but starts again. Beside
each shard lies its hash: a shard whose bytes changed while the merge lay still is written again.

The rejected alternative is PEFT's ``merge_and_unload`` on a loaded model: it needs the whole model
in memory in bf16, adds bf16 to bf16, and cannot write MXFP4.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gptoss_kernels import dequantize

from gptoss_tune.errors import CheckpointError, MachineError, say_once
from gptoss_tune.export.assets import (
    completed_companions,
    copy_companions,
    deciding_companions,
)
from gptoss_tune.export.device import compute_device
from gptoss_tune.export.merge.arithmetic import added, unpacked
from gptoss_tune.export.merge.lineage import REPORT, lineage_report, refuse_unsound_sum
from gptoss_tune.export.merge.quantize import ScaleRule, Survival, packed, total_share
from gptoss_tune.export.merge.steps import (
    Step,
    WeightedAdapter,
    is_merge_aware,
    low_ranks,
    merged_config,
    plan_steps,
)
from gptoss_tune.files.atomic import (
    disk_errors,
    publish,
    refuse_existing,
    staging_folder,
    to_json,
    write_text,
)
from gptoss_tune.files.locking import FileLock, LockHeld
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.record import prompts_trained_on
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.hashes import hash_of, write_manifest
from gptoss_tune.weights.names import INDEX_NAME, ExpertFormat
from gptoss_tune.weights.write import (
    MAX_SHARD_SIZE,
    Shard,
    ShardWriter,
    index_json,
    plan_shards,
)

_PLAN = "plan.json"
_NOTE = ".note.json"
"""After a shard's name: its hash, and what of the changes in it survived."""


class TooLittleSurvives(CheckpointError):
    """MXFP4 would drop more of the experts' change than was accepted.

    Attributes:
        share: The share of the change that would survive.
    """

    def __init__(self, message: str, share: float) -> None:
        """Refuse with ``message``; ``share`` is what would survive."""
        super().__init__(message)
        self.share = share


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Attributes:
        expert_format: ``"bf16"``: dense; ``"mxfp4"``: the released layout.
        max_shard_size: Bytes of one file at most.
        device: Where the arithmetic runs.
        min_survival: Stop when less than this share of the change of the experts survives MXFP4.
        accept_loss: Do not stop.
    """

    expert_format: ExpertFormat = "bf16"
    max_shard_size: int = MAX_SHARD_SIZE
    device: str = "cpu"
    min_survival: float = 0.9
    accept_loss: bool = False


def merge(
    base: Checkpoint,
    adapters: Sequence[WeightedAdapter],
    out: Path,
    options: MergeOptions,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    inspect: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Write ``base`` plus the weighted sum of ``adapters`` to the new folder ``out``.

    Args:
        base: The checkpoint that the adapters were trained on.
        adapters: What is added; nothing: the base is written in another format, or as it is.
        out: Folder to create. A merge that was stopped is continued from the folder
            ``.OUT.incomplete`` beside it.
        options: Format, shard size, device, and what loss to accept.
        progress: Called with bytes done and bytes in all.
        inspect: Called with the complete folder before it gets its name; an error it raises keeps
            the name from appearing.

    Returns:
        The report, which is also in ``OUT/merge_report.json``.

    Raises:
        CheckpointError: ``out`` exists; an option or the sum is not sound (``lineage``); the base
            lacks files that the result needs; the result would hold NaN or infinity.
        TooLittleSurvives: MXFP4 keeps less of the change than ``options`` wants.
        MachineError: No room on the disk, or it cannot be written; another merge is at work.
    """
    refuse_existing(out)
    compute_device(options.device)
    refuse_unsound_sum(base, adapters)
    completed = completed_companions(base)
    steps = plan_steps(base, adapters, options.expert_format)
    shards = plan_shards((s for step in steps for s in step.outputs), options.max_shard_size)
    # Rounded weights that were trained are written as they were; others get the best scale.
    scale_rule: ScaleRule = "ocp" if is_merge_aware(base, adapters) else "search"
    job = _Job(base, adapters, options, scale_rule, staging_folder(out))
    identity = job.identity()
    with _staging(job.folder, identity):
        job.remove_damaged(shards)
        _check_room(job.folder, shards)
        total, done = sum(shard.nbytes for shard in shards), 0
        for shard in shards:
            if not (job.folder / shard.name).exists():
                job.write(shard, steps)
            done += shard.nbytes
            progress(done, total)
        report = {**identity, "bytes": total, "survival": _survival_report(job.survivals(shards))}
        if asked := _prompts_trained_on(adapters):
            report["prompts_trained_on"] = asked
        if completed:
            report["completed"] = sorted(completed)
        _refuse_loss(report["survival"], options, job.folder)
        job.write_small_files(shards, report, completed)
        inspect(job.folder)
        _remove_notes(job.folder)
        refuse_existing(out)
        with disk_errors(out):
            publish(job.folder, out)
    return report


@dataclass(frozen=True)
class _Job:
    """A merge at work: where everything comes from and goes to."""

    base: Checkpoint
    adapters: Sequence[WeightedAdapter]
    options: MergeOptions
    scale_rule: ScaleRule
    folder: Path

    def identity(self) -> dict[str, Any]:
        """Return everything the resulting bytes depend on."""
        return {
            "base": {
                "fingerprint": self.base.fingerprint(),
                "format": self.base.expert_format,
                **_read_as(self.base),
                **lineage_report(self.base),
            },
            "adapters": [
                {
                    "sha256": each.adapter.digest,
                    "weights": each.adapter.weights_digest,
                    "weight": each.weight,
                }
                for each in self.adapters
            ],
            "format": self.options.expert_format,
            "max_shard_size": self.options.max_shard_size,
            "device": torch.device(self.options.device).type,
            "scale_rule": self.scale_rule,
            "merge_aware": self.scale_rule == "ocp",
        }

    def write(self, shard: Shard, steps: Sequence[Step]) -> None:
        """Write one shard and note what of the changes in it survived."""
        names = {spec.name for spec in shard.specs}
        mine = [step for step in steps if any(out.name in names for out in step.outputs)]
        survivals: list[Survival] = []
        with ShardWriter(self.folder, shard) as writer:
            for position, step in enumerate(mine):
                if position + 1 < len(mine):
                    self._prefetch(mine[position + 1])
                self._run(step, writer, names, survivals)
        # A shard without its note is written again; so is one whose bytes are not the note's.
        note = {**hash_of(writer.path), "survival": [survival.state() for survival in survivals]}
        write_text(self._note(shard), to_json(note))

    def remove_damaged(self, shards: Sequence[Shard]) -> None:
        """Remove what an earlier try left of shards that are not what it wrote."""
        for shard in shards:
            file, note = self.folder / shard.name, self._note(shard)
            try:
                noted = read_object(note)
                sound = hash_of(file) == {key: noted.get(key) for key in ("sha256", "bytes")}
            except (CheckpointError, OSError):
                sound = False
            if not sound:
                with disk_errors(file):
                    file.unlink(missing_ok=True)
                    note.unlink(missing_ok=True)

    def survivals(self, shards: Sequence[Shard]) -> list[Survival]:
        """Return the notes of all shards in the order of the model."""
        notes = [read_object(self._note(shard)) for shard in shards]
        return [Survival.from_state(state) for note in notes for state in note["survival"]]

    def write_small_files(
        self, shards: Sequence[Shard], report: dict[str, Any], completed: Mapping[str, bytes]
    ) -> None:
        """Write what goes with the shards, last the hashes of all that decides what is served."""
        index = index_json(shards)
        if index is not None:
            write_text(self.folder / INDEX_NAME, index)
        config = merged_config(self.base, self.options.expert_format)
        write_text(self.folder / "config.json", to_json(config))
        write_text(self.folder / REPORT, to_json(report))
        copy_companions(self.base, [each.adapter for each in self.adapters], self.folder, completed)
        hashes = {}
        for shard in shards:
            noted = read_object(self._note(shard))
            hashes[shard.name] = {key: noted[key] for key in ("sha256", "bytes")}
        small = ["config.json", *deciding_companions(self.folder)]
        small += [] if index is None else [INDEX_NAME]
        hashes |= {name: hash_of(self.folder / name) for name in small}
        write_manifest(self.folder, hashes)

    def _note(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}{_NOTE}"

    def _prefetch(self, step: Step) -> None:
        suffixes = ("", "_blocks", "_scales")
        for name in (f"{step.source}{suffix}" for suffix in suffixes):
            if self.base.has(name):
                self.base.prefetch(name)

    def _run(
        self, step: Step, writer: ShardWriter, names: set[str], survivals: list[Survival]
    ) -> None:
        """Write those outputs of ``step`` that are among ``names``."""
        device = torch.device(self.options.device)
        if step.kind == "copy":
            writer.copy(step.source, self.base.file_of(step.source))
            return
        changes = low_ranks(self.adapters, step.module) if step.module else []
        spec = step.outputs[0]
        if step.kind == "pack" or (changes and self.scale_rule == "ocp" and len(spec.shape) == 3):
            survival = Survival(step.source)
            stacks = packed(
                self.base,
                step.source,
                changes,
                scale_rule=self.scale_rule,
                survival=survival,
                device=device,
            )
            for expert, stack in stacks:
                if step.kind == "pack":
                    for out, part in zip(step.outputs, (stack.blocks, stack.scales), strict=True):
                        if out.name in names:
                            writer.write(out.name, part.unsqueeze(0), expert)
                else:  # what merge-aware training used: the rounded weights, exact in bf16
                    dense = dequantize(stack.blocks, stack.scales, dtype=spec.dtype)
                    writer.write(spec.name, dense.T.contiguous().unsqueeze(0), expert)
            if changes and spec.name in names:
                survivals.append(survival)
            return
        compute = added if step.kind == "add" else unpacked
        for row, part in compute(self.base, spec, changes, device):
            writer.write(spec.name, part, row)


def _read_as(base: Checkpoint) -> dict[str, Any]:
    """Return how the base's tensors were stored, where that was not as in the release."""
    return {"read_as": [asdict(each) for each in base.read_as]} if base.renamed else {}


@contextlib.contextmanager
def _staging(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold the staging folder, emptied unless it belongs to this very merge.

    The lock's file lies beside the folder: Windows renames no folder in which a file is open.

    Raises:
        MachineError: Another process is writing it.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")) as lock:
        try:
            with disk_errors(lock.path):
                reason = lock.take()
        except LockHeld as error:
            raise MachineError(
                f"{folder}: another merge is writing it ({error.holder}); wait for it or choose "
                "another output"
            ) from None
        if reason is not None:
            say_once(f"{folder} cannot be locked ({reason}): start no second merge in it meanwhile")
        _keep_only_this_merge(folder, to_json(identity))
        try:
            yield
        except BaseException:
            if not any(folder.glob("*.safetensors")):  # nothing that a next run could keep
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _keep_only_this_merge(folder: Path, identity: str) -> None:
    """Empty the folder unless it was begun by a merge of the same identity."""
    plan = folder / _PLAN
    with disk_errors(folder):
        if not plan.exists() or plan.read_text(encoding="utf-8") != identity:
            for old in folder.iterdir():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            write_text(plan, identity)
        for part in folder.glob("*.part"):
            part.unlink()


def _check_room(folder: Path, shards: Sequence[Shard]) -> None:
    """Refuse to start what cannot end.

    Raises:
        MachineError: The disk has less room than the missing shards need.
    """
    needed = sum(shard.nbytes for shard in shards if not (folder / shard.name).exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"{folder.parent}: the merge needs {needed / 1e9:.1f} GB more, the disk has "
            f"{free / 1e9:.1f} GB free; free space or choose a folder on another disk"
        )


def _survival_report(survivals: Sequence[Survival]) -> dict[str, Any]:
    """Return the survival of every changed stack and of all together."""
    return {
        "total": total_share(survivals),
        "stacks": [survival.as_dict() for survival in survivals],
    }


def _refuse_loss(survival: dict[str, Any], options: MergeOptions, folder: Path) -> None:
    """Stop when the result would be the base in disguise."""
    if not survival["stacks"] or options.accept_loss or survival["total"] >= options.min_survival:
        return
    worst = min(survival["stacks"], key=lambda stack: stack["survived"])
    raise TooLittleSurvives(
        f"only {survival['total']:.1%} of the experts' change survives MXFP4 (least: "
        f"{worst['survived']:.1%} in {worst['module']}), {options.min_survival:.0%} is wanted; the "
        "result would act like the base. Recover it with --calibrate FILE, train with "
        "lora.merge_aware=true, export with --format bf16, or take it as it is with --accept-loss. "
        f"What was computed is kept in {folder}",
        survival["total"],
    )


def _remove_notes(folder: Path) -> None:
    """Remove what only a resumed merge needs."""
    for note in [*folder.glob(f"*{_NOTE}"), folder / _PLAN]:
        note.unlink()


def _prompts_trained_on(adapters: Sequence[WeightedAdapter]) -> dict[str, str]:
    """Return what the runs of all ``adapters`` say of their system messages, if it is one thing."""
    told = [prompts_trained_on(each.adapter.path) for each in adapters]
    return told[0] if told and all(one == told[0] for one in told) else {}
