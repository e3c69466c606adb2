"""A sweep: one recipe with several values of a setting, trained one after the other and compared.

``train.learning_rate=[1e-4, 2e-4]`` gives a list to a setting that takes one value, which means
nothing else; settings that take lists keep their meaning. Several such settings make every
combination. Each run is a command of its own in a folder of its own, so that it is stopped,
resumed and reproduced like any other; the sweep given again skips what is finished and goes on
with the rest.

A search that stops bad runs early was the alternative: with a dozen runs at most there is little to
save, and a curve that is cut off cannot be compared.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, get_args, get_origin

from gptoss_tune.errors import RecipeError, RunInterrupted
from gptoss_tune.recipe.dump import by_name
from gptoss_tune.recipe.mistakes import Place
from gptoss_tune.recipe.recipe import SECTIONS
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.recipe.yaml_reader import read_value
from gptoss_tune.run.record import read_record
from gptoss_tune.train.distributed.stop_signals import stop_signals

MOST_RUNS = 12
"""Runs of a sweep that are started without ``--most-runs``."""
_OUTPUT = "train.output_dir"
_LONGEST_PART = 40
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._+-]+")
_CTRL_C = 130
_NOT_COMPARED = ("train.resume", _OUTPUT)
_SECTIONS_NOT_COMPARED = ("tracking", "distributed", "export")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        values: Its value of each swept setting, as typed, by the setting's name.
        overrides: All of its overrides but the folder.
    """

    values: dict[str, str]
    overrides: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """What its folder's name ends in: ``-learning_rate-1e-4-rank-8``."""
        parts = (f"{key.rpartition('.')[2]}-{value}" for key, value in self.values.items())
        return "".join(f"-{_NOT_IN_A_NAME.sub('-', part)[:_LONGEST_PART]}" for part in parts)

    def __str__(self) -> str:
        """Return ``train.learning_rate=1e-4 lora.rank=8``."""
        return " ".join(f"{key}={value}" for key, value in self.values.items())


def sweep_runs(overrides: Sequence[str]) -> list[SweepRun]:
    """Return the runs that overrides ask for, in their order; none where nothing is swept.

    Raises:
        RecipeError: A list has fewer than two values or one twice, or every run has the folder of
            another.
    """
    swept: dict[int, tuple[str, list[str]]] = {}
    for number, override in enumerate(overrides):
        values = _values(override)
        if values is not None:
            swept[number] = values
    if not swept:
        return []
    runs = []
    for chosen in itertools.product(*(values for _, values in swept.values())):
        values = {key: value for (key, _), value in zip(swept.values(), chosen, strict=True)}
        words = list(overrides)
        for number, value in zip(swept, chosen, strict=True):
            words[number] = f"{swept[number][0]}={value}"
        runs.append(SweepRun(values, tuple(words)))
    suffixes = [run.suffix for run in runs]
    if len(set(suffixes)) < len(suffixes):
        again = next(run for run in runs if suffixes.count(run.suffix) > 1)
        raise RecipeError(
            f"{again}: two runs of the sweep would share the folder ...{again.suffix}; name values "
            "that differ in their first letters"
        )
    return runs


def first_run(overrides: Sequence[str]) -> tuple[list[str], list[SweepRun]]:
    """Return the overrides of the first run of a sweep, and all runs; of no sweep what was given.

    Raises:
        RecipeError: As ``sweep_runs``.
    """
    runs = sweep_runs(overrides)
    return list(runs[0].overrides if runs else overrides), runs


def refuse_many(runs: Sequence[SweepRun], most: int) -> None:
    """Refuse more runs than anybody is likely to mean.

    Raises:
        RecipeError: There are more than ``most``.
    """
    if len(runs) > most:
        raise RecipeError(
            f"the sweep has {len(runs)} runs, {most} at most are started; name fewer values, or "
            f"add --most-runs {len(runs)}"
        )


def folder_of(output_dir: str, run: SweepRun) -> Path:
    """Return the folder of one run of a sweep whose recipe names ``output_dir``."""
    return Path(f"{output_dir.rstrip('/')}{run.suffix}")


