"""The sandbox's own process: it starts the code, watches it, ends all of it and clears up.

Standard input brings two frames (the code with what it may take, then the tests), and its end says
that whoever asked is gone. The code's process is forked between the two: so the tests were never in
the memory that it begins with. Standard output takes the report, one line of JSON.

It holds no secret and believes nothing that the code says. It outlives whoever asked by a moment,
to kill what runs and to remove the folder, also after a ``kill -9``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import selectors
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from gptoss_tune.grading.code.inside import examiner, guest, jail, kernel, processes

_TICK: Final = 0.02
_DISK_EVERY: Final = 0.1
_MOST_ENTRIES: Final = 10_000
_READ: Final = 65_536
_VERDICT_BYTES: Final = 65_536
_CONFINED = b"confined"


class _Stream:
    """What comes out of one pipe, up to a bound."""

    def __init__(self, name: str, descriptor: int, most: int) -> None:
        self.name, self.descriptor, self._most = name, descriptor, most
        self._parts: list[bytes] = []
        self._size = 0
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Take what is there; return whether there may be more."""
        try:
            part = os.read(self.descriptor, _READ)
        except BlockingIOError:
            return True
        self._parts.append(part)
        self._size += len(part)
        return bool(part) and not self.too_much

    @property
    def too_much(self) -> bool:
        return self._size > self._most

    def text(self) -> str:
        return base64.b64encode(b"".join(self._parts)[: self._most]).decode()


