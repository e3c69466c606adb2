"""Statistics of a recipe's data: the figures of ``preview`` and ``check-data``.

Everything here is read from the cached renderings, which training reads too: the figures are those
of the rows that are trained on, and a second look costs nothing. Rows are compared by the hash of
their conversation, so a duplicate is found whatever file it stands in; nearly equal rows are not
looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.kinds import CONVERSATIONS, Rows, SampleKind
from gptoss_tune.harmony.dataset.load import RenderedSource, render_source, split_sources
from gptoss_tune.harmony.dataset.pair_statistics import (
    EQUAL_WEIGHTS,
    LISTED,
    NOUNS,
    LabelWeights,
    PairStatistics,
    figure_warnings,
    pair_statistics,
    pair_warnings,
    without_partners,
)
from gptoss_tune.harmony.dataset.selection import (
    Selection,
    Split,
    held_out_rows,
    pack_selection,
    packing_efficiency,
    select,
    split_counts,
)
from gptoss_tune.harmony.guards.sources import effort_advice, source_warnings
from gptoss_tune.harmony.places import Overlap, first_of
from gptoss_tune.harmony.vocabulary import Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.recipe import DataSection

BARS: Final = 16
MOST_NAMED: Final = 20


@dataclass(slots=True)
class SplitStatistics:
    """The figures of one split.

    Attributes:
        sources: Path, weight and report of each source.
        findings: Of each source, what it teaches that no server would want, a line each.
        report: Their reports added up. Where a share of the rows is held out, each split has the
            figures of its own samples; what was left out of the files stands with the training
            split, and so does what is known of files alone.
        samples: Samples of the split, after holding out and mixing.
        tokens: Tokens of these samples.
        lengths: Their smallest, median, mean, 95th percentile and largest length.
        histogram: ``(from, to, samples)``, lengths from (included) to (excluded).
        packed_rows: Rows after packing, None without it.
        filled: Share of the packed rows that is filled, None without packing.
        duplicates: Rows that repeat an earlier one.
        same_prompts: Rows that ask what an earlier one asks, answered differently.
        problem: Why no run can use the split, None when one can.
        rows: What a row is to the method.
        preferences: The figures of both sides of preferences, None for conversations.
    """

    sources: list[tuple[str, float, RowCounts]]
    report: RowCounts
    findings: list[str] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    lengths: dict[str, float] = field(default_factory=dict)
    histogram: list[tuple[int, int, int]] = field(default_factory=list)
    packed_rows: int | None = None
    filled: float | None = None
    duplicates: Overlap = field(default_factory=Overlap)
    same_prompts: Overlap = field(default_factory=Overlap)
    problem: str | None = None
    rows: Rows = "conversation"
    preferences: PairStatistics | None = None

    @property
    def trained_share(self) -> float:
        """Share of the rendered tokens that have a loss weight."""
        tokens = self.report.counts["tokens"]
        return self.report.counts["trained_tokens"] / tokens if tokens else 0.0

    def listed(self) -> Iterator[tuple[str, Overlap]]:
        """Yield what is counted of preferences alone, with its first places.

        ``{}`` in its name stands for what a row is called.
        """
        if self.rows == "conversation":
            return
        counts = self.report.counts
        for name, what in LISTED.items():
            yield what, Overlap(counts[name], self.report.places.get(name, []))
        yield "{} longer than max_length", Overlap(counts["too_long"], self.report.too_long)

    def to_json(self) -> dict[str, Any]:
        """Return the census as JSON values."""
        return {
            "samples": self.samples,
            "tokens": self.tokens,
            "trained_share": self.trained_share,
            "lengths": self.lengths,
            "histogram": [list(bar) for bar in self.histogram],
            "packed_rows": self.packed_rows,
            "filled": self.filled,
            "duplicates": self.duplicates.to_json(),
            "same_prompts": self.same_prompts.to_json(),
            "problem": self.problem,
            **self.report.to_json(),
            **({"preferences": self.preferences.to_json()} if self.preferences else {}),
            "sources": [
                {"path": path, "weight": weight, "counts": dict(report.counts)}
                for path, weight, report in self.sources
            ],
        }


@dataclass(slots=True)
class DataStatistics:
    """The figures of a recipe's data.

    Attributes:
        splits: By name; ``eval`` only where something is held out.
        leaked: Held-out rows that are trained on too.
        leaked_prompts: Held-out rows whose question is trained on, with another answer.
    """

    splits: dict[Split, SplitStatistics]
    leaked: Overlap = field(default_factory=Overlap)
    leaked_prompts: Overlap = field(default_factory=Overlap)

    @property
    def rows(self) -> Rows:
        """What a row is to the method."""
        return self.splits["train"].rows

    @property
    def row(self) -> str:
        """What a row is called."""
        return NOUNS[self.rows][1]

    def problems(self) -> list[str]:
        """Return what stops a run: rows that cannot be trained on, empty splits."""
        found: list[str] = []
        for name, split in self.splits.items():
            rejected = split.report.counts["rejected"]
            if rejected:
                found.append(f"{name}: {_counted(rejected, 'row')} cannot be trained on")
            if split.problem is not None:
                found.append(split.problem)
        return found

    def warnings(self) -> list[str]:
        """Return what a run survives and its owner should know."""
        found: list[str] = []
        for name, split in self.splits.items():
            found += _split_warnings(name, split)
        leaked, asked = self.leaked.rows, self.leaked_prompts.rows
        if leaked:
            found.append(f"eval: {_counted(leaked, self.row, 'that training sees too')}")
        if asked:
            found.append(f"eval: {_counted(asked, self.row, 'whose question training sees too')}")
        return found

    def remarks(self) -> list[str]:
        """Return what a server does alike, and its owner may want to know."""
        return [
            line
            for name, split in self.splits.items()
            for path, _, report in split.sources
            for line in report.lines("remarks", f"{name}: {path}")
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the census as JSON values."""
        return {
            "ok": not self.problems(),
            "problems": self.problems(),
            "warnings": self.warnings(),
            "remarks": self.remarks(),
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "leaked": self.leaked.to_json(),
            "leaked_prompts": self.leaked_prompts.to_json(),
        }


