"""Data sections of a recipe -> datasets that a trainer can read.

``load_dataset`` is the seam to training: rows of ``input_ids``, ``loss_weights``, ``channels`` and
``length`` (and ``position_ids`` in packed rows), as Arrow columns. The labels are derived where the
loss is, from ids and weights.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.chat import read_chat
from gptoss_tune.harmony.conversation import count_special_text
from gptoss_tune.harmony.render import Example, Renderer, RenderSettings
from gptoss_tune.harmony.rows import Located, local_file, read_jsonl
from gptoss_tune.harmony.vocabulary import Vocabulary

if TYPE_CHECKING:
    from datasets import Dataset

    from gptoss_tune.recipe import DataSection, DataSource


@dataclass(slots=True)
class Report:
    """What happened to the rows on their way to a dataset."""

    counts: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)


def load_dataset(
    data: DataSection,
    *,
    split: Literal["train", "eval"],
    vocabulary: Vocabulary,
    seed: int = 0,
) -> Dataset:
    """Return the rendered samples of a split.

    With ``eval_fraction`` the training sources serve both splits; a row is held out with all its
    turns, by a hash of the seed and its place, so both calls agree and nothing is shuffled.

    Raises:
        DataError: A row cannot be trained on and ``on_error`` is stop, or nothing is left.
    """
    held_out = data.eval_fraction
    sources = data.train if split == "train" or held_out is not None else data.eval
    if sources is None:
        raise DataError(f"the recipe names no data.{split}; add it")
    settings = RenderSettings(
        reasoning_effort=data.reasoning_effort,
        date=data.date,
        channel_weights=data.channel_weights.model_dump(),
        turns=data.turns,
    )
    report = Report()
    rows = (located for source in sources for located in _read(source))
    if held_out is not None:
        wanted = split == "eval"
        rows = (row for row in rows if (_draw(row[0], seed) < held_out) == wanted)
    examples = list(_examples(rows, Renderer(vocabulary, settings), data, report))
    if not examples:
        names = ", ".join(source.path for source in sources)
        raise DataError(
            f"{names}: no sample to train on ({report.counts['rows']} rows read, "
            f"{report.counts['too_long']} samples over {data.max_length} tokens dropped); add rows "
            "that end with an assistant reply"
        )
    return to_dataset(examples)


def to_dataset(examples: list[Example]) -> Dataset:
    """Return the examples as Arrow columns, without going through Python lists."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = {
        name: pa.ListArray.from_arrays(
            offsets, pa.array(np.concatenate([getattr(example, name) for example in examples]))
        )
        for name in ("input_ids", "loss_weights", "channels")
    }
    return Dataset(InMemoryTable(pa.table({**columns, "length": pa.array(lengths)})))


def _draw(at: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the row's place and the seed alone."""
    digest = hashlib.blake2b(f"{seed}:{at}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _read(source: DataSource) -> Iterator[Located]:
    path = local_file(source.path)
    with path.open("rb") as file:
        yield from read_jsonl(file, source.path)


def _examples(
    rows: Iterable[Located], renderer: Renderer, data: DataSection, report: Report
) -> Iterator[Example]:
    for at, row in rows:
        report.counts["rows"] += 1
        try:
            if isinstance(row, DataError):
                raise row
            conversation = read_chat(row, at)
            examples = renderer.render(conversation)
        except DataError as error:
            if data.on_error == "stop":
                raise
            report.rejected.append(str(error))
            if len(report.rejected) > data.max_errors:
                raise DataError(
                    f"over {data.max_errors} rows were rejected, the last: {error}; mend the data "
                    "or raise data.max_errors"
                ) from None
            continue
        report.counts["special_text"] += sum(map(count_special_text, conversation.texts()))
        for example in examples:
            if len(example.input_ids) <= data.max_length:
                yield example
            elif data.too_long == "error":
                raise DataError(
                    f"{at}: {len(example.input_ids)} tokens, data.max_length is {data.max_length}"
                )
            else:
                report.counts["too_long"] += 1
