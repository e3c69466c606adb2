"""Merge, verify and push what a run trained: the jobs that a command and a notebook share.

Each opens the base that the adapters name, unless another is given, and notes in the card of a run
what was found about its export.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.gguf.container import GgufFiles
from gptoss_tune.export.hub.files import collect
from gptoss_tune.export.hub.name import check_name
from gptoss_tune.export.hub.push import check_push
from gptoss_tune.export.hub.push import push as upload
from gptoss_tune.export.merge.merge import merge as write_merged
from gptoss_tune.export.merge.options import (
    MergeFormat,
    MergeOptions,
    is_gguf_format,
    merge_options,
)
from gptoss_tune.export.merge.shards import SafetensorsFiles
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.verify.verify import verify as inspect_merged
from gptoss_tune.files.atomic import refuse_existing
from gptoss_tune.recipe import ExportSection
from gptoss_tune.run.record import note_verification, wanted_survival
from gptoss_tune.weights import Checkpoint, open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.weights.sources import base_name as recorded_base

if TYPE_CHECKING:
    from gptoss_tune.export.hub.push import Pushed
    from gptoss_tune.export.verify.verify import Verification

Adapters = str | Path | Sequence[str | Path | tuple[str | Path, float]]
"""A run, an adapter's folder, or several of them, each alone or with its weight in the sum."""


@dataclass(frozen=True)
class Merged:
    """A merged checkpoint that was written.

    Attributes:
        folder: Where it is.
        report: What was written, and how much of the change survives (``merge.json`` in it).
        verification: What was checked before the folder got its name; ``None``: nothing was.
    """

    folder: Path
    report: dict[str, Any]
    verification: Verification | None


def open_adapters(
    adapters: Adapters,
    base: str | Path | None = None,
    revision: str | None = None,
    *,
    other_base: bool = False,
) -> tuple[Checkpoint, list[WeightedAdapter]]:
    """Open adapters and their base, whatever names the program that saved them gave the tensors.

    Raises:
        CheckpointError: One cannot be opened, or they name different bases; neither is given.
    """
    pairs = _pairs(adapters)
    if base is None:
        if not pairs:
            raise CheckpointError(
                "nothing to merge: name a run or an adapter, or with --base the base to convert"
            )
        base, revision = recorded_base(path for path, _ in pairs)
    checkpoint = open_checkpoint(base, revision, translate=True)
    return checkpoint, [
        WeightedAdapter(
            open_adapter(path, checkpoint, other_base=other_base, translate=True), weight
        )
        for path, weight in pairs
    ]


