"""One run while it trains: its metrics read as they grow, its page's parts drawn anew.

A line that is being written is left for the next look. A run that goes on from a checkpoint
replaces its metrics by a shorter file, which is seen by the file's number and size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.regular import open_regular
from gptoss_tune.report import curves, facts
from gptoss_tune.report.parts.read import Run, is_held_out, mapping
from gptoss_tune.report.parts.text import duration
from gptoss_tune.report.parts.text import tiles as boxes
from gptoss_tune.report.reinforcement.curves import rewards
from gptoss_tune.report.samples import policies, samples
from gptoss_tune.run.folder import EVALUATION, RunFolder
from gptoss_tune.run.jsonl import LARGEST_READ, LONGEST_LINE
from gptoss_tune.run.record import read_unchecked
from gptoss_tune.ui.runs.found import (
    WORDS,
    State,
    record_of,
    row_of,
    seconds_left,
    state_of,
    steps_of,
)

_MOST_TAILS: Final = 32


class Tail:
    """The lines of a growing file of metrics, each read once."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self._path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]]:
        """Return all whole lines that have a step."""
        with self._lock:
            try:
                self._read()
            except (OSError, CheckpointError):
                self._file, self._offset, self._rows = None, 0, []
            return list(self._rows)

    def _read(self) -> None:
        with open_regular(self._path, largest=LARGEST_READ, folder=self._path.parent) as file:
            about = os.fstat(file.fileno())
            if self._file != (about.st_dev, about.st_ino) or about.st_size < self._offset:
                self._file, self._offset, self._rows = (about.st_dev, about.st_ino), 0, []
            file.seek(self._offset)
            while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
                self._offset += len(line)
                if (row := row_of(line)) is not None:
                    self._rows.append(row)


@dataclass(frozen=True)
class LiveView:
    """What a run's page shows of it.

    Attributes:
        state: What the run does.
        words: Its progress in one sentence, for who does not see the page.
        step: The last logged step.
        steps: Those of the whole run, where they are known.
        parts: HTML by the name of its place in the page.
        version: Changes when one of them does.
    """

    state: State
    words: str
    step: int
    steps: int | None
    parts: dict[str, str]
    version: str

    @property
    def moves(self) -> bool:
        """Whether it is worth a look soon."""
        return self.state in ("running", "elsewhere")


class LiveRuns:
    """The runs that are looked at, the ones of long ago forgotten."""

    def __init__(self) -> None:
        """Look at none."""
        self._tails: dict[Path, Tail] = {}

    def view(self, folder: Path) -> LiveView:
        """Return what a run's page shows."""
        tail = self._tails.pop(folder, None) or Tail(RunFolder(folder).metrics)
        self._tails[folder] = tail  # the last one of those that are kept
        while len(self._tails) > _MOST_TAILS:
            del self._tails[next(iter(self._tails))]
        run = _run(folder, tail.rows())
        state = state_of(folder, run.record)
        last = run.train[-1] if run.train else None
        steps = steps_of(run.record, last)
        step = last["step"] if last else 0
        left = seconds_left(run.train, steps) if state == "running" else None
        parts = {
            "tiles": boxes([*_left(left), *facts.tiles(run)]),
            "told": facts.told(run),
            "rewards": "".join(rewards(run)),
            "loss": "".join(curves.losses(run)),
            "preferences": "".join(_of_a_preference(curves.preferences, run)),
            "optimisation": "".join(curves.optimisation(run)),
            "machine": "".join(curves.machine(run)),
            "samples": policies(run) + samples(run),
        }
        words = _words(run, state, step, steps, left)
        told = "\0".join([state, words, *parts.values()])
        version = hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:16]
        return LiveView(state, words, step, steps, parts, version)


def _run(folder: Path, rows: list[dict[str, Any]]) -> Run:
    """Return the run of its record, its lines, and its first and last evaluation."""
    by_step = {row["step"]: row for row in rows if is_held_out(row)}
    return Run(
        folder,
        record=record_of(folder),
        train=[row for row in rows if "loss" in row and not is_held_out(row)],
        held_out=[by_step[step] for step in sorted(by_step)],
        evaluations=_first_and_last_evaluation(folder),
    )


def _first_and_last_evaluation(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    by_step: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for path in RunFolder(folder).evaluations.iterdir():
            if match := EVALUATION.fullmatch(path.name):
                by_step[int(match[1])] = path
    found = []
    for step in sorted({min(by_step), max(by_step)} if by_step else ()):
        with contextlib.suppress(OSError, ValueError, CheckpointError):
            found.append((step, mapping(read_unchecked(by_step[step], folder))))
    return found


def _of_a_preference(draw: Callable[[Run], list[str]], run: Run) -> list[str]:
    return draw(run) if run.method.preferences else []


def _left(seconds: float | None) -> list[tuple[str, str, bool]]:
    return [] if seconds is None else [(duration(seconds), "time left, by the last steps", False)]


def _words(run: Run, state: State, step: int, steps: int | None, left: float | None) -> str:
    of = f" of {steps:,}" if steps else ""
    said = [f"{WORDS[state]}, step {step:,}{of}" if step else WORDS[state]]
    figure = "reward" if run.method.reinforcement else "loss"
    if (value := run.last(figure)) is not None:
        said.append(f"{figure} {value:.4g}")
    if (held_out := run.last(f"eval_{figure}", held_out=True)) is not None:
        said.append(f"held out {held_out:.4g}")
    if left is not None:
        said.append(f"{duration(left)} left")
    return ", ".join(said)
