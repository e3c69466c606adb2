"""Which samples make up a split, and which of them share a row.

Everything is decided from lengths, hashes and efforts of samples, by the seed: tokens are copied
only when rows are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import CHANNEL_NAMES, CHANNELS, TEXT
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.packing import PackedRows, efficiency, pack
from gptoss_tune.harmony.fields import EFFORTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.harmony.dataset.load import RenderedSource
    from gptoss_tune.recipe import DataSection

LONGEST_SAMPLE: Final = 131_072
"""Most that data.max_length can be: what gpt-oss reads."""

Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which samples make up a split.

    Attributes:
        samples: ``[n]`` int64 indices into the sources' samples, laid end to end.
        lengths: ``[n]`` int32 tokens of each.
        efforts: ``[n]`` int8, 0 low, 1 medium, 2 high.
    """

    samples: NDArray[np.int64]
    lengths: NDArray[np.int32]
    efforts: NDArray[np.int8]

    def phases_of(self, packed: PackedRows) -> NDArray[np.int8]:
        """Return the phase of the curriculum of each row, ``[rows]``: its samples' effort."""
        return self.efforts[packed.samples[packed.offsets[:-1]]]


def select(
    rendered: Sequence[RenderedSource], data: DataSection, *, split: Split, seed: int
) -> Selection:
    """Return the samples of a split: without what is held out, each as often as its weight says.

    Raises:
        DataError: No sample is left.
    """
    chosen: list[NDArray[np.int64]] = []
    start = 0
    held_out = held_out_rows(rendered, data, seed)
    for number, one in enumerate(rendered):
        indices = np.arange(len(one.samples.lengths), dtype=np.int64)
        if held_out is not None:
            is_held_out = np.isin(one.held_together, held_out)
            indices = indices[is_held_out if split == "eval" else ~is_held_out]
        if split == "train":
            indices = _repeated(indices, one.source.weight, seed=seed, number=number)
        chosen.append(indices + start)
        start += len(one.samples.lengths)
    samples = np.concatenate(chosen)
    if not len(samples):
        raise DataError(_nothing_left(rendered, data, split))
    lengths = np.concatenate([one.samples.lengths for one in rendered])[samples]
    efforts = np.concatenate([one.samples.efforts for one in rendered])[samples]
    efforts = np.maximum(efforts, 0)  # raw text, which has none, goes with low
    if data.curriculum != "none":
        by_effort = np.argsort(efforts, kind="stable")
        samples, lengths, efforts = samples[by_effort], lengths[by_effort], efforts[by_effort]
    return Selection(samples, lengths, efforts)


def pack_selection(selection: Selection, data: DataSection, *, seed: int) -> PackedRows:
    """Return which samples share a row; phases of a curriculum never share one."""
    phases = selection.efforts if data.curriculum != "none" else np.zeros_like(selection.efforts)
    samples: list[NDArray[np.int64]] = []
    offsets: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
    for phase in np.unique(phases):
        members = np.flatnonzero(phases == phase)
        rows = pack(selection.lengths[members], data.max_length, seed=seed)
        samples.append(members[rows.samples])
        offsets.append(rows.offsets[1:] + offsets[-1][-1])
    return PackedRows(np.concatenate(samples), np.concatenate(offsets))


def rows_of(selection: Selection, data: DataSection, *, seed: int) -> PackedRows:
    """Return the samples of each row: of several with ``data.packing``, else of one each."""
    if data.packing:
        return pack_selection(selection, data, seed=seed)
    each = np.arange(len(selection.samples) + 1, dtype=np.int64)
    return PackedRows(each[:-1], each)


def packing_efficiency(selection: Selection, packed: PackedRows, data: DataSection) -> float:
    """Return the share of the packed rows' tokens that is filled, 0 to 1."""
    return efficiency(selection.lengths, len(packed), data.max_length)


def held_out_rows(
    rendered: Sequence[RenderedSource], data: DataSection, seed: int
) -> NDArray[np.uint64] | None:
    """Return the hashes of what is held out, None for none: of rows, or of prompts of pairs."""
    if data.eval_fraction is None:
        return None
    keys = np.unique(np.concatenate([one.held_together for one in rendered]))
    count = max(1, round(len(keys) * data.eval_fraction))
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    return keys[np.sort(generator.permutation(len(keys))[:count])]


