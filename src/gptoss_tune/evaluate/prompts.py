"""Prompt files of a recipe -> questions: the ids a server would send, and how to grade the answer.

A row is any row that training reads, or one that ends where the assistant is to answer; a row that
holds the answer already is cut back to its last question. Beside it the row's own keys ``answer``
(a text, or a list of accepted ones) or ``pattern`` (a regular expression) grade the final channel.

All files are read before a gigabyte of weights is, and every mistake in them is in one message.
Templates of columns and datasets on the Hub were left out on purpose: a set of prompts is small,
and one that the run's folder can name by file and line can be looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from gptoss_tune.errors import DataError
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.formats.registry import read_unanswered
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.sources.files import read_file
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.sources.rows import Located

LONGEST_CONTEXT: Final = 131_072
"""Positions that gpt-oss was made for."""
_MOST_SHOWN: Final = 20

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Question:
    """One prompt at one effort.

    Attributes:
        source: ``file:line``.
        effort: Reasoning effort in its system message.
        prompt_ids: Ids up to and including ``<|start|>assistant``.
        messages: What is asked, for people: ``role`` and ``content``.
        recipients: What a call may be addressed to.
        grader: Judges the answer; ``None``: it is a sample only.
        conversation: What is asked, with its effort and tools, for a server to render.
    """

    source: str
    effort: Effort
    prompt_ids: tuple[int, ...]
    messages: tuple[dict[str, str], ...]
    recipients: frozenset[str]
    grader: Grader | None
    conversation: Conversation


def read_questions(
    files: Sequence[str],
    renderer: Renderer,
    *,
    limit: int,
    efforts: Sequence[Effort],
    max_new_tokens: int,
    reading: ReadSettings = AS_IT_STANDS,
) -> list[Question]:
    """Return the questions in ``files``: each row once at each effort, or at its own.

    Args:
        files: Paths as the recipe spells them.
        renderer: Renders prompts as training does.
        limit: Rows to read from the start.
        efforts: Of rows that name none.
        max_new_tokens: Room that an answer needs.
        reading: How the recipe has rows read.

    Raises:
        DataError: Lists every row that cannot be asked, by file and line; or there is no row.
    """

    def read(row: dict[str, Any], source: str) -> list[Question]:
        conversation = read_unanswered(row, source, reading)
        grader = read_grader(row, source)
        return questions_of(
            conversation, grader, renderer, efforts=efforts, max_new_tokens=max_new_tokens
        )

    found = [question for group in read_rows(files, limit, read) for question in group]
    if not found:
        raise DataError(
            f"{', '.join(files)}: holds no row; expected at least one prompt: add some, or remove "
            "the setting that names it from the recipe's evaluation section"
        )
    return found


def read_rows(
    files: Sequence[str], limit: int, read: Callable[[dict[str, Any], str], _Read]
) -> list[_Read]:
    """Return what ``read`` makes of the first ``limit`` rows of ``files``.

    Raises:
        DataError: Lists every row that cannot be used, by file and line.
    """
    return read_located(_rows(files), limit, read)


def read_located(
    rows: Iterable[Located], limit: int | None, read: Callable[[dict[str, Any], str], _Read]
) -> list[_Read]:
    """Return what ``read`` makes of the first ``limit`` rows; ``None``: of all.

    Raises:
        DataError: Lists every row that cannot be used, by file and line.
    """
    found: list[_Read] = []
    mistakes: list[str] = []
    for source, raw in itertools.islice(rows, limit):
        try:
            row, _ = clean_row(raw, source)
            found.append(read(row, source))
        except DataError as error:
            mistakes.append(str(error))
    if len(mistakes) == 1:
        raise DataError(mistakes[0])
    if mistakes:
        shown = mistakes[:_MOST_SHOWN]
        more = [f"... and {len(mistakes) - len(shown)} more"] if len(mistakes) > len(shown) else []
        raise DataError(
            "\n  ".join(
                [f"{len(mistakes)} rows cannot be evaluated with; fix them:", *shown, *more]
            )
        )
    return found


def questions_of(
    conversation: Conversation,
    grader: Grader | None,
    renderer: Renderer,
    *,
    efforts: Sequence[Effort],
    max_new_tokens: int,
) -> list[Question]:
    """Return a conversation as a question at each effort, or at its own.

    Args:
        conversation: Up to where the assistant is to answer.
        grader: Judges the answer.
        renderer: Renders prompts as training does.
        efforts: Where it names none.
        max_new_tokens: Room that an answer needs.

    Raises:
        DataError: It is too long, or cannot be rendered.
    """
    own = conversation.effort
    asked: Sequence[Effort] = efforts if own is None else [own]
    return [_question(conversation, e, grader, renderer, max_new_tokens) for e in asked]


def _question(
    conversation: Conversation,
    effort: Effort,
    grader: Grader | None,
    renderer: Renderer,
    max_new_tokens: int,
) -> Question:
    conversation = replace(conversation, effort=effort)
    ids = renderer.render_prompt(conversation)
    if len(ids) + max_new_tokens > LONGEST_CONTEXT:
        raise DataError(
            f"{conversation.source}: the prompt has {len(ids):,} tokens; with "
            f"max_new_tokens {max_new_tokens:,} that is over the {LONGEST_CONTEXT:,} of "
            "gpt-oss: shorten one of the two"
        )
    messages = [{"role": m.header.role, "content": m.text} for m in conversation.messages]
    if conversation.instructions is not None:
        messages.insert(0, {"role": "developer", "content": conversation.instructions})
    return Question(
        source=conversation.source,
        effort=effort,
        prompt_ids=tuple(ids),
        messages=tuple(messages),
        recipients=frozenset(conversation.recipients()),
        grader=grader,
        conversation=conversation,
    )


def _rows(files: Sequence[str]) -> Iterator[Located]:
    for path in files:
        found = find_files(path)
        if found is None:
            raise DataError(
                f"{path}: no such file; prompts are read from local files: download it, or check "
                "the path"
            )
        for file, name in found:
            yield from read_file(file, name)
