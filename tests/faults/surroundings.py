"""Faults of what a run stands on: its lines of metrics, its rendered data, its base, other ranks.

As in ``cases.py`` each function runs a training into one and judges the outcome. ``told`` is a
further one: the adapter is exact, and the run said which lines of its history are lost.
"""

import functools
import json
import os
import random
import shutil
import struct
import time
from pathlib import Path

import processes
import stacks
from cases import (
    ATTEMPTS,
    LIMIT_S,
    TO_END_S,
    Bench,
    Outcome,
    flip_bit,
    last_line,
    put_back,
    wait_until,
)

AFTER = 4
"""The step of the checkpoint that a run goes on from."""
_LATER = b'{"step": 9, "loss": 1.0}\n'


def power_loss(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """What was never synced is lost, or zeros: the last lines of metrics and layers."""
    half = _half(bench, run)
    outcomes = []
    for zeros in (False, True):
        put_back(run, half)
        for name in ("metrics.jsonl", "layers.jsonl"):
            raw = (run / name).read_bytes()
            synced = _until_step(raw, AFTER)
            later = len(raw) - len(synced)
            kept = synced + raw[len(synced) :][: chance.randint(0, later)]
            (run / name).write_bytes(kept + b"\0" * (zeros * max(later, 40)))
        outcomes.append(bench.finish(run))
    shutil.rmtree(half)
    return outcomes


def damaged_lines(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """Lines that were synced are cut, emptied, flipped, or those of a later step."""
    half = _half(bench, run)
    outcomes = []
    for name in ("metrics.jsonl", "layers.jsonl"):
        raw = (half / name).read_bytes()
        place, bit = chance.randrange(len(raw)), 1 << chance.randrange(7)
        damaged = {
            "cut": raw[:place],
            "emptied": b"",
            "flipped": raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :],
            "without a key": raw.replace(b'"step"', b'"stop"', 1),
            "of a later step": raw + _LATER,
            "no text": raw[:place] + b"\xff\xfe" + raw[place:],
        }
        for what, content in damaged.items():
            put_back(run, half)
            (run / name).write_bytes(content)
            outcomes.append(_finish_with_history(bench, run, f"{name} {what}"))
    shutil.rmtree(half)
    return outcomes


def rendered_data(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """A file of the rendered data has a flipped bit, is cut, emptied or missing: a fresh run."""
    cache = run.with_name(f"{run.name}-cache")
    body = functools.partial(_with_cache, bench.stack.body, cache)
    first = run.with_name(f"{run.name}-first")
    group = processes.start(functools.partial(body, first), 1, first.with_suffix(".log"))
    group.wait(LIMIT_S)
    shutil.rmtree(first)
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)
    outcomes = []
    for act in (_flip_anywhere, _cut_anywhere, Path.unlink):
        path = chance.choice([p for p in files if p.suffix != ".lock" and p.exists()])
        act(path, *([] if act is Path.unlink else [chance]))
        again = functools.partial(body, run)
        group = processes.start(again, 1, run.with_suffix(".log"))
        ended = group.wait(LIMIT_S) and not any(group.codes.values())
        said = last_line(group.text())
        outcome = bench.judge(run) if ended else Outcome("human", said)
        outcomes.append(Outcome(outcome.kind, f"{path.name} {act.__name__}: {outcome.note}"))
        shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(cache)
    return outcomes


def other_base(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """Between kill and resume one byte of the base changes, far from the start of its tensor."""
    base = run.with_name(f"{run.name}-base")
    shutil.copytree(bench.stack.work / "base", base)
    half = _half(bench, run, base=base)
    run = half.rename(run)
    _change_one_byte(base / "model.safetensors", chance)
    group = bench.start(run, base=base)
    outcome = _refused(group, "the base of the checkpoint is another one")
    if "base" not in group.text():
        outcome = Outcome("human", f"another cause is named: {outcome.note}")
    shutil.rmtree(base)
    return [outcome]


def damaged_adapter(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """A finished adapter has a flipped bit: merged, and started from."""
    group = bench.start(run)
    group.wait(LIMIT_S)
    flip_bit(run / "adapter" / "adapter_model.safetensors")
    following = run.with_name(f"{run.name}-following")
    bodies = (
        functools.partial(bench.stack.body, following, None, f"lora.init_from={run}"),
        functools.partial(_merge, run, run.with_name(f"{run.name}-merged")),
    )
    outcomes = []
    for number, body in enumerate(bodies):
        log = run.with_suffix(f".{number}.log")
        outcomes.append(_refused(processes.start(body, 1, log), "a damaged adapter was used"))
    shutil.rmtree(following, ignore_errors=True)
    return outcomes


def ranks_that_differ(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """The second rank was started with other rows, another base, or another setting."""
    other_rows = run.with_name(f"{run.name}-rows.jsonl")
    rows = (bench.stack.work / "rows.jsonl").read_text(encoding="utf-8")
    other_rows.write_text(rows.replace("Paris", "Lyons"), encoding="utf-8")
    base = run.with_name(f"{run.name}-base")
    shutil.copytree(bench.stack.work / "base", base)
    _change_one_byte(base / "model.safetensors", chance)
    outcomes = []
    for override in (
        f"data.train={other_rows}",
        f"model.name_or_path={base}",
        "train.learning_rate=1e-4",
        "train.seed=5",
        "train.max_steps=4",
        "train.save_steps=3",
    ):
        body = functools.partial(_on_rank_1, bench.stack.body, run, override)
        group = processes.start(body, 2, run.with_suffix(".log"))
        outcomes.append(_refused(group, f"trained with [{override}] on rank 1"))
        shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(base)
    return outcomes


def disk_hangs(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """A write of rank 0, which saves, never ends: all must, and the same command finishes."""
    body = functools.partial(_with_hanging_disk, bench.stack.body, run)
    group = processes.start(body, 2, run.with_suffix(".log"))
    if not group.wait(TO_END_S + 2 * stacks.TIMEOUT_S):
        return [Outcome("hung", last_line(group.text()))]
    if not all(group.codes.values()):
        return [Outcome("silent", "the disk did not hang")]
    return [bench.finish(run)]


def _half(bench: Bench, run: Path, **options: Path) -> Path:
    """Return the folder of a run that was killed after its checkpoint of step ``AFTER``.

    Two steps take hundredths of a second: a run that saved again before the kill is run anew.
    """
    for _ in range(ATTEMPTS):
        group = bench.start(run, **options)
        wait_until(
            lambda: (run / f"checkpoint-{AFTER}").is_dir() and not bench.stack.saving(run), group
        )
        group.kill()
        if not (run / f"checkpoint-{stacks.STEPS}").is_dir():
            return run.rename(run.with_name(f"{run.name}-half"))
        shutil.rmtree(run)
    raise RuntimeError(f"of {ATTEMPTS} runs none was killed before its last save")


def _until_step(raw: bytes, step: int) -> bytes:
    """Return the lines up to a step, as they stand on the disk once its checkpoint is there."""
    lines = raw.splitlines(keepends=True)
    return b"".join(line for line in lines if json.loads(line)["step"] <= step)


def _finish_with_history(bench: Bench, run: Path, what: str) -> Outcome:
    """Finish a run whose lines are damaged; that they are lost must have been said."""
    outcome = bench.finish(run)
    if outcome.kind != "silent":
        return Outcome(outcome.kind, f"{what}: {outcome.note}")
    try:
        result = bench.stack.result(run)
    except (OSError, ValueError, KeyError) as error:
        return Outcome("silent", f"{what}: {type(error).__name__}: {error}")
    said = run.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    kept = all(bench.expected.losses[step] == loss for step, loss in result.losses.items())
    if kept and result.adapter == bench.expected.adapter and "what is missing is lost" in said:
        return Outcome("told", what)
    return Outcome("silent", f"{what}: {outcome.note}")


def _refused(group: processes.Group, otherwise: str) -> Outcome:
    """Wait for a run that has to stop with a reason."""
    if not group.wait(LIMIT_S):
        return Outcome("hung", last_line(group.text()))
    said = last_line(group.text())
    if all(group.codes.values()) and said.startswith("error: "):
        return Outcome("refused", said)
    return Outcome("human" if all(group.codes.values()) else "silent", f"{otherwise}: {said}")


def _change_one_byte(path: Path, chance: random.Random) -> None:
    """Change the lowest bit of a value that lies past the first 4 KiB of a tensor."""
    raw = bytearray(path.read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    entries = [v for k, v in json.loads(raw[8 : 8 + length]).items() if k != "__metadata__"]
    large = [entry["data_offsets"] for entry in entries]
    begin, end = chance.choice([(a, b) for a, b in large if b - a > 8192])
    raw[8 + length + chance.randrange(begin + 4096, end, 2)] ^= 1
    path.write_bytes(raw)


def _flip_anywhere(path: Path, chance: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def _cut_anywhere(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


# What a rank does, in a process of its own.


def _with_cache(body, cache: Path, run: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(cache)
    body(run)


def _on_rank_1(body, run: Path, override: str) -> None:
    body(run, None, *([override] if os.environ["RANK"] == "1" else []))


def _with_hanging_disk(body, run: Path) -> None:
    if os.environ["RANK"] == "0":
        sync = os.fsync

        def hang(descriptor: int) -> None:
            if (run / "checkpoint-2").is_dir():
                time.sleep(3600)
            sync(descriptor)

        os.fsync = hang
    body(run)


def _merge(run: Path, out: Path) -> None:
    from gptoss_tune.errors import run_command
    from gptoss_tune.workflows import finished_run

    run_command(lambda: finished_run.merge(str(run), out), debug=False)