def data_statistics(
    data: DataSection,
    vocabulary: Vocabulary,
    *,
    seed: int,
    kind: SampleKind = CONVERSATIONS,
    weights: LabelWeights = EQUAL_WEIGHTS,
) -> DataStatistics:
    """Return the figures of all data of a recipe; rejected rows are counted, never an error.

    Args:
        data: The recipe's data section.
        vocabulary: To render with.
        seed: Of the held-out share and of packing.
        kind: What the rows are to the method.
        weights: What the method multiplies labels by.

    Raises:
        DataError: A file as a whole cannot be read.
        HubError: A dataset on the Hub cannot be had.
    """
    data = data.model_copy(update={"on_error": "skip", "max_errors": 1_000_000_000})
    splits: dict[Split, SplitStatistics] = {}
    keys: dict[Split, _Rows] = {}
    for split in _splits(data):
        rendered = [
            render_source(source, data, vocabulary, kind) for source in split_sources(data, split)
        ]
        splits[split], keys[split], drawn = _split_census(rendered, data, split=split, seed=seed)
        splits[split].rows = kind.rows
        if kind.rows != "conversation" and drawn is not None:
            files = [one.samples for one in rendered]
            splits[split].preferences = pair_statistics(files, drawn.samples, kind.rows, weights)
        if kind.rows == "label" and drawn is not None:
            splits[split].problem = without_partners(len(drawn.samples), split)
    census = DataStatistics(splits)
    if "eval" in splits:
        held_out, trained = keys["eval"], keys["train"]
        same = np.isin(held_out.rows, trained.rows)
        asked = np.isin(held_out.prompts, trained.prompts)
        census.leaked = _overlap(held_out.places, same)
        census.leaked_prompts = _overlap(held_out.places, asked & ~same)
    return census