def with_folder(run: SweepRun, folder: Path) -> list[str]:
    """Return a run's overrides with its own folder in the place of the recipe's."""
    kept = [word for word in run.overrides if word.partition("=")[0].strip() != _OUTPUT]
    return [*kept, f"{_OUTPUT}={folder}"]


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether a folder holds this run, finished.

    Args:
        folder: Of the run.
        settings: Of its recipe, as JSON.

    Raises:
        RecipeError: It holds a finished run of other settings.
    """
    record = read_record(folder)
    if record.get("status") != "finished":
        return False
    then, now = by_name(record.get("recipe") or {}), by_name(settings)
    differ = [
        f"{name}: {then.get(name)} there, {now.get(name)} here"
        for name in sorted(then.keys() & now.keys())
        if then[name] != now[name]
        and name not in _NOT_COMPARED
        and name.partition(".")[0] not in _SECTIONS_NOT_COMPARED
    ]
    if differ:
        raise RecipeError(
            f"{_OUTPUT}: {folder} holds a finished run of other settings ({'; '.join(differ[:4])});"
            f" choose another {_OUTPUT} for this sweep"
        )
    return True


@dataclass
class Sweep:
    """The runs of a sweep, made one after the other.

    Attributes:
        codes: Exit code of each run that was started or was finished before, by its folder.
        stopped: Whether a signal ended the sweep.
    """

    codes: dict[Path, int] = field(default_factory=dict)
    stopped: bool = False

    def run(self, commands: Sequence[tuple[Path, list[str]]], say: Callable[[str], None]) -> None:
        """Start each command and wait for it; one that fails is passed over, a signal ends all.

        Args:
            commands: Folder and command of each run that is left to do.
            say: Told before each run.
        """
        for place, (folder, command) in enumerate(commands, 1):
            say(f"run {place} of {len(commands)}: {folder}")
            code = self._one(command)
            self.codes[folder] = code
            if code in (RunInterrupted.exit_code, _CTRL_C):
                self.stopped = True
                return

    @property
    def exit_code(self) -> int:
        """The worst of all: an error of the machine, of the input, then a stop, then 0."""
        return max(self.codes.values(), key=_badness, default=0)

    @staticmethod
    def _one(command: list[str]) -> int:
        # A session of its own: what is typed at the terminal reaches it once, from here.
        process = subprocess.Popen(command, start_new_session=True)

        def pass_on(number: int, frame: FrameType | None) -> None:
            if process.poll() is None:
                process.send_signal(number)

        previous = {number: signal.signal(number, pass_on) for number in stop_signals()}
        try:
            code = process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return code if code >= 0 else RunInterrupted.exit_code


def train_command(recipe: str, overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the command of one run; no module is imported from the current folder."""
    os.environ["PYTHONSAFEPATH"] = "1"
    return [sys.executable, "-m", "gptoss_tune", "train", recipe, *overrides, *options]


def _badness(code: int) -> tuple[int, int]:
    order = {0: 0, RunInterrupted.exit_code: 1, _CTRL_C: 1}
    return order.get(code, 2), code


def _values(override: str) -> tuple[str, list[str]] | None:
    """Return key and values of an override that sweeps; ``None`` for any other."""
    key, _, text = (part.strip() for part in override.partition("="))
    if not text.startswith("[") or not _takes_one_value(key):
        return None
    read, value = read_value(text, Place(0, 0, 0, override))
    if read.mistakes or not isinstance(value, list):
        return None  # what is wrong with it is said where overrides are read
    words = [read.spelled.get((number,), _spelled(entry)) for number, entry in enumerate(value)]
    if len(words) < 2 or len(set(words)) < len(words):
        raise RecipeError(
            f"{key}: got {text}, expected one value, or a sweep over two or more different ones; "
            f"write for example {key}={words[0] if words else '...'}"
        )
    return key, words


def _spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _takes_one_value(key: str) -> bool:
    """Return whether a recipe's setting takes one value and no list or mapping."""
    if key == _OUTPUT:
        return False
    *section, name = key.split(".")
    sections = list(METHODS.values()) if section == ["method"] else []
    if tuple(section) in SECTIONS:
        sections.append(SECTIONS[tuple(section)])
    fields = [one.model_fields[name] for one in sections if name in one.model_fields]
    return bool(fields) and not any(_holds_several(one.annotation) for one in fields)


def _holds_several(annotation: Any) -> bool:
    if get_origin(annotation) in (list, dict):
        return True
    return any(_holds_several(part) for part in get_args(annotation))
