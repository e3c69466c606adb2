"""A run's folder -> what a page is made of; a file that is missing or torn costs its part alone.

The page is most wanted when a run has gone wrong, so nothing here is taken for granted: lines that
cannot be read are counted and named on the page, and a number is a number or absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.report.parts.text import number
from gptoss_tune.run.folder import EVALUATION, ROLLOUT, RunFolder, refuse_no_run
from gptoss_tune.run.jsonl import read_lines
from gptoss_tune.run.method import Method, method_of
from gptoss_tune.run.record import in_new_names, read_unchecked

_MOST_STEPS = 10**15
_MOST_EVALUATIONS = 2_000
_MOST_EVALUATION_BYTES = 256 << 20
_MOST_BENCHMARK_BYTES = 64 << 20
_MOST_ROLLOUT_BYTES, _MOST_EPISODES = 64 << 20, 20_000

Point = tuple[int, float | None]


@dataclass(frozen=True)
class Phase:
    """Episodes that were played with the same weights.

    Attributes:
        step: That learnt from them, or after which they were played.
        split: ``train`` or ``eval``.
        episodes: As their file has them, unchecked.
    """

    step: int
    split: str
    episodes: list[dict[str, Any]]


@dataclass
class Run:
    """One run as its files tell it.

    Attributes:
        folder: The run's folder.
        record: ``run.json``.
        train: Lines of training metrics, by step.
        held_out: Lines of evaluation metrics, by step.
        layers: Lines of ``layers.jsonl``, by step.
        evaluations: ``evaluation/step-N.json``, by step.
        pairs: ``pairs.json`` of a preference run.
        benchmarks: ``benchmarks/NAME.json``, by name, the answers left out.
        rollouts: The first and the last episodes of a run that learns from rewards.
        problems: What could not be read.
    """

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    pairs: dict[str, Any] = field(default_factory=dict)
    benchmarks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rollouts: list[Phase] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's last part."""
        return self.folder.resolve().name

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return mapping(self.record.get("recipe"))

    @property
    def method(self) -> Method:
        """The method of training."""
        return method_of(self.record)

    @property
    def footprint(self) -> list[dict[str, Any]]:
        """What base and adapters take, by kind and precision; older runs call it holdings."""
        return [mapping(row) for row in listing(self.fact("footprint") or self.fact("holdings"))]

    def fact(self, *path: str) -> Any:
        """Return what the record holds under ``path``, or ``None``."""
        found: Any = self.record
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def series(self, name: str, *, held_out: bool = False) -> list[Point]:
        """Return a metric by step; ``None`` where it was not finite."""
        rows = self.held_out if held_out else self.train
        return [(row["step"], number(row[name])) for row in rows if name in row]

    def last(self, name: str, *, held_out: bool = False) -> float | None:
        """Return a metric's last finite value."""
        values = [value for _, value in self.series(name, held_out=held_out) if value is not None]
        return values[-1] if values else None