def _split_warnings(name: Split, split: SplitStatistics) -> list[str]:
    """Return what a run survives and its owner should know of a split, a line each."""
    report, (sample, row) = split.report, NOUNS[split.rows]
    counts, places = report.counts, report.places
    pairs = split.rows == "pair"
    together = " (both branches together)" if pairs else ""
    # Several answers to one question are what preferences are made of.
    asked_again = split.same_prompts.rows if split.rows == "conversation" else 0
    said = (
        (counts["too_long"], sample, f"dropped, too long{together}", report.too_long),
        (counts["truncated"], sample, "cut, too long", places.get("truncated", [])),
        (
            counts["nothing_to_train"],
            row,
            "without anything to train",
            places.get("nothing_to_train", []),
        ),
        *((*one, []) for one in (pair_warnings(counts) if pairs else ())),
        (
            counts["special_text"],
            "special token",
            "spelled out in text, encoded as text",
            report.special_text,
        ),
        (counts["padding"], "null key", "of tools and calls left out, padding of a table", []),
        (split.duplicates.rows, row, "equal to an earlier one", split.duplicates.places),
        (asked_again, row, "with the question of an earlier one", split.same_prompts.places),
    )
    found = [
        # A row may spell several special tokens.
        f"{name}: {_counted(number, thing, what)}"
        f"{first_of(where, number if thing in (sample, row) else len(where))}"
        for number, thing, what, where in said
        if number
    ]
    if split.preferences is not None:
        found += [f"{name}: {line}" for line in figure_warnings(split.preferences, name)]
    return found + split.findings


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a split: hashes and places, one entry per row."""

    rows: NDArray[np.uint64]
    prompts: NDArray[np.uint64]
    places: list[str]


def _splits(data: DataSection) -> Sequence[Split]:
    held_out = data.eval is not None or data.eval_fraction is not None
    return ("train", "eval") if held_out else ("train",)


def _split_census(
    rendered: list[RenderedSource], data: DataSection, *, split: Split, seed: int
) -> tuple[SplitStatistics, _Rows, Selection | None]:
    report = RowCounts()
    held_out = held_out_rows(rendered, data, seed)
    sources = [
        (one.source.path, one.source.weight, split_counts(one, held_out, split)) for one in rendered
    ]
    for _, _, one in sources:
        report.add(one)
    census = SplitStatistics(sources, report)
    for one, (path, _, part) in zip(rendered, sources, strict=True):
        # Where a share is held out, the answers of the file are looked at once.
        samples = one.samples if split == "train" or held_out is None else None
        advice = effort_advice(one.source, data)
        census.findings += source_warnings(part, samples, f"{split}: {path}", advice)
    rows = _rows_of(rendered, data, split=split, seed=seed)
    first = np.zeros(len(rows.rows), dtype=bool)
    first[np.unique(rows.rows, return_index=True)[1]] = True
    first_asking = np.zeros(len(rows.rows), dtype=bool)
    first_asking[np.unique(rows.prompts, return_index=True)[1]] = True
    census.duplicates = _overlap(rows.places, ~first)
    census.same_prompts = _overlap(rows.places, ~first_asking & first)
    try:
        selection = select(rendered, data, split=split, seed=seed)
    except DataError as error:
        census.problem = str(error)
        return census, rows, None
    _measure(census, selection, data, seed=seed)
    return census, rows, selection


def _measure(
    census: SplitStatistics, selection: Selection, data: DataSection, *, seed: int
) -> None:
    lengths = selection.lengths
    census.samples = len(lengths)
    census.tokens = int(lengths.sum())
    census.lengths = {
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "mean": float(lengths.mean()),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
    }
    census.histogram = histogram(lengths)
    if data.packing:
        packed = pack_selection(selection, data, seed=seed)
        census.packed_rows = len(packed)
        census.filled = packing_efficiency(selection, packed, data)


def histogram(lengths: NDArray[np.integer], bars: int = BARS) -> list[tuple[int, int, int]]:
    """Return ``(from, to, count)`` bars of equal, round width over the lengths.

    There are about ``bars``, and no more than lengths: one more where the round edges fall so.
    """
    smallest, largest = int(lengths.min()), int(lengths.max())
    bars = min(bars, len(lengths))
    steps = (step * 10**power for power in range(9) for step in (1, 2, 5))
    width = next(step for step in steps if (largest - smallest) // step < bars)
    start = smallest // width * width
    edges = range(start, largest + 1, width)
    counts = np.bincount((np.asarray(lengths) - start) // width, minlength=len(edges))
    return [(low, low + width, int(count)) for low, count in zip(edges, counts, strict=True)]


def _rows_of(
    rendered: list[RenderedSource], data: DataSection, *, split: Split, seed: int
) -> _Rows:
    """Return each row once, though it may have given several samples."""
    rows: list[NDArray[np.uint64]] = []
    prompts: list[NDArray[np.uint64]] = []
    places: list[str] = []
    held_out = held_out_rows(rendered, data, seed)
    for one in rendered:
        samples = one.samples
        first = np.ones(len(samples.sources), dtype=bool)
        first[1:] = [a != b for a, b in zip(samples.sources, samples.sources[1:], strict=False)]
        if held_out is not None:
            first &= np.isin(one.held_together, held_out) == (split == "eval")
        rows.append(samples.row_keys[first])
        prompts.append(samples.prompt_keys[first])
        places += [samples.sources[index] for index in np.flatnonzero(first)]
    return _Rows(np.concatenate(rows), np.concatenate(prompts), places)


def _overlap(places: list[str], mask: NDArray[np.bool_]) -> Overlap:
    found = np.flatnonzero(mask)
    return Overlap(len(found), [places[index] for index in found[:MOST_NAMED]])


def _counted(number: int, thing: str, what: str = "") -> str:
    """Return a number of things in words."""
    return f"{number:,} {thing}{'s' if number != 1 else ''} {what}".rstrip()
