"""Samples as Arrow files: written chunk by chunk, mapped into memory, never lists of Python ints.

A rendered source is a folder: ``tokens.arrow`` holds what training reads (``input_ids``,
``loss_weights``, ``channels``, ``length``; of preferences also the documents of each sample),
``about.npz`` what splitting, mixing and packing need to know of each sample, ``sources.jsonl`` the
places they came from, ``report.json`` the counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gptoss_tune.harmony.conversation import CHANNEL_NAMES
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.mismatched import mismatched

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from gptoss_tune.harmony.dataset.packing import PackedRows
    from gptoss_tune.harmony.dataset.render_rows import Columns

TOKEN_COLUMNS: Final = {
    "input_ids": pa.int32(),
    "loss_weights": pa.float32(),
    "channels": pa.int8(),
}
DOCUMENT_COLUMNS: Final = {"documents": pa.int32(), "branches": pa.int8()}
"""Of each document of a sample: its tokens, and whether it is preferred (1) or not (-1)."""
ROWS_A_BATCH: Final = 256
_ABOUT: Final = {
    "lengths": np.int32,
    "efforts": np.int8,
    "row_keys": np.uint64,
    "prompt_keys": np.uint64,
    "repeated_tokens": np.int32,
    "special_text": np.int32,
    "without_thoughts": np.int8,
    "answer_keys": np.uint64,
    "answer_characters": np.int32,
    "answer_tokens": np.int32,
}


class SampleWriter:
    """Writes the chunks of a source into its folder; use it in a ``with`` statement."""

    def __init__(self, folder: Path, *, documents: bool = False) -> None:
        """Open ``tokens.arrow`` in an empty folder.

        Args:
            folder: The folder.
            documents: Whether a sample consists of several documents.
        """
        self._folder, self._documents = folder, documents
        listed = TOKEN_COLUMNS | (DOCUMENT_COLUMNS if documents else {})
        columns = {name: pa.list_(kind) for name, kind in listed.items()}
        about = {"length": pa.int32(), **({"prompt": pa.int32()} if documents else {})}
        self._schema = pa.schema({**columns, **about})
        self._sink = pa.OSFile(str(folder / "tokens.arrow"), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self._schema)
        self._about: dict[str, list[NDArray]] = {name: [] for name in _ABOUT}
        self._sources = (folder / "sources.jsonl").open("w", encoding="utf-8")

    def __enter__(self) -> SampleWriter:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the file; write what is known of the samples unless an error is on its way."""
        self._writer.close()
        self._sink.close()
        self._sources.close()
        if kind is not None:
            return
        np.savez(
            self._folder / "about.npz",
            allow_pickle=False,
            **{name: np.concatenate(parts) for name, parts in self._about.items() if parts},
        )

    def write(self, columns: Columns) -> None:
        """Append the samples of a chunk."""
        for name in _ABOUT:
            self._about[name].append(getattr(columns, name))
        self._sources.writelines(f"{json.dumps(source)}\n" for source in columns.sources)
        if len(columns.lengths):
            tokens = {name: getattr(columns, name) for name in TOKEN_COLUMNS}
            about: dict[str, Any] = {}
            if self._documents:
                for name in DOCUMENT_COLUMNS:
                    about[name] = _lists(getattr(columns, name), columns.document_counts)
            about["length"] = columns.lengths
            if self._documents:
                about["prompt"] = columns.prompt_tokens
            self._writer.write_batch(_batch(tokens, columns.lengths, about))


