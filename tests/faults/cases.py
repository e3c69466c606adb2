"""The faults: each runs a training into one, tries the same command again, and judges the outcome.

Outcomes: ``exact`` (every loss and the adapter bit for bit those of the uninterrupted run),
``refused`` (stopped with a reason where nothing else is right, nothing published), ``silent``
(ended well and is wrong), ``human`` (the same command does not get it done), ``hung``.
"""

import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import processes
import stacks
from stacks import Ours, PlainTrl, Result

LIMIT_S = 400
"""A run that takes longer has hung; one takes seconds, but the machine may be shared."""
TO_END_S = 90
"""What is left of a run after a fault must end within this, beside its own timeout."""
ATTEMPTS = 20
"""Runs that are started for one moment between two saves; more have no such moment."""
_FINISHED = 2
Stack = Ours | PlainTrl


@dataclass(frozen=True)
class Outcome:
    """How one fault ended, and what was said last."""

    kind: str
    note: str = ""


@dataclass
class Bench:
    """One stack at one number of ranks, with what its uninterrupted run left.

    Attributes:
        stack: What is tried.
        expected: Losses and adapter of the uninterrupted run.
        whole_s: Seconds that took.
    """

    stack: Stack
    expected: Result
    whole_s: float

    def start(self, run: Path, **options: Path) -> processes.Group:
        """Start a run into ``run``."""
        body = functools.partial(self.stack.body, run, **options)
        return processes.start(body, self.stack.ranks, run.with_suffix(".log"))

    def finish(self, run: Path) -> Outcome:
        """Give the same command until it ends well, and judge what it left."""
        group = self.start(run)
        if not group.wait(LIMIT_S):
            return Outcome("hung", last_line(group.text()))
        finished = set(group.codes.values()) == {_FINISHED} and "is finished" in group.text()
        if any(group.codes.values()) and not finished:
            return Outcome("human", last_line(group.text()))
        return self.judge(run)

    def judge(self, run: Path) -> Outcome:
        """Hold what a finished run left against the uninterrupted one."""
        try:
            result = self.stack.result(run)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            return Outcome("silent", f"{type(error).__name__}: {error}")
        if result == self.expected:
            return Outcome("exact")
        differing = [s for s, v in self.expected.losses.items() if result.losses.get(s) != v]
        parts = [name for name, value in vars(result).items() if value != vars(self.expected)[name]]
        return Outcome("silent", f"{', '.join(parts)} differ; losses of steps {differing}")


def prepare(stack: Stack) -> Bench:
    """Run once without a fault."""
    run = stack.work / f"whole-{stack.name.replace(' ', '-')}-{stack.ranks}"
    begun = time.monotonic()
    body = functools.partial(stack.body, run)
    group = processes.start(body, stack.ranks, run.with_suffix(".log"))
    if not group.wait(LIMIT_S) or any(group.codes.values()):
        raise SystemExit(f"the run without a fault failed:\n{group.text()}")
    whole_s = time.monotonic() - begun
    return Bench(stack, stack.result(run), whole_s)


