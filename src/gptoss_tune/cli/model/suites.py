"""``gptoss-tune suites``: the suites of tasks that ship, or what is in one."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gptoss_tune.benchmark.suites.suite import Suite


def suites(
    name: Annotated[
        str | None,
        typer.Argument(help="A shipped suite, a suite file or a file of tasks; default: list all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the suites of tasks that `benchmark` knows by name, or check and show one.

    Every row of a named suite is read, and every mistake in it is in one message.
    """
    if name is not None:
        _show(name, as_json)
        return
    from rich.console import Console
    from rich.table import Table

    from gptoss_tune.benchmark.suites.listing import shipped_suites

    listed = shipped_suites()
    if as_json:
        text = json.dumps({"suites": [suite.as_json() for suite in listed]}, indent=2)
        sys.stdout.write(f"{text}\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("suite", "tasks", "licence", "what it measures"):
        table.add_column(heading, overflow="fold")
    for suite in listed:
        tasks = "-" if suite.tasks is None else str(suite.tasks)
        table.add_row(suite.name, tasks, suite.licence, suite.description)
    console = Console(highlight=False)
    console.print(table)
    for suite in listed:
        if suite.missing is not None:
            console.print(f"{suite.name}: {suite.missing}", markup=False, soft_wrap=True)


def _show(name: str, as_json: bool) -> None:
    """Read a suite and print what is in it."""
    from gptoss_tune.benchmark.suites.open import open_suite
    from gptoss_tune.harmony.render import Renderer, RenderSettings
    from gptoss_tune.harmony.vocabulary import load_vocabulary

    suite = open_suite(name, Renderer(load_vocabulary(None), RenderSettings()))
    about = _about(suite)
    if as_json:
        sys.stdout.write(f"{json.dumps(about, indent=2, ensure_ascii=False)}\n")
        return
    lines = [
        f"{suite.name}: {suite.description}",
        f"{about['questions']:,} questions of {about['tokens']['least']:,} to "
        f"{about['tokens']['most']:,} tokens, licence {suite.licence or 'unknown'}",
        "graders: " + ", ".join(f"{kind} {count}" for kind, count in about["graders"].items()),
        f"answers: up to {suite.asking.max_new_tokens:,} tokens, temperature "
        f"{suite.asking.temperature:g}, {suite.samples} to a question",
        f"the first, {about['first']['source']}, right with {about['first']['expected']}:",
    ]
    typer.echo("\n".join(lines))
    typer.echo(about["first"]["asked"])


def _about(suite: Suite) -> dict[str, Any]:
    """Return what is in a suite, as JSON holds it."""
    first, lengths = suite.questions[0], [len(q.prompt_ids) for q in suite.questions]
    kinds = Counter(q.grader.kind for q in suite.questions if q.grader is not None)
    return {
        "name": suite.name,
        "description": suite.description,
        "licence": suite.licence,
        "questions": len(suite.questions),
        "tokens": {"least": min(lengths), "most": max(lengths)},
        "graders": dict(kinds.most_common()),
        "max_new_tokens": suite.asking.max_new_tokens,
        "temperature": suite.asking.temperature,
        "samples": suite.samples,
        "first": {
            "source": first.source,
            "expected": None if first.grader is None else first.grader.expected,
            "asked": first.messages[-1]["content"],
        },
    }
