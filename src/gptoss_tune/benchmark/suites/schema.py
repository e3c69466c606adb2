"""What a suite file may say: a strict schema, as the sections of a recipe are.

::

    name: maths
    description: Word problems and algebra, the answer as a number or an expression.
    licence: Apache-2.0
    source: written for gptoss-tune
    tasks: maths.jsonl
    grader: maths

``tasks`` are rows as training reads them, with a key more that grades. Rows of another shape are
mapped by ``columns``, Jinja templates as those of ``data.train``; what a grader reads is mapped the
same way. Loading Python from a suite was the alternative; a file never chooses code to import.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gptoss_tune.grading.rows import READERS
from gptoss_tune.recipe.data_schema import ColumnName, GraderKey
from gptoss_tune.recipe.evaluation_schema import Efforts
from gptoss_tune.recipe.schema.value_types import (
    Count,
    FromText,
    PathText,
    Section,
    Template,
    Text,
    Unique,
    refuse,
)

TaskColumn = Literal[ColumnName, GraderKey]
"""A field that a template of a suite can write."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", examples=["maths"])]


class TaskSource(Section):
    """One place to read tasks from; a text is short for its path."""

    path: PathText = Field(examples=["maths.jsonl"])
    """A .jsonl, .json, .csv or .parquet file (.gz, .zst) in the suite's folder, or package:..."""
    columns: Annotated[dict[TaskColumn, Template], Field(min_length=1)] | None = None
    """Fields of a row, and what grades it, as Jinja templates; null: the names are known."""
    limit: Count | None = None
    """Read this many rows from the start; null: all."""


class Needles(Section):
    """Facts hidden in long texts of the project's own writing, made when the suite is opened."""

    lengths: Annotated[
        list[Annotated[int, Field(ge=256, le=131_072)]],
        Field(min_length=1, max_length=32),
        Unique,
    ]
    """Tokens of the whole prompt; each makes a question at each depth."""
    depths: Annotated[
        list[Annotated[float, Field(ge=0, le=1), FromText]],
        Field(min_length=1, max_length=32),
        Unique,
    ] = Field(default=[0.0, 0.25, 0.5, 0.75, 1.0])
    """Where the fact that is asked for stands: 0 at the start, 1 at the end."""
    needles: Annotated[int, Field(ge=1, le=16)] = 1
    """Facts that are asked for together; with several, the rest are spread over the text."""
    distractors: Annotated[int, Field(ge=0, le=64)] = 4
    """Facts of the same form that are not asked for."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Of names, numbers and the text around them: the same seed gives the same questions."""


def _sources(value: Any) -> Any:
    """Read ``a.jsonl`` and ``{path: ...}`` as the list of one source that they are short for."""
    if value == [] or value is None:
        return value
    several = value if isinstance(value, list) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in several]


def _grader(value: Any) -> Any:
    """Read ``maths`` as the mapping that it is short for; its settings are read with the rows."""
    named = {"kind": value} if isinstance(value, str) else value
    if value is not None and not (isinstance(named, dict) and named.get("kind") in READERS):
        raise refuse(
            f"a grader, or a mapping with its kind and settings: one of {', '.join(READERS)}",
            "write for example 'grader: number'",
        )
    return named


class SuiteFile(Section):
    """A suite as its file has it."""

    name: Name
    """What the table and requirements call it: lower case letters, digits, '.', '_', '-'."""
    description: Text = Field(examples=["Word problems whose answer is a number."])
    """What it measures, in one line."""
    licence: Text = Field(examples=["Apache-2.0"])
    """Of the tasks, as an SPDX name where there is one."""
    source: Text = Field(examples=["written for this suite"])
    """Where the tasks come from, or who wrote them."""
    tasks: (
        Annotated[
            list[TaskSource],
            Field(min_length=1, max_length=64),
            BeforeValidator(
                _sources, json_schema_input_type=str | TaskSource | list[str | TaskSource]
            ),
        ]
        | None
    ) = None
    """Files of tasks: a path, one with columns, or a list of them."""
    needles: (
        Annotated[
            list[Needles],
            Field(min_length=1, max_length=16),
            BeforeValidator(
                lambda value: [value] if isinstance(value, dict) else value,
                json_schema_input_type=Needles | list[Needles],
            ),
        ]
        | None
    ) = None
    """Long contexts with hidden facts, instead of tasks."""
    grader: (
        Annotated[
            dict[str, Any],
            Field(examples=["maths"]),
            BeforeValidator(_grader, json_schema_input_type=str | dict[str, Any]),
        ]
        | None
    ) = None
    """Grader of rows that name none: its kind, or a mapping with kind and its settings."""
    instructions: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    """Developer message of every task, before the row's own."""
    reasoning_effort: Efforts | None = None
    """Efforts at which a task that names none is asked; null: those of whoever asks."""
    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 4096
    """Longest answer in tokens, chain of thought included."""
    temperature: Annotated[float, Field(ge=0, le=10), FromText] = 0.0
    """0 takes the likeliest token; above, tokens are drawn by the seed."""
    top_p: Annotated[float, Field(gt=0, le=1), FromText] = 1.0
    """Only the likeliest tokens that have this probability together are drawn from."""
    samples: Annotated[int, Field(ge=1, le=1024)] = 1
    """Answers to each task, for pass@k; above 1 the temperature must be above 0."""
    limit: Count | None = None
    """Ask this many tasks from the start of all files; null: all."""

    @model_validator(mode="after")
    def _one_kind_of_tasks(self) -> SuiteFile:
        if (self.tasks is None) == (self.needles is None):
            raise refuse("either tasks or needles", "keep one of the two")
        if self.samples > 1 and self.temperature == 0:
            raise refuse(
                "a temperature above 0 with several samples, which are else all equal",
                "set temperature, or samples to 1",
            )
        return self
