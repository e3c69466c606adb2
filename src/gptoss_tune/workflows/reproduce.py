"""Reproducing a run: the same recipe once more, and both results compared.

First what could differ is compared: data line by line, base, versions, hardware. Then the run is
made again in a folder of its own, by processes of its own as a user would start them, and the
losses of every step and every value of the adapter are compared. Three verdicts: exact; within the
reduction error of fp32, which another number of processes or other kernels give; or different.

Comparing the last losses alone was the alternative: two different adapters can have them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from gptoss_tune.errors import CheckpointError, GptossTuneError, MachineError, RecipeError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.files.regular import refuse_link_out
from gptoss_tune.files.strict_json import read_object, refuse_other_kinds
from gptoss_tune.preflight.finished import finished_record
from gptoss_tune.recipe import ModelSection, load_recipe, recipe_yaml
from gptoss_tune.run.card import RunCard, line_marks
from gptoss_tune.run.environment import environment, hardware
from gptoss_tune.run.folder import RECIPE, RunFolder
from gptoss_tune.run.jsonl import read_lines, refusing
from gptoss_tune.run.record import load_run_recipe
from gptoss_tune.shipped import shipped
from gptoss_tune.train.resume.changes import NOTED
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter_config import ADAPTER_WEIGHTS
from gptoss_tune.weights.safetensors_file import SafetensorsFile

Verdict = Literal["exact", "within fp32 reduction error", "different"]

LOSS_RTOL = 2e-5
"""Of the same steps on one process and on two, measured on the tiny model: 1e-6 to 1e-5."""
FACTOR_RTOL, FACTOR_ATOL = 2e-3, 2e-4
"""Of the adapters then: Adam divides by the gradient's size, so that noise in it shows."""
_SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")
_MARK = 8
_MOST_NAMED = 5


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was when the run was made.

    Attributes:
        what: Where it lies, such as a file and line.
        then: As recorded.
        now: As found.
        changes_result: Whether another result is to be expected, and not only other rounding.
    """

    what: str
    then: str
    now: str
    changes_result: bool


@dataclass(frozen=True)
class StepPair:
    """The mean loss up to a logged step in both runs; None where one did not come so far."""

    step: int
    then: float | None
    now: float | None


@dataclass(frozen=True)
class Comparison:
    """Two runs of one recipe.

    Attributes:
        verdict: About both, losses and adapter.
        steps: Every logged step.
        loss_difference: Largest relative difference of two losses.
        factors: How many tensors the adapters hold.
        unequal: Names of those that differ, by more than rounding where the verdict says so.
        factor_difference: Largest absolute difference of two values.
    """

    verdict: Verdict
    steps: tuple[StepPair, ...]
    loss_difference: float
    factors: int
    unequal: tuple[str, ...]
    factor_difference: float


def record_of(run: Path) -> dict[str, Any]:
    """Return the record of a finished run.

    Raises:
        CheckpointError: No run there, one that is not finished, or a record that is damaged.
    """
    record = finished_record(run)
    try:
        RunCard.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{RunFolder(run).record}: {where}: {first['msg']}; it is damaged or of another "
            "version, restore the file"
        ) from None
    sizes = record.get("micro_batch") or dict.fromkeys(_SIZES, 1)
    for where, value in (
        ("environment.processes", record["environment"].get("processes")),
        *((f"micro_batch.{name}", sizes.get(name)) for name in _SIZES),
    ):
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"{RunFolder(run).record}: {where} is {ascii(value)[:60]}, expected a number from "
                "1; it is damaged or of another version, restore the file"
            )
    return record


def differences(record: dict[str, Any], model: ModelSection, run: Path) -> list[Difference]:
    """Return what is not as it was, what changes the result first.

    Args:
        record: Of the run.
        model: Of its recipe, which names the base.
        run: Its folder.
    """
    found = [*_data_differences(record, run), *_base_differences(record, model)]
    found += _continued(record.get("changes") or [])
    then, now = record.get("environment", {}), environment()
    found += _plain(then.get("libraries", {}), now["libraries"], "", skip=())
    # The recipe says whether a run is deterministic; this process only starts it.
    found += _plain(then, now, "", skip=("libraries", "processes", "gpus", "deterministic"))
    found += _plain(record.get("hardware", {}), hardware(), "hardware ", skip=())
    return sorted(found, key=lambda difference: not difference.changes_result)


def launch_words(record: dict[str, Any], gpus: int) -> list[str]:
    """Return the command that starts processes as the run's were: as many, with the same strategy.

    Args:
        record: Of the run.
        gpus: Of this machine; 0: all processes share the CPU.

    Raises:
        MachineError: The run had more processes than there are GPUs here.
    """
    processes = int(record["environment"]["processes"])
    if processes == 1:
        return [sys.executable, "-P"]
    if 0 < gpus < processes:
        raise MachineError(
            f"the run had {processes} processes, and this machine has {gpus} GPUs; train its "
            f"{RECIPE} into another folder under the launcher of all its machines, and see both "
            "with `gptoss-tune report RUN OTHER`"
        )
    words = [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    if record.get("fingerprint", {}).get("strategy") == "fsdp2":
        words += ["--config_file", str(shipped("recipes") / "accelerate" / "fsdp2.yaml")]
    else:
        words += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        words += ["--dynamo_backend", "no"]
    # Port 0: a free one, beside whatever else runs here.
    return [*words, "--num_processes", str(processes), "--main_process_port", "0"]


def run_again(
    record: dict[str, Any], run: Path, out: Path, environment_class: str | None = None
) -> int:
    """Make the run once more into ``out`` and return the exit code of its processes.

    The current folder may be a stranger's, as the run is: no module is imported from it. What they
    say goes to standard error: standard output is the comparison's.
    """
    words = [f"train.output_dir={out}"]
    used = record.get("micro_batch")
    if used is not None:  # another machine would find another one
        words += ["train.auto_find_batch_size=false"]
        words += [f"train.{name}={used[name]}" for name in _SIZES]
    processes = record["environment"]["processes"]
    words += [f"distributed.num_processes={processes}"]
    if processes == 1:  # which share nothing
        words += ["distributed.strategy=null", "distributed.context_parallel=1"]
    command = launch_words(record, torch.cuda.device_count())
    with _readable_recipe(run) as recipe:
        # A run that was made on a CPU is made there again, however long it took.
        command += ["-m", "gptoss_tune.train", str(recipe), *words, "--on-cpu"]
        command += [] if environment_class is None else ["--environment", environment_class]
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # a launcher's ranks read it
        return subprocess.run(command, env=environment, stdout=2, check=False).returncode


@contextlib.contextmanager
def _readable_recipe(run: Path) -> Iterator[Path]:
    """Give a file with the run's recipe: its own, or one in today's names while it is needed."""
    refuse_link_out(RunFolder(run).recipe, run)
    try:
        load_recipe(RunFolder(run).recipe)
    except RecipeError:
        with tempfile.TemporaryDirectory(prefix="gptoss-tune-") as folder:
            file = Path(folder, RECIPE)
            write_text(file, recipe_yaml(load_run_recipe(run)))
            yield file
    else:
        yield RunFolder(run).recipe


def compare(then: Path, now: Path) -> Comparison:
    """Compare losses step by step and the adapters value by value.

    Raises:
        CheckpointError: A run holds no adapter, or no metrics.
    """
    steps = _pairs(_losses(then), _losses(now))
    largest = max((_relative(pair) for pair in steps), default=0.0)
    adapters = [RunFolder(run).adapter for run in (then, now)]
    old, new = (SafetensorsFile(folder / ADAPTER_WEIGHTS) for folder in adapters)
    names = sorted(old.entries.keys() | new.entries.keys())
    unequal, beyond, furthest = [], [], 0.0
    for name in names:
        distance, close = _distance(old, new, name)
        furthest = max(furthest, distance)
        if distance:
            unequal.append(name)
        if not close:
            beyond.append(name)
    if not largest and not unequal:
        verdict: Verdict = "exact"
    elif largest <= LOSS_RTOL and not beyond:
        verdict = "within fp32 reduction error"
    else:
        verdict, unequal = "different", beyond or unequal
    return Comparison(verdict, steps, largest, len(names), tuple(unequal), furthest)


def _losses(run: Path) -> dict[int, float]:
    file = RunFolder(run).metrics
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; expected the metrics of a finished run")
    damaged = refusing(
        file,
        "is no line of metrics",
        "restore the file, or train the recipe again in a new folder",
    )
    found = {}
    for number, row in read_lines(file, damaged):
        try:
            if row.get("loss") is not None:
                found[int(row["step"])] = float(row["loss"])
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            damaged(number, error)
    return found


def _pairs(before: dict[int, float], after: dict[int, float]) -> tuple[StepPair, ...]:
    """Return the losses of both runs over the same steps.

    A line is the mean of the steps since the line before it, and a run that a signal stopped has
    one more, at the step of its checkpoint: lines are joined up to the next one that both have.
    """
    shared = before.keys() & after.keys()
    old, new = _joined(before, shared), _joined(after, shared)
    pairs = [StepPair(step, old[step], new[step]) for step in sorted(shared)]
    beyond = [n for n in before.keys() | after.keys() if n > max(shared, default=0)]
    return (*pairs, *(StepPair(n, before.get(n), after.get(n)) for n in sorted(beyond)))


def _joined(losses: dict[int, float], ends: Collection[int]) -> dict[int, float]:
    """Return the mean loss of the steps up to each of ``ends`` since the one before."""
    found: dict[int, float] = {}
    parts: list[tuple[int, float]] = []
    last = 0
    for step, loss in sorted(losses.items()):
        parts.append((step - last, loss))
        last = step
        if step in ends:
            count = sum(steps for steps, _ in parts)
            mean = sum(steps * part for steps, part in parts) / count
            found[step] = loss if len(parts) == 1 else mean
            parts = []
    return found


def _relative(pair: StepPair) -> float:
    if pair.then is None or pair.now is None:
        return float("inf")
    return abs(pair.now - pair.then) / max(abs(pair.then), 1e-12)


def _distance(old: SafetensorsFile, new: SafetensorsFile, name: str) -> tuple[float, bool]:
    """Return the largest difference of a tensor's values, and whether it is rounding."""
    if name not in old.entries or name not in new.entries:
        return float("inf"), False
    a, b = old.read(name).float(), new.read(name).float()
    if a.shape != b.shape:
        return float("inf"), False
    distance = float((a - b).abs().max()) if a.numel() else 0.0
    return distance, torch.allclose(b, a, rtol=FACTOR_RTOL, atol=FACTOR_ATOL)


