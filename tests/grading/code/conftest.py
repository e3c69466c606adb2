import os
import socket
import subprocess
import sys
import sysconfig
import textwrap
import threading

import pytest

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.code.protection import protection
from gptoss_tune.grading.code.sandbox import Job, Limits, run
from gptoss_tune.grading.rows import read_grader


@pytest.fixture(scope="session", autouse=True)
def _a_machine_that_holds_back():
    if not protection().sufficient:
        pytest.skip(protection().lines()[0])


@pytest.fixture(scope="session")
def attempt():
    """Run code in the sandbox with limits; give the outcome."""

    def attempted(code, *, without=(), landlock=None, **limits):
        limits.setdefault("timeout_s", 20)
        job = Job(textwrap.dedent(code), limits=Limits(**limits))
        return run(job, without=without, landlock=landlock)

    return attempted


@pytest.fixture(scope="session")
def plainly():
    """Run code as any program, without a sandbox; give the process."""

    def started(code, **options):
        command = [sys.executable, "-I", "-c", textwrap.dedent(code)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)

    return started


@pytest.fixture(scope="session")
def verdict():
    """Judge a text by a row's tests."""

    def judged(row, text):
        grader = read_grader({"grader": "code", **row}, "tasks.jsonl:1")
        return grader.judge(Given(text), grader.seconds)

    return judged


class Outside:
    """What there is to get at."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "secret").write_text("s3cret")
        (folder / "cut").write_text("long")
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", 0))
        self.local = f"gptoss-test-{os.getpid()}"
        self.listeners = [
            self.listen(socket.AF_INET, ("127.0.0.1", 0)),
            self.listen(socket.AF_INET6, ("::1", 0)),
            self.listen(socket.AF_UNIX, str(folder / "socket")),
            self.listen(socket.AF_UNIX, f"\0{self.local}"),
        ]

    def listen(self, family, address):
        try:
            listener = socket.socket(family)
            listener.bind(address)
        except OSError:
            return None
        listener.listen()
        threading.Thread(target=self.welcome, args=(listener,), daemon=True).start()
        return listener

    @staticmethod
    def welcome(listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.sendall(b"welcome")

    def fill(self, code):
        tcp, tcp6 = self.listeners[:2]
        return code.format(
            outside=str(self.folder),
            port=tcp.getsockname()[1],
            port6=tcp6.getsockname()[1] if tcp6 else 0,
            datagrams=self.datagrams.getsockname()[1],
            local=self.local,
            pid=os.getpid(),
            packages=sysconfig.get_paths()["purelib"],
        )

    def close(self):
        for listener in (*self.listeners, self.datagrams):
            if listener is not None:
                listener.close()


@pytest.fixture(scope="session")
def things_at():
    """Put a secret file and listeners into a folder."""
    return Outside


@pytest.fixture(scope="session")
def outside(tmp_path_factory):
    there = Outside(tmp_path_factory.mktemp("outside"))
    yield there
    there.close()


@pytest.fixture(scope="session")
def escaped():
    return lambda outcome: b"ESCAPED" in outcome.stdout and outcome.ended == "exited"


@pytest.fixture
def fails_and_would_work(attempt, outside, escaped):
    """Run an attempt as code is run, and again with the defences left out that it is up against."""

    def tried(defences, code):
        code = outside.fill(code) + "\n        print('ESCAPED')\n"
        held = attempt(code)
        assert held.ended != "refused", held.why
        assert not escaped(held), "it got out"
        control = attempt(code, without=defences)
        assert escaped(control), f"it does not work without {defences} either: {control}"

    return tried
