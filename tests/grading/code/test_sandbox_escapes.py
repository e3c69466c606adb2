"""Code that tries to get out: each attempt fails in the sandbox, and works without its defence.

An attempt prints ESCAPED where it got what it wanted. The same code runs twice: as it would be run,
and with the defence that it is up against left out, so that no attempt fails for another reason.
"""

import os
import socket
import subprocess
import sys
import sysconfig
import textwrap
import threading
from pathlib import Path

import pytest

from gptoss_tune.grading.code.sandbox import Job, run

FILES = ("landlock",)
CALLS = ("seccomp",)
BOTH = ("landlock", "seccomp")

# Name -> the defences left out in the control, and the code. {outside} is a folder with a file
# `secret`, {port}, {port6}, {datagrams} and {local} are listeners, {pid} is this process.
ATTEMPTS = {
    "reads a file of the user": (
        FILES,
        """
        assert open({outside!r} + "/secret").read() == "s3cret"
        """,
    ),
    "reads the environment of who asked": (
        BOTH,
        """
        assert b"PATH=" in open("/proc/{pid}/environ", "rb").read()
        """,
    ),
    "reads the memory map of its parent": (
        BOTH,
        """
        import os
        assert open(f"/proc/{{os.getppid()}}/maps").read()
        """,
    ),
    "lists the root folder": (
        FILES,
        """
        import os
        assert os.listdir("/")
        """,
    ),
    "writes outside of its folder": (
        FILES,
        """
        open({outside!r} + "/new", "w").write("x")
        """,
    ),
    "reads through a link that it made": (
        FILES,
        """
        import os
        os.symlink({outside!r} + "/secret", "link")
        assert open("link").read() == "s3cret"
        """,
    ),
    "makes a second name for a foreign file": (
        FILES,
        """
        import os
        os.link({outside!r} + "/secret", "mine")
        """,
    ),
    "moves its file over a foreign one": (
        FILES,
        """
        import os
        open("mine", "w").write("x")
        os.rename("mine", {outside!r} + "/moved")
        """,
    ),
    "cuts a foreign file while reading it": (
        BOTH,
        """
        import os
        os.open({outside!r} + "/cut", os.O_RDONLY | os.O_TRUNC)
        assert os.path.getsize({outside!r} + "/cut") == 0
        """,
    ),
    "opens a foreign file to all": (
        CALLS,
        """
        import os
        os.chmod({outside!r} + "/secret", 0o666)
        """,
    ),
    "sets the dates of a foreign file": (
        CALLS,
        """
        import os
        os.utime({outside!r} + "/secret", (0, 0))
        """,
    ),
    "imports a package of the site": (
        FILES,
        """
        import sys
        sys.path.append({packages!r})
        import typer
        """,
    ),
    "connects over IPv4": (
        CALLS,
        """
        import socket
        assert socket.create_connection(("127.0.0.1", {port})).recv(9) == b"welcome"
        """,
    ),
    "connects over IPv6": (
        CALLS,
        """
        import socket
        assert socket.create_connection(("::1", {port6})).recv(9) == b"welcome"
        """,
    ),
    "sends a datagram, as a name would be asked for": (
        CALLS,
        """
        import socket
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            assert sender.sendto(b"secret.example", ("127.0.0.1", {datagrams})) == 14
        """,
    ),
    "connects to a socket in a folder": (
        BOTH,
        """
        import socket
        with socket.socket(socket.AF_UNIX) as client:
            client.connect({outside!r} + "/socket")
            assert client.recv(9) == b"welcome"
        """,
    ),
    "connects to a socket without a path": (
        BOTH,
        """
        import socket
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\\0" + {local!r})
            assert client.recv(9) == b"welcome"
        """,
    ),
    "makes a socket by the C library": (
        CALLS,
        """
        import ctypes
        assert ctypes.CDLL(None).socket(2, 1, 0) >= 0
        """,
    ),
    "makes a socket by its bare number": (
        CALLS,
        """
        import ctypes, platform
        number = {{"x86_64": 41, "aarch64": 198}}[platform.machine()]
        assert ctypes.CDLL(None).syscall(number, 2, 1, 0) >= 0
        """,
    ),
    "starts a process": (
        CALLS,
        """
        import os
        if os.fork() == 0:
            os._exit(0)
        """,
    ),
    "becomes a shell": (
        BOTH,
        """
        import os, sys
        sys.stdout.flush()
        os.execv("/bin/sh", ["sh", "-c", "echo ESCAPED; command -v curl"])
        """,
    ),
    "signals its parent": (
        BOTH,
        """
        import os, signal
        os.kill(os.getppid(), signal.SIGURG)
        """,
    ),
    "signals who asked": (
        BOTH,
        """
        import os, signal
        os.kill({pid}, signal.SIGURG)
        """,
    ),
    "has the kernel signal who asked": (
        CALLS,
        """
        import fcntl
        fcntl.fcntl(0, fcntl.F_SETOWN, {pid})
        """,
    ),
    "asks to be traced": (
        CALLS,
        """
        import ctypes
        assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0
        """,
    ),
    "reads memory by another process's door": (
        CALLS,
        """
        import ctypes, os, platform
        number = {{"x86_64": 310, "aarch64": 270}}[platform.machine()]
        class Vector(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
        here, there = ctypes.create_string_buffer(4), ctypes.create_string_buffer(b"data")
        local = Vector(ctypes.addressof(here), 4)
        remote = Vector(ctypes.addressof(there), 4)
        call = ctypes.CDLL(None).syscall
        got = call(number, os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        assert got == 4
        """,
    ),
    "makes a namespace of its own": (
        CALLS,
        """
        import ctypes
        assert ctypes.CDLL(None).unshare(0x10000000) == 0
        """,
    ),
    "stays when its supervisor dies": (
        CALLS,
        """
        import ctypes
        assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0
        """,
    ),
    "lifts its limits": (
        ("seccomp", "landlock", "limits"),
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(7)[1]))
        """,
    ),
    "keeps a file in memory that nothing counts": (
        CALLS,
        """
        import os
        os.write(os.memfd_create("x"), b"x")
        """,
    ),
    "uses what was open in its parent": (
        ("descriptors",),
        """
        import os
        open_ = []
        for number in range(5, 64):
            try:
                os.fstat(number)
                open_.append(number)
            except OSError:
                pass
        assert open_
        """,
    ),
    "reads the environment": (
        ("environment",),
        """
        import os
        assert set(os.environ) - {{"HOME", "TMPDIR"}} or os.environ.get("HOME") is None
        """,
    ),
    "takes two gigabytes of memory": (
        ("limits",),
        """
        assert len(bytearray(2 * 2**30)) == 2 * 2**30
        """,
    ),
    "writes one large file": (
        ("limits",),
        """
        with open("large", "wb") as file:
            for _ in range(20):
                file.write(bytes(2**20))
        """,
    ),
    "writes many files": (
        ("limits",),
        """
        import time
        for number in range(8):
            open(str(number), "wb").write(bytes(12 * 2**20))
        time.sleep(0.5)
        """,
    ),
    "makes many small files": (
        ("limits",),
        """
        import time
        for number in range(12_000):
            open(str(number), "w").close()
        time.sleep(0.5)
        """,
    ),
    "makes many threads": (
        ("limits",),
        """
        import threading, time
        threading.stack_size(65536)
        for _ in range(200):
            threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        time.sleep(0.5)
        """,
    ),
    "opens many files": (
        ("limits",),
        """
        kept = [open("/dev/null") for _ in range(100)]
        """,
    ),
}


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


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    there = Outside(tmp_path_factory.mktemp("outside"))
    yield there
    there.close()


def escaped(outcome):
    return b"ESCAPED" in outcome.stdout and outcome.ended == "exited"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_fails_and_would_work_without_its_defence(name, attempt, outside):
    defences, code = ATTEMPTS[name]
    if "IPv6" in name and outside.listeners[1] is None:
        pytest.skip("this machine has no IPv6")
    code = outside.fill(code) + "\n        print('ESCAPED')\n"
    held = attempt(code)
    assert held.ended != "refused", held.why
    assert not escaped(held), "it got out"
    control = attempt(code, without=defences)
    assert escaped(control), f"it does not work without {defences} either: {control}"


def test_packages_beside_the_standard_library_are_not_read(attempt):
    beside = Path(sysconfig.get_paths()["stdlib"]) / "site-packages"
    there = next((path for path in beside.glob("**/*.*") if path.is_file()), None)
    if there is None:
        pytest.skip("this Python has no package beside its standard library")
    code = f"open({str(there)!r}, 'rb').read(); print('ESCAPED')"
    assert not escaped(attempt(code))
    assert escaped(attempt(code, without=("landlock",)))


def test_root_runs_without_its_capabilities(attempt):
    if os.getuid() != 0:
        pytest.skip("an ordinary user has none")
    code = "import os; os.nice(-1); print('ESCAPED')"
    assert not escaped(attempt(code, without=("seccomp",)))
    assert escaped(attempt(code, without=("seccomp", "landlock")))


def test_nothing_outside_was_changed(attempt, tmp_path):
    outside = Outside(tmp_path)
    mode = (tmp_path / "secret").stat().st_mode
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in ("writes outside of its folder", "moves its file over a foreign one"):
        attempt(outside.fill(ATTEMPTS[name][1]))
    for name in ("cuts a foreign file while reading it", "opens a foreign file to all"):
        attempt(outside.fill(ATTEMPTS[name][1]))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "cut").read_text() == "long"
    assert (tmp_path / "secret").stat().st_mode == mode
    outside.close()


def test_a_kernel_without_landlock_writes_no_file_at_all(attempt, tmp_path):
    code = """
    import os
    for change in (
        lambda: open("own", "w"),
        lambda: os.mkdir("folder"),
        lambda: open({0!r} + "/new", "a"),
        lambda: os.rename({0!r} + "/there", {0!r} + "/new"),
        lambda: os.unlink({0!r} + "/other"),
        lambda: os.symlink("/", "link"),
    ):
        try:
            change()
            print("ESCAPED")
        except PermissionError:
            print("refused")
    """.format(str(tmp_path))
    (tmp_path / "there").write_text("x")
    (tmp_path / "other").write_text("x")
    held = attempt(code, landlock=0)
    assert held.stdout.split() == [b"refused"] * 6
    control = attempt(code, landlock=0, without=("seccomp",))
    assert control.stdout.split() == [b"ESCAPED"] * 6


def test_what_honest_code_needs_works(attempt):
    code = """
    import asyncio.queues, bz2, collections, ctypes, dataclasses, datetime, decimal, fractions
    import hashlib, heapq, itertools, json, lzma, math, os, random, re, sqlite3, statistics, string
    import sys, tempfile, threading, time, typing, zlib, zoneinfo
    from concurrent.futures import ThreadPoolExecutor
    assert list(ThreadPoolExecutor(4).map(abs, [-1, -2])) == [1, 2]
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "f"), "w+") as file:
        file.write("text"); file.seek(0); assert file.read() == "text"
        os.rename(file.name, file.name + "2")
    assert sqlite3.connect("own.db").execute("select 6 * 7").fetchone() == (42,)
    assert random.random() < 1 and len(os.urandom(4)) == 4 and time.time() > 0
    assert datetime.datetime.now(zoneinfo.ZoneInfo("UTC")).year > 2000
    assert sys.argv == ["answer.py"] and __name__ == "__main__" and input() == "line"
    print(os.getcwd() == os.environ["HOME"] == os.environ["TMPDIR"], sys.stdin.read())
    """
    outcome = run(Job(textwrap.dedent(code), stdin="line\nrest"))
    assert outcome.stdout == b"True rest\n", outcome
    assert (outcome.ended, outcome.code, outcome.left) == ("exited", 0, 0)


def test_the_same_by_an_ordinary_user():
    # The sandbox needs no root: another user's processes are held back by the same calls.
    if os.getuid() != 0:
        pytest.skip("the other tests ran as an ordinary user already")
    python = Path("/usr/bin/python3")
    if not python.exists() or sys.version_info[:2] != _version(python):
        pytest.skip("there is no Python here that another user may read")
    code = (
        "from gptoss_tune.grading.code.protection import measure; "
        "found = measure(); print(sorted(found.denied), found.own_folder, found.root, found.why)"
    )
    source = Path(__file__).resolve().parents[3] / "src"
    done = subprocess.run(
        [python, "-c", code],
        env={"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    every = ["environment", "network", "processes", "reading", "signals", "writing"]
    assert done.stdout.strip() == f"{every} True False None", done.stderr


def _version(python):
    code = "import sys; print(*sys.version_info[:2])"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()))
