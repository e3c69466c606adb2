"""Code that tries to get out: each attempt fails in the sandbox, and works without its defence.

An attempt prints ESCAPED where it got what it wanted. The same code runs twice: as it would be run,
and with the defence that it is up against left out, so that no attempt fails for another reason.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gptoss_tune.grading.code.sandbox import Job, run

FILES = ("landlock",)
CALLS = ("seccomp",)
BOTH = ("landlock", "seccomp")

# Name -> the defences left out in the control, and the code. {outside} is a folder with a file
# `secret`, {port}, {port6}, {datagrams} and {local} are listeners, {pid} is this process.
ATTEMPTS = {
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


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_fails_and_would_work_without_its_defence(name, fails_and_would_work, outside):
    if "IPv6" in name and outside.listeners[1] is None:
        pytest.skip("this machine has no IPv6")
    fails_and_would_work(*ATTEMPTS[name])


def test_root_runs_without_its_capabilities(attempt, escaped):
    if os.getuid() != 0:
        pytest.skip("an ordinary user has none")
    code = "import os; os.nice(-1); print('ESCAPED')"
    assert not escaped(attempt(code, without=("seccomp",)))
    assert escaped(attempt(code, without=("seccomp", "landlock")))


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
