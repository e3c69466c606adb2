"""Calls of the Linux kernel that Python has no name for, by ctypes.

Each raises ``OSError`` with the kernel's number; a kernel that lacks one answers ``ENOSYS``.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER = 2
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _PATH_BENEATH = 1, 1


class _Filter(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class _Capabilities(ctypes.Structure):
    """``struct __user_cap_header_struct``."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Ruleset(ctypes.Structure):
    """``struct landlock_ruleset_attr``."""

    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    """``struct landlock_path_beneath_attr``."""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int, more: int = 0) -> None:
    """Set a property of this process."""
    call = _library().prctl
    long = ctypes.c_ulong
    _checked(call(option, long(value), long(more), long(0), long(0)), f"prctl {option}")


def filter_calls(instructions: bytes) -> None:
    """Install a seccomp filter, an array of ``struct sock_filter``, for good."""
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    given = _Filter(len(instructions) // 8, ctypes.cast(buffer, ctypes.c_char_p))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(given))


def drop_capabilities(machine: str) -> None:
    """Give up every capability; a process of root keeps its files and no power beyond."""
    header, nothing = _Capabilities(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    call = _library().syscall
    _checked(call(_CAPSET[machine], ctypes.byref(header), ctypes.byref(nothing)), "capset")


def landlock_version() -> int:
    """Return the version of Landlock's interface; 0 where the kernel has none, or has it off."""
    return max(0, _library().syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION))


def landlock_ruleset(files: int, scoped: int) -> int:
    """Return a descriptor of rules that refuse the given rights wherever no rule grants them."""
    rules = _Ruleset(files, 0, scoped)
    size = ctypes.sizeof(rules) if scoped else 8  # older kernels know the first field alone
    call = _library().syscall
    made = call(_LANDLOCK_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    return _checked(made, "landlock_create_ruleset")


def landlock_allow(ruleset: int, path: str, rights: int) -> None:
    """Grant rights on a file, or on a folder and all in it."""
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _Beneath(rights, parent)
        call = _library().syscall
        done = call(_LANDLOCK_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        _checked(done, f"landlock_add_rule {path}")
    finally:
        os.close(parent)


def landlock_restrict(ruleset: int) -> None:
    """Put this process, and whatever comes out of it, under the rules for good."""
    _checked(_library().syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
