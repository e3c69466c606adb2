"""Data sections of a recipe -> datasets that a trainer can read.

``load_dataset`` is the seam to training: rows of ``input_ids``, ``loss_weights``, ``channels``,
``length`` and ``sources`` (the number of the source of each document of the row), and
``position_ids`` in packed rows, as Arrow columns on disk, mapped into memory. The labels are
derived where the loss is, from ids and weights.

Each source is rendered once, row by row, into an Arrow file in the cache under the hash of its
content and of every setting that shapes it; splitting, mixing and packing work on the lengths and
hashes of the samples and copy tokens only for packed rows. ``datasets.map`` over a loaded dataset
was the alternative: no line numbers in its errors, its cache keyed by pickled code, and a row that
becomes several samples costs a Python list per token.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset import arrow
from gptoss_tune.harmony.dataset.cache import built_once, cache_key
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.kinds import CONVERSATIONS, SampleKind
from gptoss_tune.harmony.dataset.mismatched import partners
from gptoss_tune.harmony.dataset.render_rows import default_processes, render_rows
from gptoss_tune.harmony.dataset.row_renderer import SampleSettings
from gptoss_tune.harmony.dataset.selection import (
    Selection,
    Split,
    held_out_rows,
    rows_of,
    select,
)
from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.guards.sources import effort_advice, source_warnings
from gptoss_tune.harmony.reading import ReadSettings
from gptoss_tune.harmony.render import RenderSettings
from gptoss_tune.harmony.sources.open import OpenedSource, open_source
from gptoss_tune.harmony.vocabulary import RANKS_SHA256, Vocabulary

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from gptoss_tune.recipe import DataSection, DataSource

RENDERING: Final = 5
"""Number of the rendering; raised when a row gives other tokens or counts, or lies otherwise."""
PACKED: Final = 2
"""Number of the layout of packed rows; raised when they lie otherwise on disk."""
MOST_SHOWN: Final = 20
"""Kinds of rejected rows that one message lists."""
STOP_AFTER: Final = 100
"""With on_error: stop, rejected rows after which the rest is not read."""


@dataclass(frozen=True, slots=True)
class RenderedSource:
    """The samples of one source, on disk.

    Attributes:
        source: What the recipe says.
        key: Name of the cached rendering.
        samples: ``arrow.SampleFile`` of it.
        report: What happened to its rows.
        kind: What they are to the method.
    """

    source: DataSource
    key: str
    samples: arrow.SampleFile
    report: RowCounts
    kind: SampleKind = CONVERSATIONS

    @property
    def held_together(self) -> NDArray[np.uint64]:
        """Hash of each sample by which it is held out: equal ones never part.

        That of its row, or, of preferences, of its prompt: an answer that is known to be better
        would tell of the others.
        """
        conversation = self.kind.rows == "conversation"
        return self.samples.row_keys if conversation else self.samples.prompt_keys


def load_dataset(
    data: DataSection,
    *,
    split: Split,
    vocabulary: Vocabulary,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
    kind: SampleKind = CONVERSATIONS,
    efforts: Counter[str] | None = None,
) -> Dataset:
    """Return the rendered samples of a split, packed when the recipe says so.

    Rows of preferences have ``position_ids`` packed or not, and for each of their documents
    ``branches`` (1 preferred, -1 not) and ``samples`` (the number of its sample in the row);
    labelled answers also the mismatched documents of ``mismatched.py``, as columns ``kl_...``.

    With ``curriculum: reasoning_effort`` the dataset has a column ``phase`` (0 to 2) besides, for
    ``order.EpochSampler``.

    Args:
        data: The recipe's data section.
        split: ``eval`` is ``data.eval``, or the held-out share of ``data.train``.
        vocabulary: To render with.
        seed: Of the held-out share, of drawn halves, and of packing.
        tell: Called with each thing that is lost or may be meant otherwise, a line each.
        kind: What the rows are to the method.
        efforts: Is told how many samples there are of each reasoning effort.

    Raises:
        DataError: Rows cannot be trained on, or nothing is left to train on.
        HubError: A dataset on the Hub cannot be had.
        MachineError: The cache cannot be written, or a worker died.
    """
    sources = split_sources(data, split)
    rendered = [render_source(source, data, vocabulary, kind) for source in sources]
    refuse_rejected(rendered, data)
    if efforts is not None:
        for one in rendered:
            efforts.update(one.report.efforts)
    if tell is not None:
        for one in rendered:
            label = f"{split}: {one.source.path}"
            advice = effort_advice(one.source, data)
            for line in source_warnings(one.report, one.samples, label, advice):
                tell(line)
    selection = select(rendered, data, split=split, seed=seed)
    if not data.packing and kind.rows == "conversation":
        return _unpacked(rendered, selection, data)
    return _packed(rendered, selection, data, split=split, seed=seed, kind=kind)


def _packed(
    rendered: Sequence[RenderedSource],
    selection: Selection,
    data: DataSection,
    *,
    split: Split,
    seed: int,
    kind: SampleKind,
) -> Dataset:
    """Return rows of several documents, from the cache when they are there."""
    packed = rows_of(selection, data, seed=seed)
    parts: list[Any] = [[one.key for one in rendered], data.max_length, seed, split]
    parts += [data.curriculum, data.packing, asdict(kind)]
    digest = hashlib.sha256(selection.samples.tobytes()).hexdigest()
    key = cache_key(["packed", PACKED, RENDERING, parts, digest])
    mismatch = None
    if kind.rows == "label":
        keys = np.concatenate([one.samples.prompt_keys for one in rendered])[selection.samples]
        answers = np.concatenate([one.samples.answers for one in rendered])[selection.samples]
        mismatch = arrow.Mismatch(partners(keys, answers, seed=seed), data.max_length)

    def build(folder: Path) -> None:
        files = [one.samples for one in rendered]
        phases = selection.phases_of(packed) if data.curriculum != "none" else None
        arrow.write_packed(folder, files, selection.samples, packed, phases, mismatch)

    modes = [one.samples.folder.stat().st_mode for one in rendered]
    private = not all(mode & stat.S_IROTH for mode in modes)
    return arrow.read_packed(built_once(key, build, private=private))


def row_sources(
    data: DataSection,
    rows: Sequence[int],
    *,
    vocabulary: Vocabulary,
    seed: int = 0,
    kind: SampleKind = CONVERSATIONS,
    split: Split = "train",
) -> list[str]:
    """Return ``file:line`` of the samples in some rows of a split, read from the cache.

    Args:
        data: The recipe's data section.
        rows: Row numbers in the dataset that ``load_dataset`` returns.
        vocabulary: As given to ``load_dataset``.
        seed: Likewise.
        kind: Likewise.
        split: Likewise.
    """
    sources = split_sources(data, split)
    rendered = [render_source(source, data, vocabulary, kind) for source in sources]
    selection = select(rendered, data, split=split, seed=seed)
    names = [name for one in rendered for name in one.samples.sources]
    packed = rows_of(selection, data, seed=seed)
    return [names[selection.samples[sample]] for row in rows for sample in packed[row]]


def held_out_places(
    data: DataSection,
    vocabulary: Vocabulary,
    *,
    seed: int,
    kind: SampleKind = CONVERSATIONS,
) -> frozenset[str] | None:
    """Return ``file:line`` of the rows that ``eval_fraction`` holds out of ``data.train``.

    They are those of training: the same hashes, drawn by the same seed. ``None``: held-out data are
    files of their own, or none.

    Args:
        data: The recipe's data section.
        vocabulary: As given to ``load_dataset``.
        seed: Likewise.
        kind: Likewise.
    """
    if data.eval_fraction is None:
        return None
    rendered = [render_source(source, data, vocabulary, kind) for source in data.train]
    held_out = held_out_rows(rendered, data, seed)
    assert held_out is not None
    places: set[str] = set()
    for one in rendered:
        names = one.samples.sources
        places.update(names[n] for n in np.flatnonzero(np.isin(one.held_together, held_out)))
    return frozenset(places)


def split_sources(data: DataSection, split: Split) -> list[DataSource]:
    """Return the sources a split is read from.

    Raises:
        DataError: The recipe names no held-out data.
    """
    if split == "train" or data.eval_fraction is not None:
        return list(data.train)
    if data.eval is None:
        raise DataError("the recipe holds nothing out; set data.eval or data.eval_fraction")
    return list(data.eval)


def render_source(
    source: DataSource,
    data: DataSection,
    vocabulary: Vocabulary,
    kind: SampleKind = CONVERSATIONS,
) -> RenderedSource:
    """Return the rendering of a source, from the cache when it is there.

    Raises:
        DataError: The source cannot be read, or, with ``on_error: stop``, over 100 rows of it
            cannot be trained on, or it was changed while it was read.
    """
    opened = open_source(source)
    settings = sample_settings(data, kind, source)
    most = data.max_errors if data.on_error == "skip" else STOP_AFTER
    versions = [RENDERING, RANKS_SHA256, version("openai-harmony"), version("tiktoken")]
    key = cache_key(["samples", versions, opened.fingerprint, asdict(settings)])

    def build(folder: Path) -> None:
        report = RowCounts()
        processes = data.dataset_num_proc or default_processes(opened.size)
        several = kind.rows != "conversation"
        with arrow.SampleWriter(folder, documents=several) as writer:
            for columns in render_rows(opened.rows(), vocabulary, settings, processes):
                report.add(columns.report)
                _stop_when_over(most, report, opened, data)
                writer.write(columns)
        arrow.write_counts(folder, report)
        opened.confirm()

    folder = built_once(key, build, private=opened.private)
    counts = arrow.read_counts(folder)
    return RenderedSource(source, key, arrow.SampleFile(folder), counts, kind)


def effort_of(source: DataSource, data: DataSection) -> Effort:
    """Return the reasoning effort of rows of a source that name none."""
    return source.reasoning_effort or data.reasoning_effort


def sample_settings(
    data: DataSection, kind: SampleKind = CONVERSATIONS, source: DataSource | None = None
) -> SampleSettings:
    """Return what shapes the samples of a row; ``source``: whose row, where that is known."""
    render = RenderSettings(
        reasoning_effort=data.reasoning_effort if source is None else effort_of(source, data),
        date=data.date,
        channel_weights=tuple(data.channel_weights.model_dump().items()),
        turns=data.turns,
    )
    reading = ReadSettings(
        thinking_tags=data.thinking_tags,
        roles=tuple(sorted(data.roles.items())),
        tool_names=tuple(sorted(data.tool_names.items())),
        ignored_keys=tuple(sorted(data.ignored_keys)),
    )
    return SampleSettings(
        render, data.max_length, data.too_long, data.nothing_to_train, reading, kind
    )


def refuse_rejected(rendered: Sequence[RenderedSource], data: DataSection) -> None:
    """Stop when rows were rejected and the recipe does not skip them.

    Raises:
        DataError: Lists the first of them.
    """
    report = RowCounts()
    for one in rendered:
        report.add(one.report)
    rejected = report.counts["rejected"]
    if rejected and data.on_error == "stop":
        raise DataError(rejected_message(report, "fix them, or set data.on_error to skip"))
    if rejected > data.max_errors:
        raise DataError(rejected_message(report, _over(data)))


def rejected_message(report: RowCounts, todo: str) -> str:
    """Return the message for rejected rows: the first of each kind, one a line."""
    rejected = report.counts["rejected"]
    if rejected == 1:
        return report.rejected[0]
    kinds = list(map(str, report.mistakes.values()))
    shown = kinds[:MOST_SHOWN]
    more = [f"... and {len(kinds) - len(shown)} more kinds"] if len(kinds) > len(shown) else []
    return "\n  ".join([f"{rejected} rows cannot be trained on; {todo}:", *shown, *more])


def _stop_when_over(most: int, report: RowCounts, opened: OpenedSource, data: DataSection) -> None:
    if report.counts["rejected"] <= most:
        return
    todo = (
        f"reading {opened.label} stopped here; fix them, or set data.on_error to skip"
        if data.on_error == "stop"
        else _over(data)
    )
    raise DataError(rejected_message(report, todo))


def _over(data: DataSection) -> str:
    return f"that is over data.max_errors {data.max_errors}; fix them, or raise it"


def _unpacked(
    rendered: Sequence[RenderedSource], selection: Selection, data: DataSection
) -> Dataset:
    dataset: Any = arrow.joined([one.samples for one in rendered])
    if not np.array_equal(selection.samples, np.arange(len(dataset))):
        dataset = dataset.select(selection.samples)
    if data.curriculum != "none":
        dataset = dataset.add_column("phase", selection.efforts)
    return dataset
