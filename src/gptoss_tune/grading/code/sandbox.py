r"""One piece of Python that a model wrote, run where it can do no harm.

::

    outcome = run(Job(code="print(6 * 7)"))
    outcome.stdout  # b"42\n"

A supervisor (``inside.supervisor``, a fresh interpreter that knows the standard library alone)
starts the code in a process of its own, under limits, without network, without other files than
the standard library's and those in its own folder, and ends it with everything that came out of
it. What each machine really denies is in ``protection``; where the network cannot be denied,
nothing is run.

The supervisor is a process more than the code needs, because a process that holds a model and a
GPU can neither fork safely nor wait for grandchildren that are not its own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import secrets
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from gptoss_tune.display import one_line
from gptoss_tune.errors import MachineError
from gptoss_tune.grading.code.inside.processes import remove_folder

_ROOT: Final = str(Path(__file__).resolve().parents[3])
_SUPERVISOR: Final = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from gptoss_tune.grading.code.inside.supervisor import main; main()"
)
_LIBRARIES: Final = """
import importlib, os, sys, sysconfig
for folder in {sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["platstdlib"]}:
    folder = os.path.join(folder, "lib-dynload")
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        try:
            importlib.import_module(name.partition(".")[0])
        except BaseException:
            pass
with open("/proc/self/maps") as maps:
    paths = {line.split(None, 5)[5].rstrip() for line in maps if line.count("/")}
for path in sorted(paths):
    if path.startswith("/") and ".so" in path:
        print(path)
"""
_GRACE_S: Final = 20.0
"""Beyond a job's wall clock: starting, killing and clearing up on a busy machine."""
_THREADS: Final = 64

Ended = Literal[
    "exited", "timed out", "too much output", "too much on disk", "too many tasks", "refused"
]


@dataclass(frozen=True)
class Limits:
    """What one run may take.

    Attributes:
        timeout_s: Wall clock from the start of the code.
        memory_mib: Address space, of each process.
        file_mib: One file.
        disk_mib: All files in the own folder; looked at ten times a second.
        output_kib: Standard output and standard error, each.
        open_files: Descriptors at a time.
        processes: That the code may start; 0: none, and no other program.
    """

    timeout_s: float = 10.0
    memory_mib: int = 512
    file_mib: int = 16
    disk_mib: int = 64
    output_kib: int = 1024
    open_files: int = 64
    processes: int = 0


@dataclass(frozen=True)
class PythonTests:
    """Python that tests the code, from another process than the code's.

    Attributes:
        source: The tests.
        prefix: Python that the tests need before: definitions that came with the task.
        entry_point: The function under test, ``candidate`` to the tests.
        check: Whether the tests define ``check(candidate)`` and leave it to be called.
        in_place: Whether they look at what the code changed in its arguments.
    """

    source: str
    prefix: str = ""
    entry_point: str | None = None
    check: bool = False
    in_place: bool = False


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        code: Python.
        stdin: Its standard input; ``b""`` reads as its end at once. For a program alone.
        calls: Messages for the code's functions, as ``inside.guest`` takes them; ``None``: the
            code is a program.
        tests: Python to test it with, instead.
        limits: What it may take.
    """

    code: str
    stdin: str = ""
    calls: Sequence[Mapping[str, Any]] | None = None
    tests: PythonTests | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Outcome:
    """What came of it; every byte of it was written by the code, or may have been.

    Attributes:
        ended: How.
        code: Exit code of its process, negative for a signal; ``None`` where it was killed.
        stdout: As far as it was read.
        stderr: The same.
        replies: Lines in answer to calls, and a last one on why a program failed.
        verdict: What the tests' process said; the code cannot write there.
        why: Why nothing was run.
        seconds: Wall clock of the code.
        peak_mib: Largest resident memory of one of its processes.
        left: Processes that were still there at the end, and were killed.
    """

    ended: Ended
    code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    replies: bytes = b""
    verdict: bytes = b""
    why: str | None = None
    seconds: float = 0.0
    peak_mib: float = 0.0
    left: int = 0


_ENDED: Final[dict[str, Ended]] = {
    "exited": "exited",
    "timeout": "timed out",
    "disk": "too much on disk",
    "tasks": "too many tasks",
    "refused": "refused",
}


def run(job: Job, *, without: Sequence[str] = (), landlock: int | None = None) -> Outcome:
    """Run a job and return what came of it, with nothing left behind.

    ``protection.require`` is asked first by whoever grades; this function runs nothing that could
    not be confined as it was told, and says so in ``why``.

    Args:
        job: What to run.
        without: Defences left out, of ``inside.jail.DEFENCES``.
        landlock: Version of the kernel's Landlock to use; ``None``: the kernel's own.

    Raises:
        MachineError: The supervisor could not be started, or died.
    """
    folder = os.path.join(tempfile.gettempdir(), f"gptoss-code-{secrets.token_hex(8)}")
    version = landlock_version() if landlock is None else landlock
    request = _request(job, os.path.realpath(folder), without, version)
    frames = [request] if job.tests is None else [request, asdict(job.tests)]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _SUPERVISOR.format(root=_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise MachineError(f"the sandbox's process cannot be started: {error}") from None
    try:
        report = _report(process, frames, job.limits.timeout_s + _GRACE_S)
    finally:
        _end(process)
        with contextlib.suppress(OSError):
            remove_folder(folder)
    return _outcome(report)


@lru_cache(maxsize=1)
def landlock_version() -> int:
    """Return the version of this kernel's Landlock; 0 without one."""
    if sys.platform != "linux":
        return 0
    from gptoss_tune.grading.code.inside import kernel  # ctypes, which a sandbox alone needs

    return kernel.landlock_version()


