"""What this machine denies to code of a model, found out by trying; refusal where it is too little.

A probe runs in the sandbox once a process and tries each thing. Whatever gets through is named in
the report, and where the network gets through nothing of a model is run at all.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from gptoss_tune.errors import MachineError
from gptoss_tune.grading.code.sandbox import Job, Limits, landlock_version, run

UNPROTECTED: Final = "GPTOSS_TUNE_RUN_CODE_OF_MODELS_UNPROTECTED"
"""Environment variable of the user's: ``yes`` runs code of models although it is not held back.

No setting of a suite, a recipe or a row: a file of a stranger must not be able to say it.
"""

_PROBE: Final = """
import ctypes, json, os, socket, sys
def denied(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False
def native():
    if ctypes.CDLL(None, use_errno=True).socket(2, 1, 0) < 0:
        raise OSError
def forked():
    if os.fork() == 0:
        os._exit(0)
def outside():
    path = os.path.join(os.path.dirname(os.getcwd()), "gptoss-probe-" + str(os.getpid()))
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.unlink(path)
print(json.dumps({
    "network": all(denied(lambda f=f: socket.socket(f)) for f in (socket.AF_INET, socket.AF_INET6,
        socket.AF_UNIX)) and denied(native),
    "reading": denied(lambda: os.listdir("/")) and denied(lambda: open("/proc/self/environ")),
    "writing": denied(outside),
    "own folder": not denied(lambda: os.close(os.open("own", os.O_CREAT | os.O_WRONLY))),
    "processes": denied(forked),
    "signals": denied(lambda: os.kill(os.getppid(), 0)),
    "environment": not set(os.environ) - {"HOME", "TMPDIR"},
}))
"""
_DENIED: Final = {
    "network": "the network and local sockets",
    "reading": "reading files of others",
    "writing": "writing outside its own folder",
    "processes": "starting processes",
    "signals": "signals to other processes",
    "environment": "this process's environment",
}


@dataclass(frozen=True)
class Protection:
    """What is denied to code of a model on this machine.

    Attributes:
        denied: What was tried and refused, of ``network``, ``reading``, ``writing``, ``processes``,
            ``signals`` and ``environment``.
        own_folder: Whether the code can write files in a folder of its own.
        landlock: Version of the kernel's Landlock; 0 without.
        root: Whether the code runs as root, without its capabilities.
        why: Why nothing could be tried, or nothing must be run.
    """

    denied: frozenset[str]
    own_folder: bool = False
    landlock: int = 0
    root: bool = False
    why: str | None = None

    @property
    def sufficient(self) -> bool:
        """Whether code of a model may be run: no network, no writing, no signal to others."""
        return self.why is None and {"network", "writing", "signals"} <= self.denied

    def lines(self) -> list[str]:
        """Return what to show a user: what is denied, what is not, and by what."""
        if self.why is not None:
            return [f"code is not run here: {self.why}"]
        shown = [text for name, text in _DENIED.items() if name in self.denied]
        missing = [text for name, text in _DENIED.items() if name not in self.denied]
        by = f"seccomp, Landlock {self.landlock}" if self.landlock else "seccomp, no Landlock"
        lines = [f"denied to the code ({by}): {', '.join(shown) or 'nothing'}"]
        if missing:
            lines.append(f"NOT denied: {', '.join(missing)}")
        if not self.own_folder:
            lines.append("the code can write no file at all")
        if self.root:
            lines.append("it runs as root without capabilities; an ordinary user is better")
        return lines


@lru_cache(maxsize=1)
def protection() -> Protection:
    """Return what this machine denies, tried once a process."""
    return measure()


def measure(*, without: Sequence[str] = (), landlock: int | None = None) -> Protection:
    """Try what is denied.

    Args:
        without: Defences left out, of ``inside.jail.DEFENCES``.
        landlock: Version to use; ``None``: the kernel's own.
    """
    why = _impossible()
    if why is not None:
        return Protection(frozenset(), why=why)
    version = landlock_version() if landlock is None else landlock
    outcome = run(Job(_PROBE, limits=Limits(timeout_s=30)), without=without, landlock=version)
    try:
        found: Mapping[str, bool] = json.loads(outcome.stdout)
    except ValueError:
        said = outcome.why or f"{outcome.ended}, exit code {outcome.code}"
        return Protection(frozenset(), why=f"its sandbox cannot be set up ({said})")
    root = os.getuid() == 0
    if root and not version:
        why = "as root and without Landlock it could read every file; run as an ordinary user"
    denied = frozenset(name for name in _DENIED if found[name])
    return Protection(denied, found["own folder"], version, root, why)


def require(
    found: Protection | None = None, *, environment: Mapping[str, str] | None = None
) -> None:
    """Refuse to run code of a model where it is not held back.

    Args:
        found: What is denied; ``None``: on this machine.
        environment: Of this process, where ``UNPROTECTED`` may stand.

    Raises:
        MachineError: It is not held back, and the user has not said that this is to be.
    """
    found = protection() if found is None else found
    if found.sufficient:
        return
    said = os.environ if environment is None else environment
    could_run = found.why is None or found.root
    if could_run and said.get(UNPROTECTED) == "yes":
        return
    missing = [text for name, text in _DENIED.items() if name not in found.denied]
    why = found.why or f"this machine does not deny {', '.join(missing)}"
    raise MachineError(
        f"code of a model is not run here: {why}. Run it on Linux with seccomp (x86_64 or aarch64; "
        "on Windows in WSL 2, on macOS in a container or virtual machine)"
        + (f", or set {UNPROTECTED}=yes where nothing is to be lost" if could_run else "")
    )


def _impossible() -> str | None:
    if sys.platform != "linux":
        return f"{platform.system() or sys.platform} has no seccomp, which denies the network"
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"the list of system calls is not known for {platform.machine()}"
    if not os.path.isdir(f"/proc/{os.getpid()}"):
        return "/proc is not mounted, by which processes that are left over are found"
    return None
