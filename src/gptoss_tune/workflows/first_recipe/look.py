"""A look at a data file: its format, how many rows, how long they are, what they teach.

The project's own reader and tokenizer are asked, so that what a recipe is chosen by is what will be
trained. A few hundred rows are rendered: the first ones, others from all over the file, and the
largest, since the longest row decides ``data.max_length``. Rendering all of it was the alternative:
minutes for a large file, and ``check-data`` does so anyway.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.kinds import SampleKind
from gptoss_tune.harmony.dataset.render_rows import row_renderer
from gptoss_tune.harmony.dataset.row_renderer import Columns, RowRenderer, SampleSettings
from gptoss_tune.harmony.dataset.selection import LONGEST_SAMPLE
from gptoss_tune.harmony.formats.detect import PAIRS, format_of
from gptoss_tune.harmony.reading import ReadSettings, ThinkingTags
from gptoss_tune.harmony.render import RenderSettings
from gptoss_tune.harmony.sources.columns import ColumnTemplates
from gptoss_tune.harmony.sources.files import read_file, refuse_unreadable
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.rows import Located, Raw, parse_object
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe.data_schema import DataSource
from gptoss_tune.workflows.first_recipe.columns import columns_for

_FIRST, _DRAWN, _LARGEST = 200, 200, 24
_TAG_WORDS: Final = (b"think", b"thought", b"reasoning", b"scratchpad")
_MOST_ROWS: Final = 200_000
"""Rows that are read; of a larger file the rest is estimated from its size."""
_LARGEST_RENDERED: Final = 4 << 20
"""Bytes of one row; a longer one is over ``LONGEST_SAMPLE`` in any language."""


@dataclass(frozen=True, slots=True)
class DataLook:
    """What a look at data tells.

    Attributes:
        path: As it was given.
        format: ``chat``, ``sharegpt``, ``instruct``, ``text``, ``preference``, ...: how rows are
            read.
        rows: What a row is to a method: ``conversation``, ``pair`` or ``label``.
        count: Rows of the file; estimated where not all were read.
        counted: Whether all were read.
        rendered: Rows that were rendered.
        mean_tokens: Of a sample, both answers of a pair together.
        longest: Tokens of the longest sample that was seen.
        thinking: Share of the rows whose answers have a chain of thought, 0 to 1.
        tools: Whether rows call tools.
        good, bad: Answers by label, among those that were rendered.
        columns: Templates that the rows need; ``None`` where their columns are known.
        tagged: Whether thoughts stand in the text of answers, as ``<think>`` does.
        refused: How many of the rendered rows cannot be trained on, and why the first cannot.
    """

    path: str
    format: str
    rows: str
    count: int
    counted: bool
    rendered: int
    mean_tokens: float
    longest: int
    thinking: float
    tools: bool
    good: int
    bad: int
    columns: dict[str, str] | None
    tagged: bool = False
    refused: tuple[int, str] = (0, "")

    @property
    def tokens(self) -> int:
        """Tokens of all rows, estimated."""
        return round(self.mean_tokens * self.count)

    @property
    def is_text(self) -> bool:
        """Whether rows are documents, which are cut in pieces and not dropped."""
        return self.format == "text"

    @property
    def source(self) -> str | dict[str, Any]:
        """The entry of ``data.train``."""
        return self.path if self.columns is None else {"path": self.path, "columns": self.columns}


def look_at(path: str, vocabulary: Vocabulary) -> DataLook:
    """Return what a file, a folder, a pattern or a dataset on the Hub holds.

    Raises:
        DataError: There is nothing, or no row of it can be trained on.
        HubError: The Hub does not have a dataset of that name.
    """
    size, rows_of = _opened(path)
    picked, read, read_bytes = _pick(rows_of)
    counted = read < _MOST_ROWS
    count = read if counted or not read_bytes else max(read, round(read * size / read_bytes))
    if not picked:
        raise DataError(f"{path}: holds no row; name a file with a JSON object a line")
    columns = _columns_of(picked)
    chosen = [located for _, located in picked]
    if columns is not None:
        chosen = list(ColumnTemplates(columns).rows(chosen))
    name, rows = _shape(chosen)
    renderer, made = _rendered(chosen, rows, vocabulary, "keep")
    tagged = _says_tags(chosen)
    if tagged:
        others, split = _rendered(chosen, rows, vocabulary, "split")
        tagged = split.report.channels["analysis"] > made.report.channels["analysis"]
        renderer, made = (others, split) if tagged else (renderer, made)
    counts = made.report.counts
    if not len(made.lengths):
        raise DataError(_nothing(path, made.report.rejected, counts))
    usual = renderer.columns(
        [row for (large, _), row in zip(picked, chosen, strict=True) if not large]
    )
    lengths = usual.lengths if len(usual.lengths) else made.lengths
    usable = max(1, counts["rows"] - counts["rejected"] - counts["documents"])
    thoughtful = made.report.channels["analysis"] > 0
    signs = Counter(made.branches.tolist()) if rows == "label" else Counter()
    return DataLook(
        path=path,
        format=name,
        rows=rows,
        count=count,
        counted=counted,
        rendered=len(chosen),
        mean_tokens=float(lengths.sum()) / max(1, usual.report.counts["rows"]),
        longest=int(made.lengths.max()),
        thinking=1 - counts["without_thoughts"] / usable if thoughtful else 0.0,
        tools=made.report.channels["commentary"] > 0,
        good=signs[1],
        bad=signs[-1],
        columns=columns,
        tagged=tagged,
        refused=(counts["rejected"], next(iter(made.report.rejected), "")),
    )


def _rendered(
    chosen: list[Located], rows: Any, vocabulary: Vocabulary, tags: ThinkingTags
) -> tuple[RowRenderer, Columns]:
    """Return the samples of rows, and what made them, with thoughts in tags kept or split."""
    settings = SampleSettings(
        *(RenderSettings(), LONGEST_SAMPLE, "drop", "skip"),
        reading=ReadSettings(thinking_tags=tags),
        kind=SampleKind(rows),
    )
    renderer = row_renderer(vocabulary, settings)
    return renderer, renderer.columns(chosen)


def _says_tags(chosen: Iterable[Located]) -> bool:
    """Whether a row may hold thoughts in tags; where none does, nothing is rendered twice."""
    return any(
        (raw if isinstance(raw, bytes) else str(raw).encode()).lower().find(word) >= 0
        for _, raw in chosen
        if not isinstance(raw, DataError)
        for word in _TAG_WORDS
    )


def _opened(path: str) -> tuple[int, Iterable[Located]]:
    """Return the bytes and the rows of a path; local files are not hashed first, as by a run."""
    files = find_files(path)
    if files is None:
        return 0, open_source(DataSource(path=path)).rows()
    for file, name in files:
        refuse_unreadable(file, name)
    # Bytes of a compressed file or a table say little of its rows.
    plain = all(file.suffix.lower() in (".jsonl", ".ndjson") for file, _ in files)
    size = sum(file.stat().st_size for file, _ in files) if plain else 0
    return size, (row for file, name in files for row in read_file(file, name))


def _pick(rows: Iterable[Located]) -> tuple[list[tuple[bool, Located]], int, int]:
    """Return some rows, each with whether it stands for its size alone; rows and bytes read."""
    first: list[Located] = []
    drawn: list[Located] = []
    largest: list[tuple[int, int, Located]] = []
    generator = random.Random(0)  # the same file gives the same recipe
    count = read = 0
    for at, raw in itertools.islice(rows, _MOST_ROWS):
        count += 1
        size = _size(raw)
        read += size + 1
        if size > _LARGEST_RENDERED:
            continue
        if count <= _FIRST:
            first.append((at, raw))
            continue
        if len(drawn) < _DRAWN:
            drawn.append((at, raw))
        elif (place := generator.randrange(count - _FIRST)) < _DRAWN:
            drawn[place] = (at, raw)
        heapq.heappush(largest, (size, count, (at, raw)))
        if len(largest) > _LARGEST:
            heapq.heappop(largest)
    known = {at for at, _ in drawn}
    extra = [(True, located) for _, _, located in largest if located[0] not in known]
    return [*((False, located) for located in (*first, *drawn)), *extra], count, read


def _size(raw: Raw) -> int:
    if isinstance(raw, bytes):
        return len(raw)
    return len(json.dumps(raw, default=str)) if isinstance(raw, dict) else 0


def _parsed(picked: Iterable[Located]) -> Iterator[tuple[str, dict[str, Any]]]:
    for at, raw in picked:
        try:
            row = parse_object(raw, at) if isinstance(raw, bytes) else raw
        except DataError:
            continue
        if isinstance(row, dict):
            yield at, row


def _columns_of(picked: list[tuple[bool, Located]]) -> dict[str, str] | None:
    """Return the templates of rows that no format knows, by the first that can be read."""
    for at, row in _parsed(located for _, located in picked):
        try:
            name = format_of(row, at)
        except DataError as error:
            found = columns_for(row)
            if found is None:
                todo = "or rename them in the file, and a first recipe needs no columns"
                raise DataError(f"{error}; {todo}") from None
            return found
        # A question is not enough: its answer may have another name.
        return columns_for(row) if name == "prompt" else None
    return None


def _shape(chosen: list[Located]) -> tuple[str, Any]:
    """Return the format of most rows, and what a row is to a method."""
    formats: Counter[str] = Counter()
    labelled = 0
    for at, row in _parsed(chosen):
        try:
            formats[format_of(row, at)] += 1
        except DataError:
            continue
        labelled += row.get("label") is not None
    if not formats:
        return "unknown", "conversation"
    name, most = formats.most_common(1)[0]
    if name in PAIRS:
        return name, "pair"
    return name, "label" if 2 * labelled > most else "conversation"


def _nothing(path: str, rejected: list[str], counts: Counter[str]) -> str:
    if rejected:
        return f"{path}: none of the first {counts['rows']:,} rows can be trained on; {rejected[0]}"
    if counts["too_long"]:
        return f"{path}: every row is longer than {LONGEST_SAMPLE:,} tokens; split the rows"
    return f"{path}: nothing in its rows is trained; a row needs an answer of the assistant"
