"""Tokens of a recipe's data before it is read: the sizes of its files, and a look at their rows.

A file of pairs that writes the prompt once is trained on with the prompt in front of both answers,
and one that repeats the prompt in three columns is not trained on three times. How much that makes
is told by the first rows, where they are lines of JSON.

Rendering the data was the alternative: it needs the base's vocabulary, which a plan does not load.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.recipe.data_schema import DataSection, DataSource

BYTES_PER_TOKEN = 4.0
"""Bytes of a conversation file for one token, markup included: a rule of thumb for English."""

_PLAIN_FILES = {".jsonl", ".ndjson", ".json", ".csv", ".txt"}
_LINES = {".jsonl", ".ndjson"}
_ROWS_READ, _LONGEST_ROW = 200, 2**20
# The columns of a pair's two answers, and those that both of them follow.
_ANSWERS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("response1", "response2"),
)
_BEFORE = ("prompt", "input", "context", "system", "tools")


@dataclass(frozen=True)
class DataTokens:
    """Tokens of some data, estimated.

    Attributes:
        count: Tokens of one pass.
        origin: Where the number comes from, in words.
    """

    count: int
    origin: str


def tokens_in_files(sources: list[DataSource], *, branches: int = 1) -> DataTokens | None:
    """Return the tokens of data by its size; ``None`` unless all of it is in plain files.

    Args:
        sources: The data.
        branches: Answers of a row, each of which is read after its prompt: 2 for pairs.
    """
    total, looked_into = 0.0, True
    for source in sources:
        path = Path(source.path)
        if path.suffix.lower() not in _PLAIN_FILES or not path.is_file() or source.limit:
            return None
        size = path.stat().st_size / BYTES_PER_TOKEN * source.weight
        grown = None if branches == 1 or source.columns else _growth_of_pairs(path)
        looked_into = looked_into and grown is not None
        total += size * (grown or 1.0)
    origin = f"file sizes at {BYTES_PER_TOKEN:g} bytes a token"
    if branches > 1:  # shorter, so that a line of a plan holds it
        prompts = "prompts twice" if looked_into else "prompts as written"
        origin = f"file bytes / {BYTES_PER_TOKEN:g}, {prompts}"
    return DataTokens(int(total), origin)


def prompts_in_files(sources: list[DataSource]) -> int | None:
    """Return the rows of data, as often as they are used; ``None`` unless all are lines of JSON."""
    total = 0.0
    for source in sources:
        path = Path(source.path)
        if path.suffix.lower() not in _LINES or not path.is_file() or source.limit:
            return None
        with path.open("rb") as stream:
            total += source.weight * sum(bool(line.strip()) for line in stream)
    return int(total)


def prompt_tokens(data: DataSection, most: int) -> tuple[int, str]:
    """Return the tokens of a prompt on average, and where the number comes from, in words.

    Args:
        data: Whose training rows are counted; their answers and graders count as well.
        most: Tokens that there is room for: taken where the rows cannot be counted.
    """
    tokens, rows = tokens_in_files(data.train), prompts_in_files(data.train)
    if tokens is None or not rows:
        return most, "the most possible"
    return min(most, max(1, tokens.count // rows)), f"row bytes / {BYTES_PER_TOKEN:g}"


def held_out_tokens(data: DataSection, *, branches: int = 1) -> int | None:
    """Return the tokens of one pass over the held-out data, by the files' sizes."""
    found = tokens_in_files(data.train if data.eval is None else data.eval, branches=branches)
    if found is None or data.eval is not None:
        return None if found is None else found.count
    return int(found.count * (data.eval_fraction or 0))


def _growth_of_pairs(path: Path) -> float | None:
    """Return how many times a file's size both branches are, by its first rows; None: unknown."""
    if path.suffix.lower() not in _LINES:
        return None
    written = rendered = 0
    with path.open("rb") as stream:
        for _ in range(_ROWS_READ):
            line = stream.readline(_LONGEST_ROW)
            size = _size_of_branches(line)
            if size is not None:
                written, rendered = written + len(line), rendered + size
    return rendered / written if written else None


def _size_of_branches(line: bytes) -> int | None:
    """Return the bytes of both branches of a row, prompts included; None: no pair is known."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    for names in _ANSWERS:
        answers = [row.get(name) for name in names]
        if None not in answers:
            prompts = [row[name] for name in _BEFORE if row.get(name)]
            whole = any(_holds_its_prompt(answer, row.get("prompt")) for answer in answers)
            before = 0 if whole else sum(map(_size, prompts))
            return sum(before + _size(answer) for answer in answers)
    return None


def _holds_its_prompt(answer: Any, prompt: Any) -> bool:
    """Return whether an answer's column is the whole conversation."""
    if isinstance(answer, list):
        # ShareGPT calls it from and human.
        said = [m.get("role", m.get("from")) for m in answer if isinstance(m, dict)]
        return "user" in said or "human" in said
    return isinstance(answer, str) and isinstance(prompt, str) and answer.startswith(prompt)


def _size(value: Any) -> int:
    """Return the bytes of a value as JSON."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