def mapping(value: object) -> dict[str, Any]:
    """Return a mapping, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """Return a list, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        RecipeError: It holds no run.
    """
    run, files = Run(folder), RunFolder(folder)
    refuse_no_run(folder)
    run.record = in_new_names(mapping(_json(files.record, run)))
    by_step: dict[int, dict[str, Any]] = {}
    for row in _lines(files.metrics, run):
        if is_held_out(row):
            by_step[row["step"]] = row  # the last one of a step: there is always one at the end
        elif "loss" in row:
            run.train.append(row)
    run.held_out = [by_step[step] for step in sorted(by_step)]
    run.train.sort(key=lambda row: row["step"])
    if files.layers.is_file():
        run.layers = sorted(_lines(files.layers, run), key=lambda row: row["step"])
    run.evaluations = _evaluations(files.evaluations, run)
    run.benchmarks = list(_benchmarks(files.benchmarks, run))
    if os.path.lexists(files.pairs):
        run.pairs = mapping(_json(files.pairs, run))
    run.rollouts = list(_rollouts(files.rollouts, run))
    return run


def is_held_out(row: dict[str, Any]) -> bool:
    """Whether a line of metrics is of an evaluation: of its loss, or of held-out episodes."""
    return "eval_loss" in row or "eval_reward" in row


def _rollouts(folder: Path, run: Run) -> Iterator[Phase]:
    """Yield the episodes of the first two and of the last two files, by split."""
    listed = [(ROLLOUT.fullmatch(path.name), path) for path in _files(folder)]
    by_step = sorted((int(match[1]), path) for match, path in listed if match)
    wanted = by_step if len(by_step) <= 4 else [*by_step[:2], *by_step[-2:]]
    for step, path in wanted:
        if _size(path) > _MOST_ROLLOUT_BYTES:
            run.problems.append(f"{folder.name}/{path.name} is too large to show")
            continue
        by_split: dict[str, list[dict[str, Any]]] = {}
        for row in _objects(path, run, f"{folder.name}/{path.name}"):
            split = "eval" if row.get("split") == "eval" else "train"
            by_split.setdefault(split, []).append(row)
        for split, episodes in by_split.items():
            yield Phase(step, split, episodes)


def _objects(path: Path, run: Run, name: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file that are JSON objects; the others are counted."""
    bad: list[int] = []
    try:
        for number, row in read_lines(path, lambda n, _: bad.append(n), strict=False):
            if number > _MOST_EPISODES:
                run.problems.append(f"{name}: only {_MOST_EPISODES:,} episodes are read")
                break
            if isinstance(row, dict):
                yield row
            else:
                bad.append(number)
    except CheckpointError as error:
        run.problems.append(str(error))
    except OSError as error:
        run.problems.append(f"{name} cannot be read: {error.strerror}")
    if bad:
        lines = "1 line is no JSON object" if len(bad) == 1 else f"{len(bad):,} lines are none"
        run.problems.append(f"{name}: {lines}")


def _evaluations(folder: Path, run: Run) -> list[tuple[int, dict[str, Any]]]:
    """Return the evaluations by step; the first ones where there are too many to show."""
    listed = [(EVALUATION.fullmatch(path.name), path) for path in _files(folder)]
    by_step = sorted((int(match[1]), path) for match, path in listed if match)
    found: list[tuple[int, dict[str, Any]]] = []
    nbytes = 0
    for step, path in by_step:
        nbytes += _size(path)
        if len(found) == _MOST_EVALUATIONS or nbytes > _MOST_EVALUATION_BYTES:
            left = len(by_step) - len(found)
            run.problems.append(f"{folder.name}: {left:,} evaluations are too many or too large")
            break
        found.append((step, mapping(_json(path, run))))
    return found


def _benchmarks(folder: Path, run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the benchmarks by name, without their answers: a page shows the figures."""
    for path in sorted(path for path in _files(folder) if path.suffix == ".json"):
        if _size(path) > _MOST_BENCHMARK_BYTES:
            run.problems.append(f"{folder.name}/{path.name} is too large to show")
        elif found := mapping(_json(path, run)):
            found.pop("answers", None)
            yield path.stem, found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a broken link, which is told when it is read


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir()) if folder.is_dir() else []
    except OSError:
        return []  # of somebody else, and as good as not there


def _json(path: Path, run: Run) -> Any:
    try:
        return read_unchecked(path, run.folder)
    except CheckpointError as error:
        run.problems.append(str(error))
    except OSError as error:
        run.problems.append(f"{path.name} cannot be read: {error.strerror}")
    except ValueError as error:
        run.problems.append(f"{path.name} is not readable as JSON: {error}")
    return None


def _lines(path: Path, run: Run) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of JSON objects that have a step."""
    bad = 0

    def count(number: int, error: Exception) -> None:
        nonlocal bad
        bad += 1

    try:
        for _, row in read_lines(path, count, strict=False):
            step = row.get("step") if isinstance(row, dict) else None
            if type(step) is int and 0 <= step < _MOST_STEPS:
                yield row
            else:
                bad += 1
    except CheckpointError as error:
        run.problems.append(str(error))
    except OSError as error:
        run.problems.append(f"{path.name} cannot be read: {error.strerror}")
    if bad:
        lines = "1 line is no JSON object" if bad == 1 else f"{bad:,} lines are no JSON objects"
        run.problems.append(f"{path.name}: {lines} with a step")