def _continued(changes: list[dict[str, Any]]) -> list[Difference]:
    """Return what the run changed on its way: its recipe says the last of it alone."""
    return [
        Difference(
            f"{one.get('name')} before step {one.get('step')}",
            str(one.get("was")),
            str(one.get("now")),
            one.get("name") not in NOTED,
        )
        for one in changes
    ]


def _data_differences(record: dict[str, Any], run: Path) -> list[Difference]:
    marks_file = RunFolder(run).data_lines
    try:
        marks = read_object(marks_file, folder=run)
    except FileNotFoundError:
        marks = {}
    refuse_other_kinds(marks_file, marks, dict.fromkeys(marks, str))
    found = []
    for entry in record.get("data", []):
        path, digest = Path(entry["path"]), entry["sha256"]
        if digest is None:
            continue  # of the Hub, whose revision is in the recipe
        if not path.is_file():
            found.append(Difference(str(path), "a file", "no such file", True))
        elif sha256_of(path) != digest:
            found += _line_differences(path, marks.get(str(path)))
    return found


def _line_differences(path: Path, then: str | None) -> list[Difference]:
    """Name the lines of a changed file, where their marks were kept."""
    now = line_marks(path)
    if then is None or now is None:
        return [Difference(str(path), "another content", "other bytes", True)]
    old, new = ([text[i : i + _MARK] for i in range(0, len(text), _MARK)] for text in (then, now))
    changed = [n for n, (a, b) in enumerate(zip(old, new, strict=False), 1) if a != b]
    found = [
        Difference(f"{path}:{n}", "another row", "this row", True) for n in changed[:_MOST_NAMED]
    ]
    if len(changed) > _MOST_NAMED:
        rest = len(changed) - _MOST_NAMED
        found.append(Difference(str(path), f"{rest} more rows", "changed", True))
    if len(old) != len(new):
        found.append(Difference(str(path), f"{len(old)} lines", f"{len(new)} lines", True))
    return found or [Difference(str(path), "other line ends", "these", True)]


def _base_differences(record: dict[str, Any], model: ModelSection) -> list[Difference]:
    then = record.get("base", {}).get("fingerprint", {})
    try:
        base = open_checkpoint(model.name_or_path, model.revision)
    except GptossTuneError as error:
        return [Difference("base", str(record.get("base", {}).get("name")), str(error), True)]
    now = base.fingerprint()
    return [
        Difference(f"base {part}", str(then[part])[:12], str(now.get(part))[:12], True)
        for part in then
        if then[part] != now.get(part)
    ]


def _plain(
    then: dict[str, Any], now: dict[str, Any], prefix: str, *, skip: tuple[str, ...]
) -> list[Difference]:
    return [
        Difference(f"{prefix}{key}", str(then[key]), str(now.get(key)), False)
        for key in sorted(then)
        if key not in skip and then[key] != now.get(key)
    ]
