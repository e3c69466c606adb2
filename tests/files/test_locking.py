"""Locks on files: held by one, given back by its end, none where the disk has none."""

import errno
import os

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.files import locking
from gptoss_tune.files.locking import FileLock, LockHeld


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(descriptor, *, blocking):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locking, "lock_descriptor", refuse)


def test_a_second_lock_is_told_who_holds_the_first(tmp_path):
    path = tmp_path / "lock"
    with FileLock(path) as first:
        assert first.take() is None
        for _ in range(2):  # being refused gives nothing away
            with FileLock(path) as second, pytest.raises(LockHeld, match=f"process {os.getpid()}"):
                second.take()
        assert path.exists()
    assert not path.exists()
    with FileLock(path) as third:
        assert third.take() is None


def test_a_file_that_a_killed_process_left_is_no_lock(tmp_path):
    path = tmp_path / "lock"
    path.write_text("process 1 on a machine with a long name, " * 9)
    with FileLock(path) as lock:
        assert lock.take() is None
        assert path.read_text().split()[:2] == ["process", str(os.getpid())]


def test_a_holder_that_says_nothing_is_another_process(tmp_path):
    path = tmp_path / "lock"
    with FileLock(path) as lock:
        lock.take()
        path.write_bytes(b"")
        with pytest.raises(LockHeld, match=r"^another process$"):
            FileLock(path).take()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked workers")
def test_a_forked_worker_leaves_the_lock_to_its_parent(tmp_path):
    path = tmp_path / "lock"
    with FileLock(path) as lock:
        lock.take()
        ended, worker = os.pipe()
        child = os.fork()
        if child == 0:
            lock.release()  # as the end of an inherited context would
            os.read(ended, 1)
            os._exit(0)
        with pytest.raises(LockHeld):
            FileLock(path).take()
        lock.release()
        with FileLock(path) as other:  # though the worker lives
            assert other.take() is None
        os.write(worker, b"x")
        os.waitpid(child, 0)


def test_a_system_that_removes_no_open_file_loses_it_at_the_end(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    remove = type(path).unlink
    tries = []

    def unlink(file, missing_ok=False):
        tries.append(file)
        if len(tries) == 1:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        remove(file, missing_ok=missing_ok)

    monkeypatch.setattr(type(path), "unlink", unlink)
    with FileLock(path) as lock:
        lock.take()
    assert not path.exists()


def test_a_disk_without_locks_says_so(no_locks, tmp_path):
    with FileLock(tmp_path / "lock") as lock:
        assert lock.take() == "Function not implemented"


def test_a_run_and_the_cache_go_on_without_locks(no_locks, tmp_path, monkeypatch):
    from gptoss_tune.harmony.dataset import cache
    from gptoss_tune.run.lock import FolderLock

    with FolderLock() as lock:
        (told,) = lock.take(tmp_path)
    assert "cannot be locked (Function not implemented): start no second run" in told
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    building = cache.cache_folder() / f"building-{'a' * 32}-{cache._host()}-x"
    building.mkdir(parents=True)
    key = cache.cache_key(["without locks"])
    place = cache.built_once(key, lambda folder: (folder / "rows").write_text("x"))
    assert (place / "rows").read_text() == "x"
    assert building.exists()  # nobody knows whether its builder lives


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "lock"
    {
        "a link": lambda: path.symlink_to(tmp_path / "elsewhere"),
        "a pipe": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
    }[kind]()
    with pytest.raises(MachineError, match=f"is {kind}; a lock's file is kept there"):
        FileLock(path).take()
    assert not (tmp_path / "elsewhere").exists()
