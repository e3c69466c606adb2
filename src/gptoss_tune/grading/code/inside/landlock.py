"""Which files the code may touch: the standard library to read, its own folder to write.

By Landlock, which an ordinary user may use and nobody can take back. A rule on a folder holds for
all below it, so the library's folder is granted entry by entry, ``site-packages`` left out; of that
folder itself only the names can be listed, which the import system does.

Not held back by it: whether a path exists, its size and dates (``stat``), and the targets of links.
"""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Sequence

from gptoss_tune.grading.code.inside import kernel

_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_FIRST = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_SCOPES = 0b11
"""Abstract unix sockets and signals stay among the processes under the same rules."""
SIGNALS_FROM = 6
"""Version that keeps signals apart."""
_FOREIGN = frozenset({"site-packages", "dist-packages", "sitecustomize.py", "usercustomize.py"})
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_READABLE = ("/usr/share/zoneinfo", "/etc/ld.so.cache")


def restrict(
    version: int, folder: str, libraries: Sequence[str], *, executable: str | None
) -> None:
    """Restrict this process to its folder and the interpreter's own files.

    Args:
        version: Of Landlock's interface, from 1.
        folder: Its own.
        libraries: Shared libraries that modules of the standard library load.
        executable: The interpreter, where starting it again is allowed.

    Raises:
        OSError: The kernel refused.
    """
    handled = _FIRST
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL)):
        handled |= right if version >= since else 0
    ruleset = kernel.landlock_ruleset(handled, _SCOPES if version >= SIGNALS_FROM else 0)
    try:
        no_devices = _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _MAKE_FIFO | _IOCTL | _EXECUTE
        kernel.landlock_allow(ruleset, folder, handled & ~no_devices)
        for path in _interpreter_files():
            _grant(ruleset, path, _READ | _LIST)
        for path in _library_folders():
            kernel.landlock_allow(ruleset, path, _LIST)
        run = _EXECUTE if executable else 0
        for path in libraries:
            _grant(ruleset, path, _READ | run)
        for path in _READABLE:
            _grant(ruleset, path, _READ | _LIST)
        for path in _DEVICES:
            _grant(ruleset, path, (_READ | _WRITE) & handled)
        if executable:
            _grant(ruleset, executable, _READ | _EXECUTE)
        kernel.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)


def _library_folders() -> list[str]:
    paths = sysconfig.get_paths()
    named = {paths["stdlib"], paths["platstdlib"]}
    named |= {os.path.join(path, "lib-dynload") for path in named}
    return sorted(path for path in named if os.path.isdir(path))


def _interpreter_files() -> list[str]:
    return [
        os.path.join(folder, name)
        for folder in _library_folders()
        for name in os.listdir(folder)
        if name not in _FOREIGN
    ]


def _grant(ruleset: int, path: str, rights: int) -> None:
    """Grant rights on what is there; a file takes none that is of folders alone."""
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return
    kernel.landlock_allow(ruleset, path, rights if is_folder else rights & _OF_FILES)
