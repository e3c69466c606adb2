"""The start of a run's processes on this machine, by accelerate's launcher, and their exit code.

``launch_ranks`` is what ``accelerate launch`` does, inside the command: the same configuration
files, the same environment for each process. Two things are done otherwise. A signal goes to the
processes once, which then save a checkpoint and leave with 75: accelerate's own handler waits 30
seconds and kills them. And the exit code is the one of the process that failed first, whose
message stands alone: accelerate adds two pages of its own and always ends with 1.

The launcher runs in a thread, because torch's agent takes over the signals of a main thread and
leaves them alone elsewhere. Starting ``accelerate launch`` as a process of its own was the
alternative: its pages are written to the same stream as the messages, and its children cannot be
told from outside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from gptoss_tune.errors import RunInterrupted, say_once
from gptoss_tune.recipe.schema import DistributedSection
from gptoss_tune.shipped import shipped
from gptoss_tune.train.distributed.stop_signals import stop_signals

SAVING_SECONDS = 600
"""How long the others may go on once the first process has left: a checkpoint of many gigabytes."""
CHECKED = "GPTOSS_TUNE_CHECKED"
"""Set for processes whose command has looked at the recipe already, so that they do not."""
MOST_THREADS = 8
"""Threads of a process beside a GPU; more wait for each other."""
_CTRL_C = 130
_POLL_S = 0.2
# Each names its own level, so that a level set above them has no effect.
_LOGGERS = (
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.multiprocessing.errors",
    "torch.distributed.elastic.multiprocessing.redirects",
    "torch.distributed.run",
)


def accelerate_arguments(
    words: Sequence[str],
    distributed: DistributedSection,
    allow_change: Sequence[str] = (),
    environment: str | None = None,
) -> list[str]:
    """Return what is said to ``accelerate launch`` to start the processes of a run.

    Args:
        words: The recipe's path and the overrides.
        distributed: How many processes, and how they share the model.
        allow_change: As given to ``train``.
        environment: As given to ``train``.
    """
    config = shipped("recipes") / "accelerate" / f"{distributed.strategy or 'ddp'}.yaml"
    changes = [word for name in allow_change for word in ("--allow-change", name)]
    changes += [] if environment is None else ["--environment", environment]
    return [
        *("--config_file", str(config), "--num_processes", str(distributed.num_processes)),
        *("--main_process_port", "0", "-m", "gptoss_tune.train", *words, *changes),
    ]


def threads_of_a_process(processes: int, *, gpus: int) -> int:
    """Return ``OMP_NUM_THREADS`` of each process, where it is not set.

    One on a CPU, as a run of one process has it: the number is part of the bits. Beside a GPU an
    equal share of the cores, which decode and hash weights while a model is loaded.
    """
    if gpus == 0:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, cores // processes))


def launch_ranks(arguments: Sequence[str], *, threads: int) -> int:
    """Start the processes of a run, pass signals on to them, and return their exit code.

    Args:
        arguments: From ``accelerate_arguments``.
        threads: ``OMP_NUM_THREADS`` of each process, where it is not set.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    os.environ[CHECKED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_SECONDS))
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    parsed = launch_command_parser().parse_args(list(arguments))
    with _Launch(lambda: launch_command(parsed)) as launch:
        return launch.wait()


class _Launch:
    """One start of all processes: a thread that runs the launcher, and signals passed on."""

    def __init__(self, launcher: Any) -> None:
        self._launcher = launcher
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="accelerate", daemon=True)
        self._signals: list[int] = []
        self._told: set[int] = set()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Launch:
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._take) for n in stop_signals()}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait(self) -> int:
        """Start the processes, and return their exit code when all have ended."""
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        self._thread.start()
        while self._thread.is_alive():
            self._thread.join(_POLL_S)
            self._pass_on()
        if self._error is None:
            return 0
        if not isinstance(self._error, ChildFailedError):
            raise self._error
        failures = self._error.failures
        first, _ = self._error.get_first_failure()
        return self._ended({rank: failure.exitcode for rank, failure in failures.items()}, first)

    def _run(self) -> None:
        try:
            self._launcher()
        except BaseException as error:
            self._error = error

    def _take(self, number: int, frame: FrameType | None) -> None:
        # Passed on from wait(): a handler may run while the list of processes is being read.
        self._signals.append(number)

    def _pass_on(self) -> None:
        """Send the first signal to every process once, those that were started after it too."""
        if not self._signals:
            return
        if self._signals.count(signal.SIGINT) > 1:
            self._kill()
            return
        for process in _children():
            if process.pid not in self._told:
                self._told.add(process.pid)
                _send(process, self._signals[0])

    def _kill(self) -> None:
        """End everything at once, at the second Ctrl-C: checkpoints are complete or absent."""
        for process in _children():
            for one in (*process.children(recursive=True), process):
                _send(one, signal.SIGKILL)

    def _ended(self, codes: Mapping[int, int], first: int) -> int:
        """Return the exit code of the run, and say what no process could say itself."""
        if self._signals.count(signal.SIGINT) > 1:
            say_once("stopped by Ctrl-C; nothing half-written was left behind")
            return _CTRL_C
        if codes[first] > 0:
            return codes[first]
        # The others, when they are left alone, say of a killed one who it was.
        said = [code for code in codes.values() if code > 0]
        if said:
            return said[0]
        if self._signals:
            reason = "a signal came before the run began; the same command starts it"
        else:
            name = signal.Signals(-codes[first]).name
            memory = ", as by a system that is out of memory" if name == "SIGKILL" else ""
            reason = (
                f"rank {first} was killed by {name}{memory}; the checkpoints are complete: the "
                "same command continues from the newest"
            )
        say_once(f"stopped: {reason}")
        return RunInterrupted.exit_code


def _children() -> list[Any]:
    import psutil

    return psutil.Process().children()


def _send(process: Any, number: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
        process.send_signal(number)


def first_word(distributed: DistributedSection) -> None:
    """Say what is started, before the libraries are loaded that do it."""
    how = "each with the whole model"
    if distributed.strategy == "fsdp2":
        how = "the model spread over them"
    sys.stdout.write(f"starting {distributed.num_processes} processes, {how}\n")
    sys.stdout.flush()