def merge_opened(
    base: Checkpoint,
    adapters: list[WeightedAdapter],
    out: Path,
    options: MergeOptions,
    *,
    gguf: bool = False,
    verified: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Merge opened adapters, verify the result, and give it its name.

    Args:
        base: What the adapters were trained on.
        adapters: What is merged.
        out: Folder to create.
        options: How.
        gguf: Write the file of llama.cpp instead of safetensors.
        verified: Verify the result before it gets its name.
        progress: Called with bytes done and bytes in all.

    Raises:
        CheckpointError: Too little survives MXFP4, or the verification finds a fault.
        MachineError: The disk is full, or another process is writing the same merge.
    """
    found: list[Verification] = []

    def inspect(folder: Path) -> None:
        if verified:
            # What a loss does to the logits was accepted; that the weights are right was not.
            logits = not options.accept_loss
            result = inspect_merged(folder, base, adapters, logits=logits, device=options.device)
            found.append(result)
            result.require()

    container = GgufFiles if gguf else SafetensorsFiles
    report = write_merged(
        base, adapters, out, options, container=container, progress=progress, inspect=inspect
    )
    return Merged(out, report, found[-1] if found else None)


def merge(
    adapters: Adapters,
    out: str | Path,
    *,
    format: MergeFormat = "bf16",
    base: str | Path | None = None,
    revision: str | None = None,
    other_base: bool = False,
    max_shard_size: int | None = None,
    device: str = "cpu",
    min_survival: float | None = None,
    accept_loss: bool = False,
    verified: bool = True,
) -> Merged:
    """Merge what runs trained into their base, as ``gptoss-tune merge`` does.

    Args:
        adapters: What is merged; ``[]``: nothing, ``base`` is written in another format.
        out: Folder to create; a merge that was stopped goes on when it is asked for again.
        format: Layout of the experts in the result; ``gguf`` has those of ``mxfp4`` and
            ``gguf-bf16`` those of ``bf16``, in the file of llama.cpp.
        base: Another base than the adapters name; ``revision`` is its own on the Hub.
        revision: See ``base``.
        other_base: Accept a base with other weights than trained on.
        max_shard_size: Bytes of one file at most; ``None``: the usual ones, 5 GB, of a GGUF 45 GB.
        device: Where the arithmetic runs.
        min_survival: Share of the change that MXFP4 must keep; ``None``: what the recipes ask for.
        accept_loss: Write MXFP4 even where less survives.
        verified: Verify the result before it gets its name.

    Raises:
        CheckpointError: ``out`` exists, an adapter or base cannot be opened, too little survives,
            or the verification finds a fault.
        MachineError: The disk is full, or another process is writing the same merge.
    """
    out = Path(out)
    refuse_existing(out)
    checkpoint, weighted = open_adapters(adapters, base, revision, other_base=other_base)
    options = merge_options(
        format,
        max_shard_size=max_shard_size,
        device=device,
        min_survival=strictest_survival(weighted) if min_survival is None else min_survival,
        accept_loss=accept_loss,
    )
    gguf = is_gguf_format(format)
    done = merge_opened(checkpoint, weighted, out, options, gguf=gguf, verified=verified)
    note(adapters, "merge", done.verification, out)
    return done


def verify(
    folder: str | Path,
    adapters: Adapters = (),
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    other_base: bool = False,
    logits: bool = True,
    device: str = "cpu",
) -> Verification:
    """Check that a merged checkpoint holds what was trained, as ``gptoss-tune verify`` does.

    Args:
        folder: A merged checkpoint.
        adapters: What was merged; without them and without ``base`` only the folder itself is
            checked.
        base: As in ``merge``; without adapters what the folder is a copy of in another format.
        revision: As in ``merge``.
        other_base: As in ``merge``.
        logits: Compare logits too.
        device: Where to compute.

    Returns:
        A list of checks; its ``require()`` raises when one of them is red.

    Raises:
        CheckpointError: An adapter or the base cannot be opened.
    """
    checkpoint, weighted = None, []
    if _pairs(adapters) or base is not None:
        checkpoint, weighted = open_adapters(adapters, base, revision, other_base=other_base)
    result = inspect_merged(Path(folder), checkpoint, weighted, logits=logits, device=device)
    note(adapters, "verify", result)
    return result


def push(
    run: str | Path,
    repo: str,
    *,
    merged: str | Path | None = None,
    public: bool = False,
    base: str | Path | None = None,
    revision: str | None = None,
    base_name: str | None = None,
    logits: bool = True,
    replace: bool = False,
    replace_card: bool = False,
) -> Pushed:
    """Verify a run's adapter or merged model and upload it with a model card.

    Args:
        run: A run or an adapter's folder.
        repo: ``owner/name`` on the Hub.
        merged: Upload this merged folder instead of the adapter.
        public: Public; private otherwise.
        base: As in ``merge``.
        revision: As in ``merge``.
        base_name: The base's name on the Hub, when it was trained from a folder.
        logits: Compare logits of a merged folder first.
        replace: Delete what others put into the repository and would change what loads, and
            overwrite what they put under a name that is pushed.
        replace_card: Replace a card that was written by hand instead of adding to it.

    Raises:
        CheckpointError: Something cannot be opened, is not what was trained, or holds a token.
        RepositoryError: The repository's name or content is not one to push to.
        HubError: The Hub refuses, or does not answer.
    """
    check_name(repo)
    if base is None:
        base, revision = recorded_base([run])
    check_push(repo, public=public)
    # An adapter is loaded beside its base by others; a merged folder needs it no more.
    checkpoint = open_checkpoint(base, revision, translate=merged is not None)
    adapter = open_adapter(run, checkpoint)
    folder = None if merged is None else Path(merged)
    kind = "adapter" if merged is None else "merged model"
    with tempfile.TemporaryDirectory() as scratch:
        files = collect(
            adapter,
            checkpoint,
            repo,
            merged=folder,
            base_name=base_name,
            logits=logits,
            scratch=Path(scratch),
        )
        return upload(
            files,
            repo,
            public=public,
            message=f"Upload {kind} with gptoss-tune",
            replace=replace,
            replace_card=replace_card,
        )


def strictest_survival(adapters: Sequence[WeightedAdapter]) -> float:
    """Return the largest ``export.min_survival`` that the recipes of the adapters ask for."""
    asked = [wanted_survival(each.adapter.path) for each in adapters]
    found = [share for share in asked if share is not None]
    return max(found, default=ExportSection().min_survival)


def note(
    adapters: Adapters, command: str, found: Verification | None, folder: Path | None = None
) -> None:
    """Add what was found to the cards of the runs that were exported.

    Args:
        adapters: What was exported.
        command: Which command looked.
        found: The checks; ``None``: there were none.
        folder: The name of what was checked, where it did not have it yet.
    """
    if found is None or not _pairs(adapters):
        return
    told = found.as_dict() if folder is None else {**found.as_dict(), "folder": str(folder)}
    note_verification([str(path) for path, _ in _pairs(adapters)], command, told)


def _pairs(adapters: Adapters) -> list[tuple[str | Path, float]]:
    listed = [adapters] if isinstance(adapters, (str, Path)) else adapters
    return [each if isinstance(each, tuple) else (each, 1.0) for each in listed]
