"""Whether a server really loaded what it was told to: by the checksums of its own tensors.

vLLM answers a reload with success even where a layer kept what it had: it puts the old tensors
back and writes a warning to its own terminal. 0.32.0 does so with the experts of a gpt-oss in
bf16. So every part of the model whose bytes are others in the new file has to have another
checksum afterwards, on every worker. A part is the attention or the experts of one layer; names of
tensors within one are the server's own business.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import pairwise

import torch

from gptoss_tune.weights import Checkpoint

_LAYER = re.compile(r"\blayers\.(\d+)\.(.+)")
_ROWS = 8  # of a tensor that is compared, at a time; most differ in the first


def part_of(name: str) -> str | None:
    """Return the part that a tensor belongs to, by its name in a checkpoint or in a server."""
    found = _LAYER.search(name)
    if found is None:
        return None
    if ".experts" in f".{found[2]}":
        return f"the experts of layer {found[1]}"
    if re.match(r"(self_)?attn\.", found[2]):
        return f"the attention of layer {found[1]}"
    return None


def changed_parts(before: Checkpoint, after: Checkpoint) -> set[str]:
    """Return the parts in which two checkpoints of one layout differ in any byte.

    Args:
        before: As it was; a base in another format than ``after`` differs in nothing that could be
            compared.
        after: As it is.
    """
    found: set[str] = set()
    for name in after.names():
        part = part_of(name)
        if part is None or part in found or not before.has(name):
            continue
        if before.spec(name) == after.spec(name) and not _equal(before, after, name):
            found.add(part)
    return found


def parts_kept(
    before: Mapping[str, str], after: Mapping[str, str], changes: Collection[str]
) -> list[str]:
    """Return the parts that should have changed and have the checksums they had.

    Args:
        before: Checksums by worker and tensor: ``dp0:pp0:pcp0:tp0:model.layers.0...``.
        after: After the reload.
        changes: Parts that the new file changes.
    """
    moved: dict[tuple[str, str], bool] = {}
    for name, told in before.items():
        part = part_of(name)
        if part not in changes or part is None:
            continue
        worker = name.rpartition(":")[0]
        key = (part, worker)
        moved[key] = moved.get(key, False) or after.get(name) != told
    kept = [key for key, new in moved.items() if not new]
    return sorted(f"{part} on {worker}" if worker else part for part, worker in kept)


def parts_untold(checksums: Mapping[str, str], changes: Collection[str]) -> set[str]:
    """Return the parts of ``changes`` of which no checksum is told."""
    return set(changes) - {part for part in map(part_of, checksums) if part is not None}


def _equal(before: Checkpoint, after: Checkpoint, name: str) -> bool:
    """Return whether a tensor is the same in both, reading no more than it takes to see it."""
    rows = after.spec(name).shape[0]
    for start, stop in pairwise([*range(0, rows, _ROWS), rows]):
        one, other = (each.read_rows(name, start, stop) for each in (before, after))
        if not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            return False
    return True
