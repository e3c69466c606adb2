"""What a person at a terminal sees while a command works: a sign of life, and what to do next.

Libraries take seconds to load, in which a terminal would stay black. ``loading`` draws a spinner on
standard error there, and nothing into a pipe or a job's log: a line that says that a program starts
is of no use to the one who reads it later.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

WORST_SHOWN = 5
"""How many rows a summary shows, worst first; ``--json`` holds all."""


@contextmanager
def loading(what: str, stream: TextIO | None = None) -> Iterator[None]:
    """Draw a spinner beside ``what`` on a terminal, until the block ends; one process of many does.

    Standard output and standard error stay the process's own: a library that takes hold of one
    while it is imported would keep a stand-in.

    Args:
        what: What is loaded.
        stream: Where it is drawn; ``None``: standard error.
    """
    stream = stream or sys.stderr
    if stream is None or not (stream.isatty() and speaks()):
        yield
        return
    from rich.console import Console  # a tenth of a second, which most commands need not pay
    from rich.live import Live
    from rich.spinner import Spinner

    console = Console(file=stream)
    plain = "line" if (console.encoding or "").lower() not in ("utf-8", "utf8") else "dots"
    with Live(
        Spinner(plain, text=f"loading {what}"),
        console=console,
        transient=True,
        refresh_per_second=12,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield


def speaks() -> bool:
    """Return whether this process is the one of its run that speaks: the only one, or rank 0."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def next_commands(commands: Sequence[tuple[Sequence[str], str]]) -> list[str]:
    """Return lines that name what to do next: each command to copy, and what it is for.

    Args:
        commands: Words of the command line, and what it does.
    """
    lines = [shlex.join(words) for words, _ in commands]
    widest = max(map(len, lines))
    return [
        "next:",
        *(f"  {line:<{widest}}  # {why}" for line, (_, why) in zip(lines, commands, strict=True)),
    ]
