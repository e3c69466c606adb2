"""Processes and folders that are left over: found, ended and removed, whatever they are.

The supervisor is the reaper of everything that comes out of its children (PR_SET_CHILD_SUBREAPER):
a process that leaves its session and its parent becomes a child of the supervisor's, not of init.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat


def descendants() -> list[int]:
    """Return the ids of all processes below this one."""
    found, new = [], [os.getpid()]
    while new:
        new = [child for pid in new for child in _children(pid)]
        found += new
    return found


def tasks(pids: list[int]) -> int:
    """Return how many threads the processes have together."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            count += int(_stat_fields(pid)[17])
    return count


def user_tasks() -> int:
    """Return how many threads this user has on the machine, as RLIMIT_NPROC counts them."""
    mine = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    mine.append(int(name))
    return tasks(mine)


def kill_all() -> None:
    """Kill every process below this one and wait for its end.

    All are stopped before the first is killed, again until no new one is found: one that forks
    faster than it is killed would go on for ever.
    """
    stopped: set[int] = set()
    while new := set(descendants()) - stopped:
        for pid in new:
            _signal(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        _signal(pid, signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
        for pid in descendants():
            _signal(pid, signal.SIGKILL)


def remove_folder(path: str) -> None:
    """Remove a folder that code filled: of any depth, with folders that forbid to be read.

    Every folder below is first moved to the top, so that neither recursion nor the length of a path
    is a limit. Links are removed, never followed.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.chmod(path, 0o700, follow_symlinks=os.chmod not in os.supports_follow_symlinks)
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            waiting, number = _emptied(top, top, 0)
            while waiting:
                name = waiting.pop()
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    more, number = _emptied(inner, top, number)
                finally:
                    os.close(inner)
                waiting += more
                os.rmdir(name, dir_fd=top)
        finally:
            os.close(top)
        os.rmdir(path)


def folder_size(path: str, most: int) -> int:
    """Return the bytes of the files in a folder, counting at most so many entries.

    More entries than that count as endless: ``-1``.
    """
    size, seen, waiting = 0, 0, [path]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > most:
                return -1
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                size += found.st_blocks * 512
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(entry.path)
    return size


def _emptied(folder: int, top: int, number: int) -> tuple[list[str], int]:
    """Remove the files of a folder and move its folders to the top under names of our own."""
    moved: list[str] = []
    for name in os.listdir(folder):
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        os.chmod(name, 0o700, dir_fd=folder)  # nobody lives who could have made it a link by now
        number += 1
        new = f".{os.getpid()}-{number}-{os.urandom(8).hex()}"
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
        moved.append(new)
    return moved, number


def _children(pid: int) -> list[int]:
    try:
        tasks_of = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for task in tasks_of:
        try:
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
        except FileNotFoundError:
            if not os.path.exists("/proc/self/task/" + str(os.getpid()) + "/children"):
                return _children_by_parent(pid)  # a kernel without CONFIG_PROC_CHILDREN
        except (OSError, ValueError):
            continue
    return found


def _children_by_parent(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if int(_stat_fields(int(name))[1]) == parent:
                    found.append(int(name))
    return found


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name, which may hold anything."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
