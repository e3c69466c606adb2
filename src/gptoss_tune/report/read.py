"""A run's folder -> what a page is made of; a file that is missing or torn costs its part alone.

The page is most wanted when a run has gone wrong, so nothing here is taken for granted: lines that
cannot be read are counted and named on the page, and a number is a number or absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_tune.errors import RecipeError
from gptoss_tune.report.text import number
from gptoss_tune.run.record import in_new_names

_EVALUATION = re.compile(r"step-(\d{1,15})\.json")
_MOST_STEPS = 10**15

Point = tuple[int, float | None]


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
        problems: What could not be read.
    """

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's last part."""
        return self.folder.resolve().name

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return mapping(self.record.get("recipe"))

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
    run = Run(folder)
    if not (folder / "run.json").is_file() and not (folder / "metrics.jsonl").is_file():
        raise RecipeError(
            f"{folder}: holds no run (neither run.json nor metrics.jsonl); give the folder that a "
            "recipe names as train.output_dir"
        )
    run.record = in_new_names(mapping(_json(folder / "run.json", run)))
    by_step: dict[int, dict[str, Any]] = {}
    for row in _lines(folder / "metrics.jsonl", run):
        if "eval_loss" in row:
            by_step[row["step"]] = row  # the last one of a step: there is always one at the end
        elif "loss" in row:
            run.train.append(row)
    run.held_out = [by_step[step] for step in sorted(by_step)]
    run.train.sort(key=lambda row: row["step"])
    if (folder / "layers.jsonl").is_file():
        run.layers = sorted(_lines(folder / "layers.jsonl", run), key=lambda row: row["step"])
    run.evaluations = _evaluations(folder / "evaluation", run)
    return run


def _evaluations(folder: Path, run: Run) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _EVALUATION.fullmatch(path.name)
        if match:
            found.append((int(match[1]), mapping(_json(path, run))))
    return sorted(found, key=lambda pair: pair[0])


def _json(path: Path, run: Run) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        run.problems.append(f"{path.name} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        run.problems.append(f"{path.name} is not readable as JSON: {error}")
    return None


def _lines(path: Path, run: Run) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of JSON objects that have a step."""
    bad = 0
    try:
        with path.open("rb") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    bad += 1
                    continue
                step = row.get("step") if isinstance(row, dict) else None
                if type(step) is int and 0 <= step < _MOST_STEPS:
                    yield row
                else:
                    bad += 1
    except OSError as error:
        run.problems.append(f"{path.name} cannot be read: {error.strerror}")
    if bad:
        lines = "1 line is no JSON object" if bad == 1 else f"{bad:,} lines are no JSON objects"
        run.problems.append(f"{path.name}: {lines} with a step")
