"""Runs as forked processes of one that has everything imported: a run costs a second, not ten.

The parent never runs a model, so it has no threads of a math library that a fork would lose.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

POLL_S = 0.001


@dataclass
class Group:
    """The processes of one run, by rank.

    Attributes:
        pids: Their process numbers.
        log: What all of them wrote.
        codes: Exit codes of those that ended; minus the signal's number for those killed.
    """

    pids: list[int]
    log: Path
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Bury who ended; return whether all did."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        """Send a signal to some ranks, or all; those that ended already get none."""
        self.poll()
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if rank not in self.codes:
                os.kill(self.pids[rank], number)

    def wait(self, limit_s: float, ranks: list[int] | None = None) -> bool:
        """Wait for some ranks, or all; what is left after ``limit_s`` is killed.

        Returns:
            Whether all of them ended by themselves.
        """
        deadline = time.monotonic() + limit_s
        wanted = set(range(len(self.pids)) if ranks is None else ranks)
        while not self.poll() and not wanted <= self.codes.keys():
            if time.monotonic() > deadline:
                self.kill()
                return False
            time.sleep(POLL_S * 5)
        return True

    def wait_or_not(self, seconds: float) -> None:
        """Wait for the end of the run, ``seconds`` at most, and leave it alone."""
        deadline = time.monotonic() + seconds
        while not self.poll() and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def kill(self) -> None:
        """End all with SIGKILL."""
        self.signal(signal.SIGKILL)
        while not self.poll():
            time.sleep(POLL_S)

    def text(self) -> str:
        """Return what was written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(body: Callable[[], None], ranks: int, log: Path) -> Group:
    """Fork ``ranks`` processes that run ``body``, in the environment that a launcher would give."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(ranks):
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _child(body, rank, ranks, port, log)
        pids.append(pid)
    return Group(pids, log)


def _child(body: Callable[[], None], rank: int, ranks: int, port: int, log: Path) -> None:
    code = 1
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        body()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def settle() -> None:
    """Keep what is loaded out of the children's garbage collections."""
    gc.collect()
    gc.freeze()
