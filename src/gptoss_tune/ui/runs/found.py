"""Runs below a folder, each with its state and its last figures.

A run that says it is running may have been killed: it runs where its lock names a living process
of this machine, or one of another machine, which cannot be asked. Of the metrics the last lines are
read, whatever the length of the file.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.regular import open_regular
from gptoss_tune.files.strict_json import parse_unchecked
from gptoss_tune.report.parts.read import mapping
from gptoss_tune.report.parts.text import number
from gptoss_tune.run.folder import METRICS, RECORD, RunFolder
from gptoss_tune.run.holder import holder, holder_on
from gptoss_tune.run.jsonl import LARGEST_READ
from gptoss_tune.run.method import method_of
from gptoss_tune.run.record import in_new_names, read_unchecked

State = Literal["running", "elsewhere", "finished", "stopped", "failed", "ended", "unknown"]
WORDS: Final[dict[State, str]] = {
    "running": "running",
    "elsewhere": "running on another machine",
    "finished": "finished",
    "stopped": "stopped, resumable",
    "failed": "stopped by the guard",
    "ended": "ended without a word",
    "unknown": "unknown",
}
"""States as a page says them; ``ended``: its process was killed, or the machine was."""
MOST_RUNS: Final = 500
_MOST_FOLDERS: Final = 20_000
_DEEPEST: Final = 5
_TAIL_BYTES: Final = 64 << 10
_LAST_STEPS: Final = 20


@dataclass(frozen=True)
class Summary:
    """A run as one line of the list.

    Attributes:
        name: Its folder below the server's, with slashes.
        state: What it does.
        method: Name of the method.
        model: The base.
        step: The last logged step.
        steps: Those of the whole run, where they are known.
        loss: The last one of training.
        eval_loss: The last one of held-out rows.
        started: As its record says.
        changed: When its metrics or record were written last, in seconds since 1970.
        seconds_left: Of a running one, by the pace of its last steps.
    """

    name: str
    state: State
    method: str
    model: str
    step: int | None
    steps: int | None
    loss: float | None
    eval_loss: float | None
    started: str
    changed: float
    seconds_left: float | None

    @property
    def words(self) -> str:
        """The state in words."""
        return WORDS[self.state]

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        if self.state == "finished":
            return 1.0
        return min(1.0, self.step / self.steps) if self.step and self.steps else 0.0

    @property
    def when(self) -> str:
        """When it was written last, in the machine's own time."""
        return datetime.datetime.fromtimestamp(self.changed).strftime("%Y-%m-%d %H:%M")


def runs_below(root: Path) -> tuple[list[Summary], bool]:
    """Return the runs below a folder, and whether there are more than are shown."""
    found = []
    for folder in folders_below(root.resolve(), _is_run):
        if len(found) == MOST_RUNS:
            return found, True
        found.append(summary(folder, name_of(root, folder)))
    return found, False


def name_of(root: Path, folder: Path) -> str:
    """Return the name of a run's folder below the server's; ``.`` is that folder itself."""
    return folder.relative_to(root.resolve()).as_posix()


def run_named(root: Path, name: str) -> Path:
    """Return the folder of a run by its name in the list.

    Raises:
        RecipeError: It is no run below ``root``, or lies elsewhere by ``..`` or a link.
    """
    folder = folder_named(root, name)
    if folder is None or not _is_run(folder):
        raise RecipeError(f"{name!r} is no run below {root}; look at the list of runs")
    return folder


def folder_named(root: Path, name: str) -> Path | None:
    """Return the folder of this name below ``root``, unless ``..`` or a link leads elsewhere."""
    pure, top = PurePosixPath(name), root.resolve()
    if "\0" in name or pure.is_absolute() or ".." in pure.parts:
        return None
    folder = top.joinpath(*pure.parts)
    try:
        there = folder.resolve() == folder and folder.is_dir()
    except (OSError, RuntimeError):
        return None
    return folder if there and name == name_of(root, folder) else None


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).is_file() or (folder / METRICS).is_file()


