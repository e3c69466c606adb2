"""Where a reference's log-probabilities are kept: written once, whole or refused, on each machine.

A folder of the cache of rendered data, under the hash of all that the values depend on, which it
also says itself: one that was moved, or is of an earlier state of the rows, is known by that.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from gptoss_tune.distributed import gather_over_ranks, rank
from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.harmony.dataset.cache import built_once, cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

_FACTS, _VALUES = "reference.json", "reference.arrow"
_ROWS_A_BATCH = 256


def keep(state: PartialState, key: str, dataset: Dataset, build: Callable[[Path], None]) -> None:
    """Let one process of each machine write the cache, the others after it.

    Raises:
        MachineError: It cannot be written.
    """
    with state.local_main_process_first():
        built_once(
            key,
            build,
            private=is_private(dataset),
            what="log-probabilities of the reference",
        )


def copied(key: str, holder: int) -> Callable[[Path], None]:
    """Return what writes the files that rank ``holder`` has; every rank has to call it."""
    files: list[dict[str, bytes]] = [{}]
    if rank() == holder:
        folder = cache_folder() / key
        files[0] = {name: (folder / name).read_bytes() for name in (_FACTS, _VALUES)}
    broadcast_object_list(files, from_process=holder)

    def build(folder: Path) -> None:
        for name, content in files[0].items():
            (folder / name).write_bytes(content)

    return build


def write(folder: Path, columns: dict[str, list[np.ndarray]], facts: dict[str, Any]) -> None:
    """Write the values of each row by their column, and what they were computed from."""
    schema = pa.schema({name: pa.list_(pa.float32()) for name in columns})
    rows = len(columns["reference"])
    with (
        pa.OSFile(str(folder / _VALUES), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for first in range(0, rows, _ROWS_A_BATCH):
            part = {
                name: pa.array(values[first : first + _ROWS_A_BATCH], pa.list_(pa.float32()))
                for name, values in columns.items()
            }
            writer.write_batch(pa.RecordBatch.from_pydict(part, schema=schema))
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def refuse_differing(split: str, key: str, sha256: str) -> None:
    """Refuse values that are not those of all ranks; every rank has to ask.

    Raises:
        CheckpointError: They differ.
    """
    found = gather_over_ranks(sha256)
    if len(set(found)) > 1:
        raise CheckpointError(
            f"the machines of this run have cached different log-probabilities of the reference "
            f"for {split} ({', '.join(f'rank {n}: {one[:12]}' for n, one in enumerate(found))}); "
            f"remove {cache_folder() / key} on all machines but one, from which it is copied"
        )


def read(key: str, facts: dict[str, Any], dataset: Dataset) -> tuple[Dataset, str]:
    """Return the rows with the cached columns, and the hash of their values.

    Raises:
        CheckpointError: The folder is of something else.
    """
    from datasets import Dataset, concatenate_datasets

    folder = cache_folder() / key
    said = read_object(folder / _FACTS)
    if said != facts:
        differs = [name for name in facts if said.get(name) != facts[name]]
        raise CheckpointError(
            f"{folder}: these log-probabilities of a reference belong to something else (they "
            f"differ in {', '.join(differs)}); remove the folder, and they are computed again"
        )
    values: Any = Dataset.from_file(str(folder / _VALUES))
    joined: Any = concatenate_datasets([dataset, values], axis=1)
    return joined, sha256_of(folder / _VALUES)


def is_private(dataset: Dataset) -> bool:
    """Return whether the rendered rows are kept from other users of the machine."""
    folders = [Path(file["filename"]).parent for file in dataset.cache_files]
    return not all(folder.stat().st_mode & stat.S_IROTH for folder in folders)
