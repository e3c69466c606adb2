"""A checkpoint in another layout, written anew in the released one: the same values, other names.

It is a merge of nothing: streamed, resumable, verified before the folder gets its name. MXFP4 stays
MXFP4 byte for byte, dense experts stay dense; another format is what ``merge`` writes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.merge import merge as write_merged
from gptoss_tune.export.merge.options import MergeOptions
from gptoss_tune.export.verify.verify import Verification
from gptoss_tune.export.verify.verify import verify as inspect_written
from gptoss_tune.files.atomic import refuse_existing
from gptoss_tune.weights.checkpoint import Checkpoint, open_any_layout
from gptoss_tune.weights.write import MAX_SHARD_SIZE
from gptoss_tune.workflows.finished_run import Merged


def open_source(
    source: str | Path, revision: str | None = None, tokenizer: Path | None = None
) -> Checkpoint:
    """Open the checkpoint that is to be converted.

    Args:
        source: Its folder, or its name on the Hub.
        revision: Its own on the Hub.
        tokenizer: Folder of the tokenizer, the chat template and the licence, where they do not lie
            beside the weights.

    Raises:
        CheckpointError: It cannot be read, or is in the released layout already.
        HubError: The Hub cannot be reached, or refuses.
    """
    base = open_any_layout(source, revision)
    if not base.renamed and not _dtypes_to_round(base):
        raise CheckpointError(
            f"{base.path}: is in the released layout already, and everything here reads it; for "
            "its experts in another format use `gptoss-tune merge --base "
            f"{shlex.quote(str(source))} --format FORMAT --out DIR`"
        )
    if tokenizer is not None:
        if not tokenizer.is_dir():
            raise CheckpointError(f"{tokenizer}: no such folder; expected one with tokenizer.json")
        base.companions = tokenizer
    elif base.companions != base.path:  # original/ of a release is called as the release is
        base.name = str(base.companions)
    return base


def convert_base(
    base: Checkpoint,
    out: str | Path,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Write ``base`` to the new folder ``out`` in the released layout.

    A conversion that was stopped goes on where it was. Floating values in another dtype than bf16
    are rounded to it once, as every result of this package has them.

    Args:
        base: From ``open_source``.
        out: Folder to create.
        max_shard_size: Bytes of one file at most.
        progress: Called with bytes done and bytes in all.

    Raises:
        CheckpointError: ``out`` exists, or the result does not hold the values of ``base``.
        MachineError: The disk is full, or another process is writing the same folder.
    """
    refuse_existing(Path(out))
    found: list[Verification] = []

    def inspect(folder: Path) -> None:
        found.append(inspect_written(folder, base, logits=False))
        found[-1].require()

    options = MergeOptions(expert_format=base.expert_format, max_shard_size=max_shard_size)
    report = write_merged(base, [], Path(out), options, progress=progress, inspect=inspect)
    return Merged(Path(out), report, found[-1])


def rounded_dtypes(base: Checkpoint) -> dict[str, int]:
    """Return of how many tensors the values are rounded to bf16, by the name of their dtype."""
    return {str(dtype).removeprefix("torch."): n for dtype, n in _dtypes_to_round(base).items()}


def _dtypes_to_round(base: Checkpoint) -> dict[torch.dtype, int]:
    found: dict[torch.dtype, int] = {}
    for name in base.names():
        dtype = base.dtype(name)
        if dtype.is_floating_point and dtype != torch.bfloat16:
            found[dtype] = found.get(dtype, 0) + 1
    return found