def folders_below(root: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the folders that are wanted, not through links, none inside another."""
    left, waiting = _MOST_FOLDERS, [(root, 0)]
    while waiting and left:
        folder, depth = waiting.pop()
        left -= 1
        if wanted(folder):
            yield folder
            continue
        if depth == _DEEPEST:
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            below = [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
            waiting += [(path, depth + 1) for path in sorted(below, reverse=True)]


def record_of(folder: Path) -> dict[str, Any]:
    """Return a run's record, or an empty one where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, CheckpointError):
        return in_new_names(mapping(read_unchecked(RunFolder(folder).record, folder)))
    return {}


def state_of(folder: Path, record: Mapping[str, Any]) -> State:
    """Return what a run does."""
    host = holder_on(folder)
    if host is not None and holder(folder) is not None:
        return "running"
    status = record.get("status")
    if status == "running":
        return "elsewhere" if _elsewhere(host) else "ended"
    by_status: dict[Any, State] = {
        "finished": "finished",
        "stopped": "stopped",
        "stopped by the guard": "failed",
    }
    return by_status.get(status, "unknown") if isinstance(status, str) else "unknown"


def _elsewhere(host: str | None) -> bool:
    return host is not None and host != platform.node()


def steps_of(record: Mapping[str, Any], last: Mapping[str, Any] | None) -> int | None:
    """Return the steps of a whole run: the recipe's, or what its epochs come to by its pace."""
    train = mapping(mapping(record.get("recipe")).get("train"))
    if steps := number(train.get("max_steps")):
        return round(steps)
    epochs = number(train.get("num_train_epochs"))
    done = number(last.get("epoch")) if last else None
    if not epochs or not done or not last:
        return None
    return max(last["step"], round(last["step"] * epochs / done))


def summary(folder: Path, name: str) -> Summary:
    """Return a run as one line of the list."""
    record, lines = record_of(folder), _last_lines(folder)
    state = state_of(folder, record)
    trained = [row for row in lines if "loss" in row]
    held_out = [value for row in lines if (value := number(row.get("eval_loss"))) is not None]
    last = trained[-1] if trained else None
    recipe = mapping(record.get("recipe"))
    base = mapping(record.get("base")).get("name")
    model = base or mapping(recipe.get("model")).get("name_or_path") or ""
    steps = steps_of(record, last)
    return Summary(
        name=name,
        state=state,
        method=method_of(record).name if recipe else "",
        model=str(model),
        step=last["step"] if last else None,
        steps=steps,
        loss=number(last.get("loss")) if last else None,
        eval_loss=held_out[-1] if held_out else number(record.get("eval_loss")),
        started=str(record.get("started") or ""),
        changed=max(_time_of(folder / METRICS), _time_of(folder / RECORD)),
        seconds_left=seconds_left(trained, steps) if state == "running" else None,
    )


def seconds_left(trained: list[dict[str, Any]], steps: int | None) -> float | None:
    """Return the seconds to the last step, by the median pace of the last ones."""
    paces = sorted(
        pace
        for row in trained[-_LAST_STEPS:]
        if (pace := number(row.get("seconds_per_step"))) is not None and pace > 0
    )
    if not paces or steps is None:
        return None
    return max(0, steps - trained[-1]["step"]) * paces[len(paces) // 2]


def _last_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the last whole lines of the metrics that have a step."""
    path, found = RunFolder(folder).metrics, []
    with (
        contextlib.suppress(OSError, CheckpointError),
        open_regular(path, largest=LARGEST_READ, folder=folder) as file,
    ):
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read(_TAIL_BYTES).split(b"\n")
        for line in lines[1 if size > _TAIL_BYTES else 0 : -1]:
            if (row := row_of(line)) is not None:
                found.append(row)
    return found


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return the line of metrics that bytes hold, if they hold one."""
    try:
        row = parse_unchecked(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
