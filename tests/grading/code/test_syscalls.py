"""The seccomp filter of both machines, run by an interpreter of BPF as the kernel would run it."""

import errno
import re
from pathlib import Path

import pytest

from gptoss_tune.grading.code.inside import syscalls

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
REFUSED, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
TABLES = {
    **syscalls.ALLOWED,
    **syscalls.WRITING,
    **syscalls.CONDITIONAL,
    **syscalls.STARTING,
    **syscalls.REFUSED,
}
MACHINES = list(syscalls.AUDIT_ARCHITECTURES)
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def answer(machine, number, *arguments, architecture=None, **given):
    """Return what the filter says of a call."""
    settings = {"pid": 100, "writing": True, "processes": False, "signals": False, **given}
    code = syscalls.program(machine, **settings)
    assert len(syscalls.packed(code)) == 8 * len(code) <= 8 * 4096
    data = [number, architecture or syscalls.AUDIT_ARCHITECTURES[machine], 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        data += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    at, register = 0, 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:
            register = data[constant // 4]
        elif operation == 0x54:
            register &= constant
        elif operation == 0x15:
            at += if_true if register == constant else if_false
        else:
            assert operation == 0x06
            return constant


def call(machine, name, *arguments, **given):
    number = TABLES[name][MACHINES.index(machine)]
    return None if number is None else answer(machine, number, *arguments, **given)


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernel_s_headers(machine):
    if not HEADERS[machine].exists():
        pytest.skip("this machine has no kernel headers")
    text = HEADERS[machine].read_text()
    known = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    if machine == "aarch64":
        known["newfstatat"] = known["fstatat"]
    checked = 0
    for name, numbers in TABLES.items():
        number = numbers[MACHINES.index(machine)]
        if number is None:
            assert machine == "aarch64" and name not in known, name
        elif name in known:  # older headers lack newer calls
            assert number == known[name], name
            checked += 1
    assert checked > 150


@pytest.mark.parametrize("machine", MACHINES)
def test_no_number_stands_in_two_tables(machine):
    column = MACHINES.index(machine)
    numbers = [pair[column] for pair in TABLES.values() if pair[column] is not None]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_are_answered_as_the_tables_say(machine):
    for name in syscalls.ALLOWED:
        assert call(machine, name) in (ALLOWED, None), name
    for name in syscalls.REFUSED:
        assert call(machine, name, 1, 2, 3) in (REFUSED, None), name
    for name in syscalls.WRITING:
        assert call(machine, name) in (ALLOWED, None), name
        assert call(machine, name, writing=False) in (REFUSED, None), name
    for name in syscalls.STARTING:
        assert call(machine, name) in (REFUSED, None), name
        assert call(machine, name, processes=True) in (ALLOWED, None), name
    for number in (435, 437, 500, 10_000, 0x40000000, 0x40000029, 0xFFFFFFFF):
        assert answer(machine, number) == UNKNOWN


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_s_call_ends_the_process(machine):
    # int 0x80 on x86_64: number 1 is exit there and write here.
    for other in (0x40000003, 0x40000028, *syscalls.AUDIT_ARCHITECTURES.values()):
        if other != syscalls.AUDIT_ARCHITECTURES[machine]:
            assert answer(machine, 1, architecture=other) == KILLED


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "allowed", "given"),
    [
        ("openat", (3, 0, 0o0), True, {}),
        ("openat", (3, 0, 0o101), True, {}),
        ("openat", (3, 0, 0o1000), False, {}),
        ("openat", (3, 0, 0o1002), True, {}),
        ("openat", (3, 0, 0o2000000), True, {"writing": False}),
        ("openat", (3, 0, 0o1), False, {"writing": False}),
        ("openat", (3, 0, 0o2), False, {"writing": False}),
        ("openat", (3, 0, 0o100), False, {"writing": False}),
        ("openat", (3, 0, 0o1000), False, {"writing": False}),
        ("fcntl", (0, 3), True, {}),
        ("fcntl", (0, 8, 100), False, {}),
        ("fcntl", (0, 10, 9), False, {}),
        ("fcntl", (0, 15, 0), False, {}),
        ("fcntl", (0, 1024), False, {}),
        ("fcntl", (0, 1033, 0), False, {}),
        ("ioctl", (0, 0x5401), True, {}),
        ("ioctl", (0, 0x5412), False, {}),
        ("prctl", (15, 0), True, {}),
        ("prctl", (1, 0), False, {}),
        ("prctl", (36, 0), False, {}),
        ("prctl", (22, 0), False, {}),
        ("kill", (100, 9), True, {}),
        ("kill", (101, 9), False, {}),
        ("kill", (0, 9), False, {}),
        ("kill", (-1, 9), False, {}),
        ("kill", (-100, 9), False, {}),
        ("kill", (101, 9), True, {"signals": True}),
        ("tgkill", (100, 7, 9), True, {}),
        ("tgkill", (7, 7, 9), False, {}),
        ("prlimit64", (0, 7, 0, 1), True, {}),
        ("prlimit64", (0, 7, 1 << 40, 1), False, {}),
        ("prlimit64", (0, 7, 4096, 1), False, {}),
        ("clone", (0x3D0F00,), True, {}),
        ("clone", (17,), False, {}),
        ("clone", (0x4111,), False, {}),
        ("clone", (0x01200011,), True, {"processes": True}),
        ("clone", (0x10000011,), False, {"processes": True}),
        ("clone", (0x00020011,), False, {"processes": True}),
        ("clone", (0x3D0F00 | 0x40000000,), False, {}),
    ],
)
def test_arguments_decide(machine, name, arguments, allowed, given):
    found = call(machine, name, *arguments, **given)
    assert found == (ALLOWED if allowed else REFUSED)
