"""Files of others are neither read nor changed, by attempts that work without their defence.

As in ``test_sandbox_escapes``: an attempt prints ESCAPED where it got what it wanted.
"""

import sysconfig
from pathlib import Path

import pytest

FILES = ("landlock",)
CALLS = ("seccomp",)
BOTH = ("landlock", "seccomp")

# Name -> the defences left out in the control, and the code. {outside} is a folder with a file
# `secret`, {pid} is this process.
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
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_fails_and_would_work_without_its_defence(name, fails_and_would_work):
    fails_and_would_work(*ATTEMPTS[name])


def test_packages_beside_the_standard_library_are_not_read(attempt, escaped):
    beside = Path(sysconfig.get_paths()["stdlib"]) / "site-packages"
    there = next((path for path in beside.glob("**/*.*") if path.is_file()), None)
    if there is None:
        pytest.skip("this Python has no package beside its standard library")
    code = f"open({str(there)!r}, 'rb').read(); print('ESCAPED')"
    assert not escaped(attempt(code))
    assert escaped(attempt(code, without=("landlock",)))


def test_nothing_outside_was_changed(attempt, things_at, tmp_path):
    outside = things_at(tmp_path)
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
