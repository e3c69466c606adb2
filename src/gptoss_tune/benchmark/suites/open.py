"""A name or a path -> a ``Suite``: a shipped one, a suite file, or a bare file of tasks.

Every row is read before a gigabyte of weights is, and every mistake in all of them is in one
message.
"""

from __future__ import annotations

import difflib
import glob
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from gptoss_tune.benchmark.subjects.subject import Asking
from gptoss_tune.benchmark.suites.listing import nearest, suite_path
from gptoss_tune.benchmark.suites.needles import needle_rows
from gptoss_tune.benchmark.suites.packages import PREFIX, package_file
from gptoss_tune.benchmark.suites.read import read_suite_file
from gptoss_tune.benchmark.suites.schema import SuiteFile, TaskSource
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.evaluate.prompts import Question, questions_of, read_located
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.formats.registry import read_unanswered
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.sources.columns import ColumnTemplates
from gptoss_tune.harmony.sources.files import READERS, format_suffix, read_file
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.rows import Located
from gptoss_tune.recipe.data_schema import GRADER_KEYS

_YAML: Final = (".yaml", ".yml")
_OTHER_COLUMNS: Final = (
    "Write these keys, or in a suite file 'columns' beside the path of the tasks, which makes them "
    "of other columns: columns: {prompt: '{{ question }}', answer: '{{ solution }}'}"
)


def open_suite(
    name_or_path: str,
    renderer: Renderer,
    *,
    efforts: Sequence[Effort] = ("medium",),
    limit: int | None = None,
    reading: ReadSettings = AS_IT_STANDS,
) -> Suite:
    """Return a suite with all its questions.

    Args:
        name_or_path: ``maths`` and others that ``gptoss-tune suites`` lists; a suite file; or a
            file of tasks, whose every row says how it is graded.
        renderer: Renders prompts as training does.
        efforts: Of tasks that name none, where the suite names none either.
        limit: Ask this many tasks at most, besides the suite's own limit.
        reading: How rows are read.

    Raises:
        RecipeError: There is no such suite, or its file has mistakes.
        DataError: A file or row cannot be used; all such rows of the suite are listed.
    """
    path = suite_path(name_or_path)
    if path is None:
        near = nearest(name_or_path)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise RecipeError(
            f"{name_or_path}: no such suite; {meant}'gptoss-tune suites' lists the shipped ones, "
            "others are named by a .yaml or a .jsonl file"
        )
    if format_suffix(path) in _YAML:
        file = read_suite_file(path)
        folder = Path(path).parent
    else:
        file, folder = _bare(path), Path()
    questions = _questions(file, folder, renderer, efforts=efforts, limit=limit, reading=reading)
    asking = Asking(file.max_new_tokens, file.temperature, file.top_p)
    return Suite(file.name, file.description, tuple(questions), asking, file.samples, file.licence)


def is_suite_file(name_or_path: str) -> bool:
    """Return whether a name means a suite file, shipped or not, and no bare file of tasks."""
    path = suite_path(name_or_path)
    return path is not None and format_suffix(path) in _YAML


def _bare(path: str) -> SuiteFile:
    """Return what a suite file around one file of tasks would say."""
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in Path(path).name.split(".")[0])
    return SuiteFile(
        name=name.lower().strip("-") or "tasks",
        description=f"The tasks in {path}.",
        licence="unknown",
        source=path,
        tasks=[TaskSource(path=path)],
    )


def _questions(
    file: SuiteFile,
    folder: Path,
    renderer: Renderer,
    *,
    efforts: Sequence[Effort],
    limit: int | None,
    reading: ReadSettings,
) -> list[Question]:
    """Return the questions of a suite.

    Raises:
        DataError: A row cannot be asked, or has no grader.
    """
    asked: Sequence[Effort] = file.reasoning_effort or efforts

    def read(row: dict[str, Any], source: str) -> list[Question]:
        told = read_unanswered(row, source, reading, other_columns=_OTHER_COLUMNS)
        conversation = _with_instructions(told, file.instructions)
        grader = read_grader(row, source, file.grader)
        if grader is None:
            raise DataError(
                f"{source}: nothing grades the answer; give the row an answer, a pattern or a "
                "grader, or the suite a grader for all rows"
            )
        return questions_of(
            conversation, grader, renderer, efforts=asked, max_new_tokens=file.max_new_tokens
        )

    if file.needles is not None:
        rows: Iterator[Located] = needle_rows(file.needles, file.name, renderer, asked[0])
    else:
        rows = itertools.chain.from_iterable(_rows(source, folder) for source in file.tasks or ())
    most = min((n for n in (file.limit, limit) if n is not None), default=None)
    questions = [question for group in read_located(rows, most, read) for question in group]
    if not questions:
        raise DataError(f"{file.name}: the suite has no tasks; expected at least one row")
    return questions


def _with_instructions(conversation: Conversation, instructions: str | None) -> Conversation:
    """Put the suite's developer message before the row's own."""
    if instructions is not None:
        own = conversation.instructions
        conversation.instructions = instructions if own is None else f"{instructions}\n\n{own}"
    return conversation


def _rows(source: TaskSource, folder: Path) -> Iterator[Located]:
    """Yield the rows of one source, as its columns write them."""
    if source.path.startswith(PREFIX):
        files = [(package_file(source.path), source.path)]
    else:
        path = source.path if Path(source.path).is_absolute() else str(folder / source.path)
        found = find_files(path) if Path(path).exists() or glob.has_magic(path) else None
        if found is None:
            raise DataError(_missing(Path(path)))
        files = found
    rows = itertools.chain.from_iterable(read_file(file, name) for file, name in files)
    rows = itertools.islice(rows, source.limit)
    if source.columns is None:
        return rows
    columns = {str(name): template for name, template in source.columns.items()}
    return ColumnTemplates(columns, structured=GRADER_KEYS).rows(rows)


def _missing(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"{path}: no such file{hint}; tasks are read from local files, a path is relative to the "
        f"suite's folder; expected one of {', '.join(READERS)}"
    )
