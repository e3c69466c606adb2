"""Jobs: commands of gptoss-tune that a click starts, and what they write.

Each is the command that a person would type, as a process of its own, so that nothing heavy runs in
the server, nothing is computed twice in two ways, and every job can be stopped. A training goes on
when the page's server ends: it writes into a file and listens to no terminal of ours.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptoss_tune.display import shown_safely
from gptoss_tune.errors import RecipeError

MOST_SHOWN: Final = 256 << 10
"""Bytes of output that one answer holds; the rest comes with the next."""


@dataclass
class Job:
    """One command that was started.

    Attributes:
        number: From 1.
        kind: Which command of gptoss-tune.
        words: What a person would type, without the program's name.
        process: Its process.
        log: What it wrote.
        page: The HTML file that it makes, if it makes one.
    """

    number: int
    kind: str
    words: Sequence[str]
    process: subprocess.Popen[bytes]
    log: Path
    page: Path | None = None

    @property
    def command(self) -> str:
        """The command as one line of a shell."""
        return shlex.join(["gptoss-tune", *self.words])

    @property
    def code(self) -> int | None:
        """Its exit code; ``None`` while it runs."""
        return self.process.poll()

    def output(self, start: int) -> tuple[str, int]:
        """Return what was written from byte ``start`` on, and where that ends."""
        with self.log.open("rb") as file:
            file.seek(max(0, start))
            raw = file.read(MOST_SHOWN)
        if self.code is None:  # what comes may end a character that has only begun
            raw = raw[: raw.rfind(b"\n") + 1]
        return shown_safely(raw.decode("utf-8", "replace")), max(0, start) + len(raw)

    def stop(self) -> None:
        """Ask it to end as Ctrl-C does: a training saves a checkpoint first."""
        if self.code is not None:
            return
        if os.name == "posix":
            self.process.send_signal(signal.SIGINT)
        else:
            self.process.terminate()


class Jobs:
    """The jobs of one server, one of a kind at a time."""

    def __init__(self) -> None:
        """Keep what they write in a folder of this server."""
        self.folder = Path(tempfile.mkdtemp(prefix="gptoss-tune-ui-"))
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, words: Sequence[str], page: Path | None = None) -> Job:
        """Start ``gptoss-tune WORDS``.

        Args:
            kind: Which command it is.
            words: Command and arguments.
            page: The HTML file that it makes.

        Raises:
            RecipeError: One of this kind runs.
        """
        with self._lock:
            running = [job for job in self._jobs.values() if job.kind == kind and job.code is None]
            if running:
                raise RecipeError(
                    f"`{running[0].command}` runs already; wait for its end or stop it first"
                )
            number = len(self._jobs) + 1
            log = self.folder / f"{number}-{kind}.log"
            with log.open("wb") as written:
                process = subprocess.Popen(
                    [sys.executable, "-m", "gptoss_tune", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=written,
                    stderr=subprocess.STDOUT,
                    # Not ended by the Ctrl-C that ends the server.
                    start_new_session=True,
                )
            job = self._jobs[number] = Job(number, kind, words, process, log, page)
            return job

    def get(self, number: int) -> Job | None:
        """Return the job of this number."""
        return self._jobs.get(number)

    def latest(self, kind: str) -> Job | None:
        """Return the job of a kind that was started last."""
        found = [job for job in self._jobs.values() if job.kind == kind]
        return found[-1] if found else None

    def close(self) -> list[Job]:
        """End what looks at data; return the trainings, which go on, and keep what they write."""
        running = [job for job in self._jobs.values() if job.code is None]
        trainings = [job for job in running if job.kind == "train"]
        for job in running:
            if job not in trainings:
                job.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.process.wait(5)
        if not trainings:
            shutil.rmtree(self.folder, ignore_errors=True)
        return trainings
