"""Rows of a recipe's data -> tasks: what to ask, and the row that says what the answer is worth.

Sources, formats, templates and settings are those of training. A row that holds its answer is cut
back to its last question, so that conversations serve as prompts; keys that grade (``answer``,
``grader``, ...) and results of tools stay in the row. All mistakes are told at once, by file and
line, before a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gptoss_tune.environments.environment import Task
from gptoss_tune.environments.rows import read_script
from gptoss_tune.environments.tools import check_schema
from gptoss_tune.errors import DataError
from gptoss_tune.grading.rows import require_grader
from gptoss_tune.harmony.conversation import Conversation, add_builtin_tools
from gptoss_tune.harmony.dataset.load import effort_of, sample_settings, split_sources
from gptoss_tune.harmony.dataset.selection import Split
from gptoss_tune.harmony.formats.registry import read_to_play
from gptoss_tune.harmony.reading import ReadSettings
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.written import written_rows
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe import DataSection, DataSource
from gptoss_tune.recipe.data_schema import TASK_KEYS

if TYPE_CHECKING:
    from gptoss_tune.harmony.sources.columns import ColumnTemplates
    from gptoss_tune.recipe.schema import MethodSection

SHORTEST_ANSWER: Final = 8
"""Tokens that a prompt must leave: a final answer of one word has six."""
_MOST_SHOWN: Final = 20
_STOP_AFTER: Final = 100


def read_tasks(
    data: DataSection,
    split: Split,
    *,
    vocabulary: Vocabulary,
    seed: int,
    graded: bool = False,
    own_environment: bool = False,
    announced: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
    counts: Counter[str] | None = None,
) -> list[Task]:
    """Return the tasks of a split, in the order of the data; ``number`` is the place in the list.

    A source of weight 2 gives each task twice.

    Args:
        data: The recipe's data section.
        split: ``eval`` is ``data.eval``, or the held-out share of ``data.train``.
        vocabulary: To render prompts with.
        seed: Of the held-out share and of drawn parts.
        graded: Whether a row must say how its answer is graded.
        own_environment: Whether an environment of the user's own asks: rows need no prompt then,
            and results of tools are its own affair.
        announced: Built-in tools of the environment; the model is told of them in each prompt.
        tell: Called with what was left out, a line each.
        counts: Is told of ``rows``, ``tasks``, ``too_long``, ``rejected``.

    Raises:
        DataError: Rows cannot be played, or nothing is left to play.
        HubError: A dataset on the Hub cannot be had.
        MachineError: A library that graders need is not installed.
    """
    counted: Counter[str] = Counter() if counts is None else counts
    reader = _Reader(
        data, vocabulary, graded=graded, own=own_environment, announced=announced, counts=counted
    )
    sources = split_sources(data, split)
    read = [reader.source(source, number) for number, source in enumerate(sources)]
    if reader.mistakes and (data.on_error == "stop" or counted["rejected"] > data.max_errors):
        raise DataError(_message(reader.mistakes, counted["rejected"], data))
    if data.eval_fraction is not None:
        read = _part(read, split, data.eval_fraction, seed)
    tasks: list[Task] = []
    for number, (source, found) in enumerate(zip(sources, read, strict=True)):
        repeated = _repeated(found, source.weight, seed, number) if split == "train" else found
        tasks += repeated
    tasks = [replace(task, number=number) for number, task in enumerate(tasks)]
    counted["tasks"] += len(tasks)
    for line in _left_out(reader, counted, data):
        tell(f"{split}: {line}")
    if not tasks:
        names = ", ".join(source.path for source in sources)
        raise DataError(
            f"{names}: no task for {split} ({counted['rows']} rows read, {counted['rejected']} "
            f"rejected, {counted['too_long']} prompts that leave no room for an answer in "
            f"data.max_length {data.max_length}); add rows, or raise data.max_length"
        )
    return tasks


def announced(method: MethodSection, *, own: bool = False) -> tuple[str, ...]:
    """Return the built-in tools that the environment of a recipe tells the model of.

    Args:
        method: Of the recipe.
        own: Whether a class of the user's own plays; its tools are known once it is asked.
    """
    return (
        ("python",) if method.name == "grpo" and method.environment == "python" and not own else ()
    )


def prompt_length(
    renderer: Renderer, conversation: Conversation, announced: Sequence[str] = ()
) -> int:
    """Return the tokens of a prompt, built-in tools of the environment included."""
    asked = replace(conversation)
    if announced:
        add_builtin_tools(asked, [*announced])
    return len(renderer.render_prompt(asked))


class _Reader:
    """Reads rows and keeps what is wrong with them."""

    def __init__(
        self,
        data: DataSection,
        vocabulary: Vocabulary,
        *,
        graded: bool,
        own: bool,
        announced: Sequence[str],
        counts: Counter[str],
    ) -> None:
        self.mistakes: list[str] = []
        self.too_long: list[str] = []
        self._data = data
        settings = RenderSettings(data.reasoning_effort, data.date)
        self._renderer = Renderer(vocabulary, settings)
        self._graded = graded
        self._own = own
        self._announced = announced
        self._counts = counts
        self._sound: set[str] = set()

    def source(self, source: DataSource, dataset: int) -> list[Task]:
        """Return the tasks of one source."""
        opened = open_source(source.model_copy(update={"columns": None}))
        reading = sample_settings(self._data, source=source).reading
        found: list[Task] = []
        for at, row, written in written_rows(opened.rows(), _templates(source)):
            self._counts["rows"] += 1
            try:
                if isinstance(row, DataError):
                    raise row
                if isinstance(written, DataError):
                    raise written
                task = self._task(at, row, written, source, dataset, reading)
            except DataError as error:
                self._reject(str(error))
                continue
            if task is not None:
                found.append(task)
        opened.confirm()
        return found

    def _reject(self, mistake: str) -> None:
        self._counts["rejected"] += 1
        self.mistakes.append(mistake)
        data = self._data
        most = data.max_errors if data.on_error == "skip" else _STOP_AFTER
        if self._counts["rejected"] > most:
            raise DataError(_message(self.mistakes, self._counts["rejected"], data))

    def _task(
        self,
        at: str,
        row: dict[str, Any],
        written: dict[str, Any],
        source: DataSource,
        dataset: int,
        reading: ReadSettings,
    ) -> Task | None:
        conversation = read_to_play(written, at, reading, own=self._own)
        if conversation.effort is None:
            conversation.effort = effort_of(source, self._data)
        if self._graded:
            require_grader(row, at)
        self._check_tools(conversation)
        if not self._own:
            functions = conversation.namespaces.get("functions", {"tools": []})
            read_script(row, at, reading, [tool["name"] for tool in functions["tools"]])
        if conversation.messages:
            length = prompt_length(self._renderer, conversation, self._announced)
            if length + SHORTEST_ANSWER > self._data.max_length:
                return self._leave_out(at, length)
        return Task(0, at, row, conversation, dataset)

    def _leave_out(self, at: str, length: int) -> None:
        line = (
            f"{at}: the prompt has {length:,} tokens, which leaves no room for an answer in "
            f"data.max_length {self._data.max_length:,}; raise it, or shorten the prompt"
        )
        if self._data.too_long == "error":
            raise DataError(line)
        self._counts["too_long"] += 1
        self.too_long.append(line)

    def _check_tools(self, conversation: Conversation) -> None:
        for namespace in conversation.namespaces.values():
            for tool in namespace["tools"]:
                key = json.dumps(tool.get("parameters"), sort_keys=True)
                if key not in self._sound:
                    check_schema(tool.get("parameters"), conversation.source, tool["name"])
                    self._sound.add(key)


def _templates(source: DataSource) -> ColumnTemplates | None:
    if source.columns is None:
        return None
    from gptoss_tune.harmony.sources.columns import ColumnTemplates

    columns = {str(name): text for name, text in source.columns.items()}
    return ColumnTemplates(columns, structured=TASK_KEYS)


def _part(read: list[list[Task]], split: Split, fraction: float, seed: int) -> list[list[Task]]:
    """Return the held-out tasks, or the others; those that ask the same never part."""
    own = [[question_key(task) for task in found] for found in read]
    keys = np.unique(np.array([key for found in own for key in found], dtype=np.uint64))
    count = max(1, round(len(keys) * fraction))
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    held = {int(key) for key in keys[generator.permutation(len(keys))[:count]]}
    return [
        [task for task, key in zip(found, known, strict=True) if (key in held) == (split == "eval")]
        for found, known in zip(read, own, strict=True)
    ]


def question_key(task: Task) -> int:
    """Return a 64-bit hash of what a task asks, of its row where an environment alone knows."""
    if task.conversation.messages:
        return task.conversation.keys()[1]
    told = json.dumps(task.row, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")


def _repeated(tasks: list[Task], weight: float, seed: int, number: int) -> list[Task]:
    """Return each task as often as its source weighs, a drawn part of them for what is left."""
    whole = int(weight)
    part = round((weight - whole) * len(tasks))
    generator = np.random.Generator(np.random.PCG64([seed, 2, number]))
    drawn = np.sort(generator.permutation(len(tasks))[:part])
    return [*(tasks * whole), *(tasks[int(n)] for n in drawn)]


def _left_out(reader: _Reader, counts: Counter[str], data: DataSection) -> Iterator[str]:
    if counts["rejected"]:
        yield f"{counts['rejected']:,} rows left out (data.on_error: skip): {reader.mistakes[0]}"
    if counts["too_long"]:
        yield (
            f"{counts['too_long']:,} prompts leave no room for an answer in data.max_length "
            f"{data.max_length:,} and were left out: {reader.too_long[0]}"
        )


def _message(mistakes: list[str], count: int, data: DataSection) -> str:
    if count == 1:
        return mistakes[0]
    todo = (
        "fix them, or set data.on_error to skip"
        if data.on_error == "stop"
        else f"that is over data.max_errors {data.max_errors}; fix them, or raise it"
    )
    shown = mistakes[:_MOST_SHOWN]
    more = [f"... and {count - len(shown):,} more"] if count > len(shown) else []
    return "\n  ".join([f"{count:,} rows cannot be played; {todo}:", *shown, *more])
