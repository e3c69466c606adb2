"""macOS and Windows emulated on Linux: what Python lacks there is taken away.

Imported by the ``sitecustomize`` of ``mac/`` and ``windows/``, so that every Python of a command is
emulated, those that it starts included. ``sys.platform`` and ``os.name`` stay: libraries choose
their own files by them, and ask for what Linux has. So what is taken away is taken
from our own modules, apart from ``fcntl``, ``resource`` and ``os.sched_getaffinity``, which nobody
finds, except filelock and psutil: they bring what they call on each system. Opening a folder, renaming an open file and names that Windows does not take are refused to
them too, through the standard library as well.
"""

import importlib.abc
import os
import re
import shutil
import signal
import sys
import threading
import types
import warnings

# Made for Linux here: they ask for `fcntl` and `resource`, and their Windows builds for neither.
import filelock  # noqa: F401
import psutil  # noqa: F401

_NOT_ON_MAC = (
    *("copy_file_range", "eventfd", "getresuid", "memfd_create", "posix_fadvise", "preadv2"),
    *("process_cpu_count", "sched_setaffinity", "splice", "setns", "unshare"),
    *("O_DIRECT", "O_TMPFILE", "O_PATH", "O_NOATIME", "O_LARGEFILE", "CLONE_NEWNS"),
)
_NOT_ON_WINDOWS = (
    *_NOT_ON_MAC,
    *("O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC", "O_SYNC", "O_DSYNC", "O_ASYNC"),
    *("fork", "forkpty", "register_at_fork", "killpg", "setsid", "getsid", "getpgid", "getpgrp"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setgid", "getresgid"),
    *("pread", "pwrite", "preadv", "pwritev", "readv", "writev", "sendfile", "posix_fallocate"),
    *("statvfs", "fstatvfs", "sysconf", "pathconf", "uname", "getloadavg", "mkfifo", "mknod"),
    *("chown", "lchown", "fchown", "fchmod", "fchdir", "fdatasync", "sync", "lockf", "nice"),
    *(
        "sched_yield",
        "sched_getscheduler",
        "wait",
        "wait3",
        "wait4",
        "waitid",
        "ttyname",
        "openpty",
    ),
    *("getxattr", "setxattr", "listxattr", "removexattr", "getpriority", "setpriority", "chroot"),
)
_SIGNALS_OF_WINDOWS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
_KEPT_SIGNALS = {*_SIGNALS_OF_WINDOWS, "SIG_DFL", "SIG_IGN"}
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?$", re.IGNORECASE)
_LIBRARIES = f"{os.sep}site-packages{os.sep}"
_asking = threading.local()


class _Missing(importlib.abc.MetaPathFinder):
    """Finds nothing under some names."""

    def __init__(self, everywhere, for_us):
        self._everywhere, self._for_us = frozenset(everywhere), frozenset(for_us)

    def find_spec(self, name, path=None, target=None):
        if name in self._everywhere or (name in self._for_us and _is_named_by_us()):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def _is_ours(file):
    return "gptoss_tune" in file or "gptoss_kernels" in file


def _is_named_by_us():
    """Return whether a name is looked up, or a module imported, in a file of ours."""
    frame = sys._getframe(2)
    while frame is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and _is_ours(frame.f_code.co_filename)


def _is_asked_by_us():
    """Return whether the nearest code outside the standard library is ours."""
    frame = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if _is_ours(file):
            return True
        if _LIBRARIES in file:
            return False
        frame = frame.f_back
    return False


def _lack(everywhere, for_us=()):
    for name in (*everywhere, *for_us):
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Missing(everywhere, for_us))


def _take_from_us(module, names):
    """Delete names of a module; who is not ours still finds them."""
    kept = {name: module.__dict__.pop(name) for name in names if name in module.__dict__}

    class Lacking(types.ModuleType):
        def __getattr__(self, name):
            if name in kept and not _is_named_by_us():
                return kept[name]
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    module.__class__ = Lacking


def mac():
    """Take away what macOS has not; its Python starts processes by spawning them."""
    import multiprocessing

    multiprocessing.set_start_method("spawn")
    del os.sched_getaffinity
    _take_from_us(os, _NOT_ON_MAC)
    _take_from_us(signal, ("SIGSTKFLT", "SIGPWR", "SIGRTMIN", "SIGRTMAX", "sigtimedwait"))


def windows():
    """Take away what Windows has not, and refuse what its files do not allow."""
    import multiprocessing

    multiprocessing.set_start_method("spawn")
    shutil._use_fd_functions = False  # else it opens the folders that it removes
    del os.sched_getaffinity
    _lack(("fcntl", "resource"), ("termios", "tty", "pty", "pwd", "grp", "readline", "syslog"))
    _take_from_us(os, _NOT_ON_WINDOWS)
    signals = {name for name in dir(signal) if name.startswith("SIG") and name.isupper()}
    others = {"pause", "alarm", "setitimer", "sigwait", "siginterrupt"}
    _take_from_us(signal, (signals | others) - _KEPT_SIGNALS)
    _refuse_unflushable()
    warnings.filterwarnings("ignore", category=EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"gptoss_(tune|kernels)\b")
    sys.addaudithook(_refuse)


def _refuse_unflushable():
    real = os.fsync

    def fsync(file):
        number = file if isinstance(file, int) else file.fileno()
        with open(f"/proc/self/fdinfo/{number}", encoding="ascii") as facts:
            flags = int(re.search(r"flags:\s+(\d+)", facts.read())[1], 8)
        if flags & os.O_ACCMODE == os.O_RDONLY and _is_asked_by_us():
            raise OSError(9, "Bad file descriptor")
        real(file)

    os.fsync = fsync


def _refuse(event, arguments):
    """Raise what Windows raises, for our own modules."""
    checks = {
        "open": _opening,
        "os.rename": lambda source, target, *_: (_moving(source), _moving(target)),
        "os.remove": lambda path, *_: _moving(path),
        "os.mkdir": lambda path, *_: _naming(path),
        "os.symlink": _linking,
    }
    if event not in checks or getattr(_asking, "now", False):
        return
    _asking.now = True
    try:
        if _is_asked_by_us():
            checks[event](*arguments)
    finally:
        _asking.now = False


def _opening(path, mode, flags):
    if not isinstance(path, str | bytes | os.PathLike):
        return
    if flags & os.O_CREAT:
        _naming(path)
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fsdecode(path))


def _naming(path):
    name = os.path.basename(os.fsdecode(path))
    if re.search(r'[<>:"|?*\x00-\x1f\\]|[ .]$', name) or _RESERVED.match(name):
        raise OSError(22, "Invalid argument", os.fsdecode(path))


def _linking(source, target, *_):
    raise OSError(1, "A required privilege is not held by the client", os.fsdecode(target))


def _moving(path):
    """Refuse to rename or remove what this process has open, or mapped, and a folder around it."""
    place = os.path.realpath(os.fsdecode(path))
    for number in os.listdir("/proc/self/fd"):
        try:
            held = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the one of the listing itself
        if held == place or held.startswith(place + os.sep):
            raise PermissionError(13, f"it is open: {held}", place)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            held = line.rstrip("\n").partition("/")[2]
            if held and ("/" + held == place or ("/" + held).startswith(place + os.sep)):
                raise PermissionError(13, f"it is mapped: /{held}", place)
