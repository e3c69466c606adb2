"""Runs that would not end, would fill the machine, or would leave something behind."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from gptoss_tune.grading.code.inside.processes import folder_size, remove_folder
from gptoss_tune.grading.code.pool import run_many
from gptoss_tune.grading.code.sandbox import Job, Limits

STUBBORN = """
import signal, time
for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
    signal.signal(number, signal.SIG_IGN)
print("begun", flush=True)
while True:
    pass
"""

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.close(0); os.close(1); os.close(2)
        time.sleep(60)
    os._exit(0)
time.sleep(1)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def gone(pid, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            if alive(pid):
                time.sleep(0.05)
                continue
        return True
    return False


def left_over():
    return sorted(Path(tempfile.gettempdir()).glob("gptoss-code-*"))


@pytest.fixture
def own_temporary_folder(tmp_path, monkeypatch):
    # Other runs of this machine have their folders in the usual one.
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_loop_that_ignores_signals_is_ended(attempt, plainly):
    process = plainly(STUBBORN)
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None, "it does not ignore the signal, so this shows nothing"
    process.kill()
    process.communicate()
    held = attempt(STUBBORN, timeout_s=1)
    assert held.ended == "timed out" and held.code is None
    assert held.stdout == b"begun\n"


def test_a_daemon_does_not_outlive_its_run(attempt, plainly):
    process = plainly(DAEMON)
    daemon = int(process.stdout.readline())
    process.wait(timeout=30)
    assert alive(daemon), "it does not outlive a plain run, so this shows nothing"
    os.kill(daemon, signal.SIGKILL)
    process.stdout.close()
    held = attempt(DAEMON, processes=4)
    assert held.ended == "exited" and held.left == 1, held
    assert gone(int(held.stdout))


def test_a_bomb_of_processes_is_ended_whole(attempt):
    bomb = """
    import os, time
    print(os.getpid(), flush=True)
    while True:
        try:
            if os.fork() == 0:
                print(os.getpid(), flush=True)
        except OSError:
            time.sleep(0.01)
    """
    held = attempt(bomb, processes=20, output_kib=64, timeout_s=10)
    assert held.ended in ("too many tasks", "timed out", "too much output")
    pids = [int(line) for line in held.stdout.split(b"\n")[:-1]]
    assert len(pids) > 5
    assert all(gone(pid) for pid in pids)


def test_processes_that_are_allowed_inherit_it_all(attempt, tmp_path):
    (tmp_path / "secret").write_text("s3cret")
    code = f"""
    import subprocess, sys
    code = '''
    import os, socket
    for attempt in (
        lambda: open({str(tmp_path / "secret")!r}),
        lambda: socket.socket(),
        lambda: os.kill({os.getpid()}, 0),
        lambda: open({str(tmp_path / "new")!r}, "w"),
    ):
        try:
            attempt()
            print("ESCAPED")
        except PermissionError:
            print("refused")
    open("own", "w").write("x")
    '''
    import textwrap
    run = [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)]
    done = subprocess.run(run, capture_output=True, text=True)
    print(done.stdout, done.stderr, done.returncode)
    """
    held = attempt(code, processes=4)
    assert held.stdout.count(b"refused") == 4 and b"ESCAPED" not in held.stdout, held
    assert held.stdout.split()[-1] == b"0"
    control = attempt(code, processes=4, without=("landlock", "seccomp"))
    assert control.stdout.count(b"ESCAPED") == 4, control


def test_endless_output_is_not_kept(attempt):
    code = "import os\nfor _ in range({}): os.write(1, b'x' * 65536)"
    held = attempt(code.format(10**9), output_kib=256)
    assert held.ended == "too much output" and len(held.stdout) <= 256 * 1024
    fitting = attempt(code.format(8), output_kib=1024)
    assert fitting.ended == "exited" and len(fitting.stdout) == 8 * 65536
    errors = attempt(code.replace("write(1", "write(2").format(10**9), output_kib=256)
    assert errors.ended == "too much output" and len(errors.stderr) <= 256 * 1024


@pytest.mark.slow
def test_a_small_file_that_unpacks_to_a_large_one_is_stopped(attempt):
    code = """
    import zlib
    packer = zlib.compressobj(9)
    small = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    print(len(small), flush=True)
    print(len(zlib.decompress(small)) // 2**20)
    """
    held = attempt(code, memory_mib=256)
    assert held.code == 1 and b"MemoryError" in held.replies
    assert int(held.stdout) < 2**20
    control = attempt(code, memory_mib=256, without=("limits",))
    assert control.stdout.split()[1] == b"300"


def test_what_is_left_of_a_run_is_removed(attempt, own_temporary_folder):
    code = """
    import os
    open("file", "w").write("x")
    os.symlink("/", "root")
    os.mkdir("closed"); open("closed/file", "w"); os.umask(0o777); os.mkdir("dark")
    os.umask(0)
    for _ in range(3000):
        os.mkdir("deeper")
        os.chdir("deeper")
    """
    held = attempt(code)
    assert (held.ended, held.code) == ("exited", 0), held
    assert list(own_temporary_folder.iterdir()) == []


def test_a_folder_of_any_kind_is_removed(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(target)
    (folder / "closed").mkdir()
    (folder / "closed" / "inner").mkdir()
    (folder / "closed" / "inner" / "file").write_text("x" * 10_000)
    assert folder_size(str(folder), 100) >= 10_000
    assert folder_size(str(folder), 2) == -1
    (folder / "closed").chmod(0)
    remove_folder(str(folder))
    remove_folder(str(folder))
    assert not folder.exists() and (target / "kept").exists()


@pytest.mark.slow
def test_two_hundred_runs_leave_nothing(own_temporary_folder):
    before = set(os.listdir("/proc/self/fd"))
    codes = [
        "print({})",
        "open('x', 'w').write('{}')",
        "raise ValueError({})",
        "import os; os.mkdir('{}'); os.kill(os.getpid(), 9)",
        "import threading, time; threading.Thread(target=time.sleep, args=(9,)).start(); 1/0; {}",
    ]
    jobs = [Job(codes[i % 5].format(i), limits=Limits(timeout_s=5)) for i in range(195)]
    jobs += [Job("while True: pass", limits=Limits(timeout_s=0.5))] * 5
    outcomes = run_many(jobs, parallel=4)
    assert [o.ended for o in outcomes[-5:]] == ["timed out"] * 5
    assert outcomes[0].stdout == b"0\n" and outcomes[190].stdout == b"190\n"
    assert list(own_temporary_folder.iterdir()) == []
    assert set(os.listdir("/proc/self/fd")) == before
    assert [pid for pid in tree_below(os.getpid()) if in_sandbox(pid)] == []


@pytest.mark.parametrize("processes", [0, 4])
def test_a_killed_parent_takes_everything_with_it(processes, own_temporary_folder):
    inner = (
        "import os, time\n"
        "open('held', 'w').write('x')\n"
        + (DAEMON.replace("time.sleep(1)", "pass") if processes else "")
        + "print(os.getpid())\n"
        "time.sleep(60)\n"
    )
    outer = f"""
    import tempfile
    tempfile.tempdir = {str(own_temporary_folder)!r}
    from gptoss_tune.grading.code.sandbox import Job, Limits, run
    run(Job({inner!r}, limits=Limits(timeout_s=60, processes={processes})))
    """
    root = Path(__file__).resolve().parents[3] / "src"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(outer)], env={**os.environ, "PYTHONPATH": str(root)}
    )
    until = time.monotonic() + 60
    while not list(own_temporary_folder.glob("*/held")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    below = [pid for pid in tree_below(process.pid) if alive(pid)]
    assert len(below) == 2 + (1 if processes else 0), below
    process.kill()
    process.wait()
    assert all(gone(pid) for pid in below)
    until = time.monotonic() + 20
    while list(own_temporary_folder.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(own_temporary_folder.iterdir()) == []


def test_a_killed_supervisor_takes_the_code_with_it(own_temporary_folder):
    import threading

    from gptoss_tune.errors import MachineError
    from gptoss_tune.grading.code.sandbox import run

    caught = []

    def work():
        try:
            run(Job("open('held', 'w').write('x')\nwhile True: pass", limits=Limits(timeout_s=60)))
        except MachineError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    until = time.monotonic() + 60
    while not list(own_temporary_folder.glob("*/held")) and time.monotonic() < until:
        time.sleep(0.05)
    below = [pid for pid in tree_below(os.getpid()) if in_sandbox(pid)]
    assert len(below) == 2, below
    os.kill(below[0], signal.SIGKILL)
    thread.join(30)
    assert "died before it reported" in caught[0]
    assert gone(below[1])
    assert list(own_temporary_folder.iterdir()) == []


def tree_below(pid):
    """Return the processes below one, parents first."""
    found, new = [], [pid]
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def in_sandbox(pid):
    with contextlib.suppress(OSError):
        return b"inside.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
