"""Rows beside what column templates write of them, for those who read both."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.sources.rows import Located

if TYPE_CHECKING:
    from gptoss_tune.harmony.sources.columns import ColumnTemplates

Read = dict[str, Any] | DataError
"""A row, or why there is none."""


def written_rows(
    located: Iterable[Located], templates: ColumnTemplates | None
) -> Iterator[tuple[str, Read, Read]]:
    """Yield place, row and what templates wrote of it; without templates that is the row.

    With templates a row keeps the columns of its file beside those that are written.
    """
    if templates is None:
        for at, raw in located:
            row = _cleaned(raw, at)
            yield at, row, row
        return
    raws, seen = itertools.tee(located)
    for (at, raw), (_, made) in zip(raws, templates.rows(seen), strict=True):
        row, written = _cleaned(raw, at), _cleaned(made, at)
        if isinstance(row, dict) and isinstance(written, dict):
            row = {**row, **written}
        yield at, row, written


def _cleaned(raw: Any, at: str) -> Read:
    try:
        return clean_row(raw, at)[0]
    except DataError as error:
        return error
