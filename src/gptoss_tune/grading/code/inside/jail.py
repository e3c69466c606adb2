"""What a process gives up before it runs code of a model; there is no way back.

The order matters: limits while they may still be set, then privileges, files (Landlock opens its
rules by path), and system calls last. Whatever of it cannot be done raises, and the code is not
run.
"""

from __future__ import annotations

import fcntl
import gc
import math
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gptoss_tune.grading.code.inside import kernel, landlock, syscalls
from gptoss_tune.grading.code.inside.processes import user_tasks

LIMITS: Final = "limits"
SECCOMP: Final = "seccomp"
LANDLOCK: Final = "landlock"
DESCRIPTORS: Final = "descriptors"
ENVIRONMENT: Final = "environment"
DEFENCES: Final = (LIMITS, SECCOMP, LANDLOCK, DESCRIPTORS, ENVIRONMENT)


@dataclass(frozen=True)
class Confinement:
    """What a process may have.

    Attributes:
        folder: Its own; where it starts, and the only place to write.
        timeout_s: Wall clock; a second more of processor time ends it by the kernel.
        memory_mib: Address space of each process.
        file_mib: Size of one file.
        open_files: Descriptors at a time.
        processes: That it may start; 0: none, and no other program.
        machine: ``x86_64`` or ``aarch64``.
        landlock: Version of the kernel's interface; 0: it has none, and no file is written at all.
        libraries: Shared libraries that the standard library loads.
        executable: The interpreter.
        without: Defences left out, of ``DEFENCES``.
    """

    folder: str
    timeout_s: float
    memory_mib: int
    file_mib: int
    open_files: int
    processes: int
    machine: str
    landlock: int
    libraries: Sequence[str]
    executable: str
    without: Sequence[str] = ()


def confine(given: Confinement, streams: Sequence[int], supervisor: int) -> None:
    """Confine this process, a fresh child of the supervisor.

    Args:
        given: What it may have.
        streams: Descriptors that become 0, 1, 2 and so on; all others are closed.
        supervisor: Its parent's id; when that dies, so does this process.

    Raises:
        OSError: Something could not be taken away.
    """
    os.setsid()
    _take_streams(streams, keep=DESCRIPTORS in given.without)
    os.chdir(given.folder)
    if ENVIRONMENT not in given.without:
        os.environ.clear()
        os.environ.update(HOME=given.folder, TMPDIR=given.folder)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if LIMITS not in given.without:
        _limit(given)
    if SECCOMP not in given.without or LANDLOCK not in given.without:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.drop_capabilities(given.machine)
    _die_with(supervisor)
    if LANDLOCK not in given.without and given.landlock:
        landlock.restrict(
            given.landlock,
            given.folder,
            given.libraries,
            executable=given.executable if given.processes else None,
        )
    if SECCOMP not in given.without:
        instructions = syscalls.program(
            given.machine,
            pid=os.getpid(),
            writing=given.landlock > 0,
            processes=given.processes > 0,
            signals=given.processes > 0 and given.landlock >= landlock.SIGNALS_FROM,
        )
        kernel.filter_calls(syscalls.packed(instructions))


def _take_streams(streams: Sequence[int], *, keep: bool) -> None:
    """Make the streams descriptors 0, 1, 2 ..., and close every other one."""
    copies = [fcntl.fcntl(stream, fcntl.F_DUPFD, len(streams)) for stream in streams]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    if not keep:
        os.closerange(len(streams), os.sysconf("SC_OPEN_MAX"))


def _limit(given: Confinement) -> None:
    seconds = math.ceil(given.timeout_s) + 1
    memory, size = given.memory_mib * 2**20, given.file_mib * 2**20
    wanted = [
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NOFILE, given.open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ]
    if given.processes:
        # It counts every thread of the user; root it does not bind, the supervisor's count does.
        wanted.append((resource.RLIMIT_NPROC, user_tasks() + given.processes))
    for kind, value in wanted:
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def _die_with(supervisor: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)  # it died before the kernel was told


def forget(*, arguments: Sequence[str]) -> None:
    """Leave the interpreter as a fresh one: no module, path or argument of ours to be seen."""
    sys.argv = list(arguments)
    sys.path[:] = [p for p in sys.path if p.startswith(sys.base_prefix) and "-packages" not in p]
    for name in [name for name in sys.modules if name.startswith("gptoss_tune")]:
        del sys.modules[name]
    gc.collect()
