"""A process that judges and can be killed, kept alive from one job to the next.

A symbolic comparison or a pattern in a schema may take for ever, inside of C code that no exception
reaches, and a timeout by signals works in the main thread alone. So such work is done by a child
process: it is given a job as a line of JSON, and killed where the answer is not there in time. Its
memory is limited by the system, it writes no files, and it knows nothing of the environment but
where Python's modules are. What it costs to start (about a second for symbolic mathematics) is paid
once, and again after each kill; it does not count as time of a job.

A pool was the alternative; verdicts come one after the other, so one process for each sort of job
is enough.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from typing import IO, Any, Final, Literal

from gptoss_tune.errors import MachineError

Job = Literal["maths", "schema"]

SECONDS_TO_START: Final = 120.0
"""Until the libraries are imported, on a machine that is busy with other things."""
LARGEST_JOB: Final = 2 << 20
"""Characters of a job."""
_LARGEST_REPLY: Final = 1 << 20
_KEPT: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "SYSTEMROOT", "LANG", "TMPDIR")


class OutOfTime(Exception):
    """The job did not end within its time; the process was killed."""


class JobDied(Exception):
    """The process died of the job: no memory is left, or the stack of C code is."""


class Worker:
    """One process for one sort of job; safe to use from several threads and after a fork."""

    def __init__(self, job: Job) -> None:
        """Prepare for ``job``; the process is started when it is first asked."""
        self._job: Job = job
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[bytes | None] = queue.Queue()
        self._owner = 0
        self.started = 0
        """How often a process was started."""

    def ask(self, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the reply to a task.

        Args:
            task: Anything that JSON can hold.
            seconds: From when the process is ready.

        Raises:
            OutOfTime: It took longer.
            JobDied: The process died of it.
            MachineError: No process can be started.
        """
        line = json.dumps({"task": task, "seconds": seconds}).encode() + b"\n"
        if len(line) > LARGEST_JOB:
            raise OutOfTime
        with self._lock:
            process = self._ready()
            try:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
                reply = self._replies.get(timeout=seconds)
            except queue.Empty:
                self._kill()
                raise OutOfTime from None
            except OSError:
                reply = None
            except BaseException:
                # A reply to this job, still to come, would be taken for the next one's.
                self._kill()
                raise
            if reply is None:
                self._kill()
                raise JobDied
            return json.loads(reply)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def _ready(self) -> subprocess.Popen[bytes]:
        """Return a process that waits for a job."""
        alive = self._process is not None and self._process.poll() is None
        if alive and self._owner == os.getpid():
            assert self._process is not None
            return self._process
        if self._owner == os.getpid():
            self._kill()
        self._start()
        try:
            hello = self._replies.get(timeout=SECONDS_TO_START)
        except queue.Empty:
            hello = None
        if hello is None or self._process is None:
            self._kill()
            raise MachineError(
                f"the process that judges {self._job} does not start; "
                f"`{sys.executable} -m gptoss_tune.grading.bounded.process {self._job}` says why"
            )
        return self._process

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        # The current folder may be a stranger's: modules come from the libraries alone.
        command = [sys.executable, "-P", "-B", "-m", "gptoss_tune.grading.bounded.process"]
        self._process = subprocess.Popen(
            [*command, self._job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=os.path.abspath(os.sep),
        )
        self._owner, self._replies = os.getpid(), queue.Queue()
        self.started += 1
        assert self._process.stdout is not None
        threading.Thread(
            target=_pass_on, args=(self._process.stdout, self._replies), daemon=True
        ).start()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # what was not read any more is lost with it
                process.stdin.close()


def _pass_on(replies: IO[bytes], into: queue.Queue[bytes | None]) -> None:
    """Put each line into a queue, and ``None`` at the end."""
    with replies:
        while line := replies.readline(_LARGEST_REPLY):
            into.put(line)
    into.put(None)


_WORKERS: Final[dict[Job, Worker]] = {"maths": Worker("maths"), "schema": Worker("schema")}


def worker(job: Job) -> Worker:
    """Return this process's worker for a sort of job."""
    return _WORKERS[job]


@atexit.register
def close_workers() -> None:
    """End the processes of all workers."""
    for each in _WORKERS.values():
        each.close()