def _request(job: Job, folder: str, without: Sequence[str], landlock: int) -> dict[str, Any]:
    limits = job.limits
    return {
        "parent": os.getpid(),
        "source": job.code,
        "program": job.calls is None,
        "tested": job.tests is not None,
        "stdin": job.stdin,
        "requests": "".join(f"{json.dumps(call)}\n" for call in job.calls or ()),
        "output_bytes": limits.output_kib * 1024,
        "reply_bytes": 4 * 2**20,
        "disk_bytes": limits.disk_mib * 2**20,
        "most_tasks": _THREADS + limits.processes,
        "confinement": {
            "folder": folder,
            "timeout_s": limits.timeout_s,
            "memory_mib": limits.memory_mib,
            "file_mib": limits.file_mib,
            "open_files": limits.open_files,
            "processes": limits.processes,
            "machine": platform.machine(),
            "landlock": landlock,
            "libraries": _libraries(),
            "executable": os.path.realpath(sys.executable),
            "without": list(without),
        },
    }


@lru_cache(maxsize=1)
def _libraries() -> list[str]:
    """Return the shared libraries that modules of the standard library load on this machine.

    Raises:
        MachineError: The interpreter does not start.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", _LIBRARIES],
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise MachineError(f"this Python does not start: {one_line(done.stderr[-500:])}")
    return done.stdout.splitlines()


def _report(
    process: subprocess.Popen[bytes], frames: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """Return what the supervisor reports.

    Raises:
        MachineError: It died, or did not report in time.
    """
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise MachineError("the sandbox's process has no pipes")
    with contextlib.suppress(BrokenPipeError):
        for frame in frames:
            data = json.dumps(frame).encode()
            process.stdin.write(struct.pack("<Q", len(data)) + data)
        process.stdin.flush()
    parts: list[bytes] = []
    until = time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        # Not select, which knows only the first 1,024 descriptors of a process.
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if left <= 0 or not poll.poll(left * 1000):
            raise MachineError(
                f"the sandbox's process did not report within {seconds:.0f} s; the machine is "
                "overloaded, or something stopped it"
            )
        part = os.read(process.stdout.fileno(), 2**20)
        if not part:
            break
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except ValueError:
        said = process.stderr.read()[-500:].decode(errors="replace")
        raise MachineError(
            f"the sandbox's process died before it reported: {one_line(said) or 'it said nothing'}"
        ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the supervisor clear up, which the end of its input asks it for; kill it if it hangs."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _outcome(report: Mapping[str, Any]) -> Outcome:
    ended = report["ended"]
    if ended == "refused":
        return Outcome("refused", why=str(report["why"]))
    streams: dict[str, Any] = {
        name: base64.b64decode(report.get(name, ""))
        for name in ("stdout", "stderr", "replies", "verdict")
    }
    return Outcome(
        ended=_ENDED.get(ended, "too much output"),
        code=report["code"],
        seconds=report["seconds"],
        peak_mib=report["peak_mib"],
        left=report["left"],
        **streams,
    )