class SampleFile:
    """The samples of a rendered source, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Read what is known of the samples; the tokens stay on disk."""
        self.folder = folder
        with np.load(folder / "about.npz", allow_pickle=False) as about:
            known = {name: about[name] for name in about.files}
        known = {name: known.get(name, np.empty(0, dtype)) for name, dtype in _ABOUT.items()}
        self.lengths: NDArray[np.int32] = known["lengths"]
        self.efforts: NDArray[np.int8] = known["efforts"]
        self.row_keys: NDArray[np.uint64] = known["row_keys"]
        self.prompt_keys: NDArray[np.uint64] = known["prompt_keys"]
        self.repeated_tokens: NDArray[np.int32] = known["repeated_tokens"]
        self.special_text: NDArray[np.int32] = known["special_text"]
        self.without_thoughts: NDArray[np.int8] = known["without_thoughts"]
        self.answer_keys: NDArray[np.uint64] = known["answer_keys"]
        self.answer_characters: NDArray[np.int32] = known["answer_characters"]
        self.answer_tokens: NDArray[np.int32] = known["answer_tokens"]

    @cached_property
    def sources(self) -> list[str]:
        """``file:line`` of each sample's row."""
        with (self.folder / "sources.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @cached_property
    def table(self) -> pa.Table:
        """The token columns, mapped into memory."""
        with pa.memory_map(str(self.folder / "tokens.arrow")) as source:
            return pa.ipc.open_stream(source).read_all()

    @property
    def answers(self) -> NDArray[np.int64]:
        """Tokens of the first document of each sample of preferences, without its prompt."""
        first = pc.call_function("list_element", [self.table["documents"], pa.scalar(0)])
        return first.to_numpy().astype(np.int64) - self.table["prompt"].to_numpy()

    def trained_tokens(self) -> NDArray[np.int64]:
        """Return ``[samples, channels]``, how many tokens of each channel are trained."""
        kinds = len(CHANNEL_NAMES)
        found = [np.empty((0, kinds), np.int64)]
        for batch in self.table.to_batches():
            samples = np.repeat(np.arange(len(batch)), batch["length"].to_numpy())
            channels = batch["channels"].flatten().to_numpy()
            trained = batch["loss_weights"].flatten().to_numpy() > 0
            cells = samples[trained] * kinds + channels[trained]
            found.append(np.bincount(cells, minlength=len(batch) * kinds).reshape(-1, kinds))
        return np.concatenate(found)


def joined(files: Sequence[SampleFile]) -> Dataset:
    """Return the samples of several sources as one dataset, without copying their tokens.

    Its column ``sources`` holds the number of the file that a sample is from, in a list of one.
    """
    from datasets import Dataset, concatenate_datasets

    parts: list[Any] = []
    for number, file in enumerate(files):
        part: Any = Dataset.from_file(str(file.folder / "tokens.arrow"))
        numbers = pa.array(np.full(len(part), number, np.int16))
        lists = pa.ListArray.from_arrays(
            pa.array(np.arange(len(part) + 1, dtype=np.int32)), numbers
        )
        column: Any = Dataset(pa.table({"sources": lists}))
        parts.append(concatenate_datasets([part, column], axis=1))
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def write_packed(
    folder: Path,
    files: Sequence[SampleFile],
    samples: NDArray[np.int64],
    packed: PackedRows,
    phases: NDArray[np.int8] | None,
    mismatch: Mismatch | None = None,
) -> None:
    """Write packed rows into a folder.

    Args:
        folder: An empty folder.
        files: The rendered sources that ``samples`` counts through.
        samples: ``[n]`` indices into the samples of all files, laid end to end.
        packed: Rows of indices into ``samples``.
        phases: ``[rows]`` phase of the curriculum, or None.
        mismatch: Whose answer each sample is given besides, or None.
    """
    tokens = pa.concat_tables([file.table for file in files])
    ends = np.cumsum([len(file.lengths) for file in files])
    sources = np.searchsorted(ends, samples, side="right").astype(np.int16)
    writer = None
    with pa.OSFile(str(folder / "tokens.arrow"), "wb") as sink:
        for first in range(0, len(packed), ROWS_A_BATCH):
            last = min(first + ROWS_A_BATCH, len(packed))
            batch = _packed_batch(tokens, samples, sources, packed, phases, first, last)
            if mismatch is not None:
                batch = _with_mismatched(batch, tokens, samples, packed, mismatch, first, last)
            if writer is None:
                writer = pa.ipc.new_stream(sink, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()


def read_packed(folder: Path) -> Dataset:
    """Return what ``write_packed`` wrote."""
    from datasets import Dataset

    return Dataset.from_file(str(folder / "tokens.arrow"))


def write_counts(folder: Path, report: RowCounts) -> None:
    """Keep a report beside the samples it is about."""
    (folder / "report.json").write_text(json.dumps(report.to_json()), encoding="utf-8")


def read_counts(folder: Path) -> RowCounts:
    """Return the report kept in a folder."""
    return RowCounts.from_json((folder / "report.json").read_text(encoding="utf-8"))


def _packed_batch(
    tokens: pa.Table,
    samples: NDArray[np.int64],
    sources: NDArray[np.int16],
    packed: PackedRows,
    phases: NDArray[np.int8] | None,
    first: int,
    last: int,
) -> pa.RecordBatch:
    members = packed.samples[packed.offsets[first] : packed.offsets[last]]
    taken = tokens.take(pa.array(samples[members]))
    lengths = taken["length"].to_numpy()
    starts = packed.offsets[first:last] - packed.offsets[first]
    row_lengths = np.add.reduceat(lengths, starts).astype(np.int32)
    columns = {name: taken[name].combine_chunks().flatten().to_numpy() for name in TOKEN_COLUMNS}
    several = "documents" in taken.column_names
    documents, counts = lengths, np.ones(len(members), dtype=np.int32)
    if several:
        listed = taken["documents"].combine_chunks()
        documents, counts = listed.flatten().to_numpy(), listed.value_lengths().to_numpy()
    columns["position_ids"] = positions(documents)
    about: dict[str, Any] = {"length": row_lengths}
    by_row = np.add.reduceat(counts, starts)
    about["sources"] = _lists(np.repeat(sources[members], counts), by_row)
    if several:
        branches = taken["branches"].combine_chunks().flatten().to_numpy()
        sizes = np.diff(np.append(starts, len(members)))
        in_row = np.arange(len(members)) - np.repeat(starts, sizes)
        about["branches"] = _lists(branches, by_row)
        about["samples"] = _lists(np.repeat(in_row, counts).astype(np.int32), by_row)
    if phases is not None:
        about["phase"] = phases[first:last]
    return _batch(columns, row_lengths, about)


class Mismatch(NamedTuple):
    """Which answers are given to which prompts: ``partners [n]`` of samples, cut to a length."""

    partners: NDArray[np.int64]
    max_length: int


def _with_mismatched(
    batch: pa.RecordBatch,
    tokens: pa.Table,
    samples: NDArray[np.int64],
    packed: PackedRows,
    mismatch: Mismatch,
    first: int,
    last: int,
) -> pa.RecordBatch:
    """Return packed rows with the mismatched documents of their samples, as columns ``kl_...``."""
    members = packed.samples[packed.offsets[first] : packed.offsets[last]]
    asked, answered = (
        tokens.take(pa.array(samples[which])) for which in (members, mismatch.partners[members])
    )
    starts = packed.offsets[first:last] - packed.offsets[first]
    columns, lengths = mismatched(asked, answered, starts, max_length=mismatch.max_length)
    columns["position_ids"] = positions(lengths)
    row_lengths = np.add.reduceat(lengths, starts)
    for name, values in columns.items():
        batch = batch.append_column(f"kl_{name}", _lists(values, row_lengths))
    return batch


def positions(documents: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return 0, 1, ... for the tokens of each of several documents, given their lengths."""
    # The place among all tokens less the place where the document starts.
    starts = np.repeat(np.cumsum(documents) - documents, documents)
    return (np.arange(int(documents.sum())) - starts).astype(np.int32)


def _lists(values: NDArray, counts: NDArray[np.integer]) -> pa.ListArray:
    """Return ``values`` cut into lists of so many each."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _batch(
    tokens: dict[str, NDArray], lengths: NDArray[np.int32], about: dict[str, Any]
) -> pa.RecordBatch:
    lists: dict[str, Any] = {name: _lists(values, lengths) for name, values in tokens.items()}
    others = {
        name: values if isinstance(values, pa.Array) else pa.array(values)
        for name, values in about.items()
    }
    return pa.RecordBatch.from_pydict({**lists, **others})