def kill_anywhere(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """SIGKILL to all ranks at any moment of the process's life, as when the machine dies."""
    group = bench.start(run)
    group.wait_or_not(chance.uniform(0, bench.whole_s))
    group.kill()
    return [bench.finish(run)]


def kill_in_a_save(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """SIGKILL to all ranks while a checkpoint is being written."""
    group = bench.start(run)
    for _ in range(chance.randint(1, 3)):
        wait_until(lambda: not bench.stack.saving(run), group)
        wait_until(lambda: bench.stack.saving(run), group)
    group.wait_or_not(chance.uniform(0, 0.01) * bench.whole_s)
    group.kill()
    return [bench.finish(run)]


def crash_images(bench: Bench, run: Path, chance: random.Random, most: int = 12) -> list[Outcome]:
    """Copies of the folder at every change that is seen in a save, each one resumed."""
    images: list[Path] = []
    seen: set[tuple] = set()
    for _ in range(ATTEMPTS):
        if images:  # a save, and a whole run, can be over before its first copy
            break
        shutil.rmtree(run, ignore_errors=True)
        group = bench.start(run)
        wait_until(lambda: (run / "checkpoint-2").is_dir() and not bench.stack.saving(run), group)
        while not images and not group.poll():
            wait_until(lambda: bench.stack.saving(run), group)
            while bench.stack.saving(run) and not group.poll():
                _pause(group)
                files = sorted(path for path in run.rglob("*") if path.is_file())
                state = tuple((str(path), path.stat().st_size) for path in files)
                if state not in seen:
                    seen.add(state)
                    images.append(run.with_name(f"{run.name}-image-{len(images)}"))
                    shutil.copytree(run, images[-1])
                group.signal(signal.SIGCONT)
                time.sleep(0.0003)
        group.kill()
    taken = sorted(chance.sample(range(len(images)), min(most, len(images))))
    outcomes = []
    for number in taken:
        put_back(run, images[number])
        outcomes.append(bench.finish(run))
    for image in images:
        shutil.rmtree(image)
    return outcomes


def damage(bench: Bench, run: Path, chance: random.Random, most: int = 1000) -> list[Outcome]:
    """Each file of the newest checkpoint cut, emptied, with a flipped bit, or missing."""
    group = bench.start(run)
    wait_until(lambda: (run / "checkpoint-4").is_dir() and not bench.stack.saving(run), group)
    group.kill()
    half = run.rename(run.with_name(f"{run.name}-half"))
    newest = half / "checkpoint-4"
    files = sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file())
    pairs = [(name, act) for name in files for act in (_cut, flip_bit, _empty, Path.unlink)]
    outcomes = []
    for name, act in chance.sample(pairs, min(most, len(pairs))):
        put_back(run, half)
        act(run / "checkpoint-4" / name)
        outcome = bench.finish(run)
        outcomes.append(Outcome(outcome.kind, f"{name} {act.__name__}: {outcome.note}"))
    shutil.rmtree(half)
    return outcomes


def signal_one(number: int, bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """A signal to one rank, or to the only one; the others must end by themselves."""
    rank = chance.randrange(bench.stack.ranks)
    group = bench.start(run)
    if number == signal.SIGSTOP and chance.random() < 0.5:
        wait_until((run / "checkpoint-2").is_dir, group)
    else:
        group.wait_or_not(chance.uniform(0.1, 0.9) * bench.whole_s)
    group.signal(number, [rank])
    others = [r for r in range(bench.stack.ranks) if r != rank or number != signal.SIGSTOP]
    limit = TO_END_S + (stacks.TIMEOUT_S if number == signal.SIGSTOP else 0)
    ended = group.wait(limit, others)
    said = group.text()
    group.kill()
    if not ended:
        return [Outcome("hung", f"after {limit} s, signal to rank {rank}: {last_line(said)}")]
    outcome = bench.finish(run)
    return [Outcome(outcome.kind, outcome.note or last_line(said))]


def signal_all(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """SIGTERM to every rank, as a scheduler sends it."""
    group = bench.start(run)
    group.wait_or_not(chance.uniform(0.1, 0.9) * bench.whole_s)
    group.signal(signal.SIGTERM)
    if not group.wait(TO_END_S):
        return [Outcome("hung", last_line(group.text()))]
    return [bench.finish(run)]


def signal_launcher(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """SIGTERM to the launcher, with real processes of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(bench.stack.ranks)]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    log = run.with_suffix(".log").open("wb")
    process = subprocess.Popen(
        [sys.executable, *launcher, *bench.stack.command(run)], stdout=log, stderr=log
    )
    group = processes.Group([], run.with_suffix(".log"))
    wait_until(lambda: (run / "checkpoint-2").is_dir() or process.poll() is not None, None)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(TO_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return [Outcome("hung", last_line(group.text()))]
    return [bench.finish(run)]


def disk_full(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """A file system that fills up in a save: a real one in memory; room is made, then resumed."""
    mounted = run.with_name(f"{run.name}-disk")
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "none", str(mounted)], check=True)
    try:
        newest = mounted / "run" / "checkpoint-2"
        group = bench.start(mounted / "run")
        wait_until(lambda: newest.is_dir() and not bench.stack.saving(mounted / "run"), group)
        _pause(group)
        size = sum(p.stat().st_size for p in newest.rglob("*"))
        stat = os.statvfs(mounted)
        room = int(size * chance.uniform(0, 1))
        with (mounted / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, stat.f_bavail * stat.f_frsize - room)
        group.signal(signal.SIGCONT)
        if not group.wait(LIMIT_S):
            return [Outcome("hung", last_line(group.text()))]
        said = last_line(group.text())
        (mounted / "filler").unlink()
        outcome = bench.finish(mounted / "run")
        return [Outcome(outcome.kind, outcome.note or said)]
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def bad_base(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """A base that is cut, lacks a tensor, or holds a NaN: training it must not end well."""
    outcomes = []
    for act in (_cut, _drop_tensor, _write_nan):
        base = run.with_name(f"{run.name}-{act.__name__}")
        shutil.copytree(bench.stack.work / "base", base)
        act(base / "model.safetensors")
        group = bench.start(base / "run", base=base)
        if not group.wait(LIMIT_S):
            outcome = Outcome("hung", act.__name__)
        else:
            code, said = group.codes[0], f"{act.__name__}: {last_line(group.text())}"
            outcome = Outcome("refused" if code else "silent", said)
        outcomes.append(outcome)
        shutil.rmtree(base)
    return outcomes


Case = Callable[[Bench, Path, random.Random], list[Outcome]]


def wait_until(condition: Callable[[], bool], group: processes.Group | None) -> None:
    """Wait for ``condition``, or for the end of the run."""
    deadline = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < deadline:
        if group is not None and group.poll():
            return
        time.sleep(processes.POLL_S / 2)


def _pause(group: processes.Group) -> None:
    group.signal(signal.SIGSTOP)
    for rank, pid in enumerate(group.pids):
        if rank not in group.codes:
            found, status = os.waitpid(pid, os.WUNTRACED)
            if found and not os.WIFSTOPPED(status):
                group.codes[rank] = os.waitstatus_to_exitcode(status)


def put_back(run: Path, image: Path) -> None:
    """Put a copy of ``image`` in the place of ``run``: a run may know its folder's name."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(image, run)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    if raw:
        raw[len(raw) * 2 // 3] ^= 4
    path.write_bytes(raw)


def _write_nan(path: Path) -> None:
    tensors = _tensors(path)
    tensors["model.layers.0.post_attention_layernorm.weight"][3] = float("nan")
    _save(tensors, path)


def _drop_tensor(path: Path) -> None:
    tensors = _tensors(path)
    del tensors["model.layers.0.mlp.experts.down_proj_bias"]
    _save(tensors, path)


def _tensors(path: Path) -> dict:
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _save(tensors: dict, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    return (said or lines or [""])[-1][:300]