def split_counts(
    one: RenderedSource, held_out: NDArray[np.uint64] | None, split: Split
) -> RowCounts:
    """Return what happened to those rows of a source that are in a split.

    Args:
        one: A source.
        held_out: ``held_out_rows`` of all sources.
        split: Its part of what is counted; what was left out of the file stands with ``train``.
    """
    if held_out is None:
        return one.report
    samples = one.samples
    mask = np.isin(one.held_together, held_out)
    trained = samples.trained_tokens()[mask].sum(axis=0)
    places = {samples.sources[index] for index in np.flatnonzero(mask)}
    part = RowCounts()
    part.counts.update(
        rows=len(places),
        samples=int(mask.sum()),
        tokens=int(samples.lengths[mask].sum()),
        trained_tokens=int(trained.sum()),
        repeated_tokens=int(samples.repeated_tokens[mask].sum()),
        special_text=int(samples.special_text[mask].sum()),
        without_thoughts=int(samples.without_thoughts[mask].sum()),
    )
    documents = np.flatnonzero(mask & (samples.efforts < 0))
    if len(documents):
        pieces = Counter(samples.sources[index] for index in documents)
        part.counts.update(
            documents=len(pieces), cut_documents=sum(number > 1 for number in pieces.values())
        )
    efforts = np.bincount(samples.efforts[mask & (samples.efforts >= 0)], minlength=len(EFFORTS))
    part.efforts.update(dict(zip(EFFORTS, map(int, efforts), strict=True)))
    by_channel = dict(zip(CHANNEL_NAMES, map(int, trained), strict=True))
    part.channels.update({channel: by_channel[channel] for channel in CHANNELS})
    if TEXT in one.report.channels:
        part.channels[TEXT] = by_channel[TEXT]
    part.special_text = [place for place in one.report.special_text if place in places]
    if split == "eval":
        return part
    rest = RowCounts()
    rest.add(one.report)
    for name in ("counts", "efforts", "channels"):
        getattr(rest, name).subtract(getattr(part, name))
    rest.special_text = [place for place in rest.special_text if place not in places]
    return rest


def _repeated(
    indices: NDArray[np.int64], weight: float, *, seed: int, number: int
) -> NDArray[np.int64]:
    whole = int(weight)
    part = round((weight - whole) * len(indices))
    generator = np.random.Generator(np.random.PCG64([seed, 2, number]))
    drawn = np.sort(generator.permutation(len(indices))[:part])
    return np.concatenate([*[indices] * whole, indices[drawn]])


def _nothing_left(rendered: Sequence[RenderedSource], data: DataSection, split: Split) -> str:
    report = RowCounts()
    for one in rendered:
        report.add(one.report)
    counts = report.counts
    names = ", ".join(one.source.path for one in rendered)
    alike = counts["equal_answers"] + counts["ties"]
    said = f", {alike} pairs without a preference" if alike else ""
    return (
        f"{names}: no sample for {split} ({counts['rows']} rows read, {counts['rejected']} "
        f"rejected, {counts['too_long']} samples over {data.max_length} tokens, "
        f"{counts['nothing_to_train']} rows with nothing to train{said}); "
        f"{_way_out(report, data)}"
    )


def _way_out(report: RowCounts, data: DataSection) -> str:
    """Return what to do about the commonest reason for which nothing is left."""
    counts = report.counts
    most = max(("too_long", "rejected", "nothing_to_train"), key=lambda name: counts[name])
    if not counts[most] and counts["samples"]:
        return "every row is held out: add rows, or name other data in data.eval"
    if counts["equal_answers"] + counts["ties"] > counts[most]:
        return "add pairs of different answers, one of them the better one"
    if not counts[most]:
        return "add rows that end with an assistant reply"
    if most == "rejected":
        return "correct the rejected rows; check-data says what is wrong with them"
    if most == "nothing_to_train":
        return "give messages, or their channels, a loss weight above 0"
    shortest = report.shortest_too_long
    if not shortest:
        return "every one is far longer than data.max_length: split the rows"
    if shortest > LONGEST_SAMPLE:
        return f"the shortest has {shortest:,} tokens, more than the model reads: split the rows"
    return (
        f"the shortest of these has {shortest:,} tokens: raise data.max_length, or split the rows"
    )