class _Run:
    """One run: its processes, what they say, and how it ended."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.confinement = request, jail.Confinement(**request["confinement"])
        self.streams: list[_Stream] = []
        self.codes: dict[int, int] = {}
        self.ended: str | None = None
        self.started = time.monotonic()
        self._disk_at = 0.0

    def pipe(self, name: str, most: int) -> int:
        """Return the writing end of a pipe whose other end is read into a stream."""
        reading, writing = os.pipe()
        self.streams.append(_Stream(name, reading, most))
        return writing

    def watch(self, code: int, tests: int | None) -> None:
        """Wait until the code has ended, or the tests have, or something is too much."""
        selector, (waking, woken) = selectors.DefaultSelector(), os.pipe()
        for end in (waking, woken):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        selector.register(waking, selectors.EVENT_READ, None)
        selector.register(0, selectors.EVENT_READ, None)
        for stream in self.streams:
            selector.register(stream.descriptor, selectors.EVENT_READ, stream)
        while self.ended is None:
            for key, _ in selector.select(_TICK):
                if key.data is not None and not key.data.read():
                    selector.unregister(key.fd)
                elif key.fd == waking:
                    os.read(waking, _READ)
                elif key.fd == 0 and not os.read(0, 1):
                    self.ended = "abandoned"
            self._reap()
            self._judge(code, tests)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self.codes[found[0]] = os.waitstatus_to_exitcode(found[1])

    def _judge(self, code: int, tests: int | None) -> None:
        flooded = next((stream.name for stream in self.streams if stream.too_much), None)
        if self.ended is not None:
            return
        if flooded:
            self.ended = f"flood:{flooded}"
        elif (code if tests is None else tests) in self.codes:
            self.ended = "exited"
        elif os.getppid() != self.request["parent"]:
            self.ended = "abandoned"
        elif time.monotonic() - self.started > self.confinement.timeout_s:
            self.ended = "timeout"
        elif jail.LIMITS not in self.confinement.without:
            self.ended = self._excess()

    def _excess(self) -> str | None:
        running = processes.descendants()
        most = self.request["most_tasks"]
        if processes.tasks(running) > most:
            return "tasks"
        now = time.monotonic()
        if now < self._disk_at + _DISK_EVERY:
            return None
        self._disk_at = now
        return self.disk()

    def disk(self) -> str | None:
        """Return ``disk`` where the folder holds too much."""
        size = processes.folder_size(self.confinement.folder, _MOST_ENTRIES)
        return "disk" if not 0 <= size <= self.request["disk_bytes"] else None

    def finish(self, code: int, tests: int | None) -> dict[str, Any]:
        """Kill what is left and return the report."""
        seconds = time.monotonic() - self.started
        signal.set_wakeup_fd(-1)
        self._reap()
        left = len(processes.descendants())
        processes.kill_all()
        for stream in self.streams:
            while stream.read() and not stream.too_much:
                pass
        if self.ended == "exited" and jail.LIMITS not in self.confinement.without:
            self.ended = self.disk() or self.ended
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "ended": self.ended,
            "code": self.codes.get(code),
            "tests": None if tests is None else self.codes.get(tests),
            "left": left,
            "seconds": seconds,
            "peak_mib": used.ru_maxrss / 1024,
            **{stream.name: stream.text() for stream in self.streams},
        }


def main() -> None:
    """Do one run."""
    request = _frame()
    folder = request["confinement"]["folder"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # nobody of this user reads or traces it
    report: dict[str, Any] = {"ended": "refused", "why": "the supervisor failed"}
    try:
        os.mkdir(folder, 0o700)
        report = _supervise(request)
    except _NotConfinedError as error:
        report = {"ended": "refused", "why": str(error)}
    finally:
        processes.kill_all()
        processes.remove_folder(folder)
    with contextlib.suppress(BrokenPipeError):
        guest.wire.write_all(1, json.dumps(report).encode() + b"\n")


class _NotConfinedError(Exception):
    """A process could not be confined, and did not run."""


def _supervise(request: dict[str, Any]) -> dict[str, Any]:
    run, most = _Run(request), request["output_bytes"]
    source, stdin = request["source"], _file(request["stdin"].encode())
    output = [run.pipe("stdout", most), run.pipe("stderr", most)]
    if not request["tested"]:
        replies = run.pipe("replies", request["reply_bytes"])
        asked = _file(request["requests"].encode())
        serve = guest.run_program if request["program"] else guest.serve_module
        code = _start(run, [stdin, *output, asked, replies], lambda: serve(source))
        _close(stdin, *output, asked, replies)
        run.watch(code, None)
        return run.finish(code, None)
    from_code, to_tests = os.pipe()
    from_tests, to_code = os.pipe()
    streams = [stdin, *output, from_tests, to_tests]
    code = _start(run, streams, lambda: guest.serve_module(source))
    given = _frame()
    verdict = run.pipe("verdict", _VERDICT_BYTES)
    silent = os.open(os.devnull, os.O_RDWR)
    streams = [silent, silent, silent, from_code, to_code, verdict]
    tests = _start(run, streams, lambda: examiner.examine(given))
    _close(stdin, *output, silent, verdict, from_code, to_tests, from_tests, to_code)
    run.watch(code, tests)
    return run.finish(code, tests)


def _start(run: _Run, streams: Sequence[int], work: Callable[[], int]) -> int:
    """Fork a process that confines itself and then works; return its id once it is confined.

    Raises:
        _NotConfinedError: It could not be.
    """
    listening, speaking = os.pipe()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(run.confinement, [*streams, speaking], supervisor, work)
    os.close(speaking)
    said = b""
    while part := os.read(listening, 4096):
        said += part
    os.close(listening)
    if said != _CONFINED:
        raise _NotConfinedError(said.decode(errors="replace") or "the process died at once")
    return pid


def _child(
    confinement: jail.Confinement,
    streams: Sequence[int],
    supervisor: int,
    work: Callable[[], int],
) -> None:
    speaking, code = len(streams) - 1, 1
    try:
        try:
            jail.confine(confinement, streams, supervisor)
            guest.wire.write_all(speaking, _CONFINED)
        except BaseException as error:
            guest.wire.write_all(speaking, str(error).encode())
            os._exit(1)
        os.close(speaking)
        jail.forget(arguments=[guest.NAME])
        code = work()
    finally:
        os._exit(code & 0xFF)


def _file(data: bytes) -> int:
    """Return a descriptor that reads ``data`` from its start, without a name and without a pipe."""
    descriptor = os.memfd_create("input")
    guest.wire.write_all(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    # A second opening, for reading alone: the code cannot fill memory through it.
    reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)
    return reading


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _frame() -> dict[str, Any]:
    """Return the next frame of standard input: its length in eight bytes, then JSON."""
    (length,) = struct.unpack("<Q", _exactly(8))
    return json.loads(_exactly(length))


def _exactly(count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.read(0, min(count, 2**20))
        if not part:
            sys.exit(1)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
