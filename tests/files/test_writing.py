"""Files written whole: beside their place, through no link, in JSON that any reader takes."""

import errno
import json
import math
import os

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.files import atomic
from gptoss_tune.files.atomic import create, disk_errors, to_json, write_text
from gptoss_tune.files.strict_json import finite, parse, to_text


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious"
    file.write_text("years of work")
    yield file
    assert file.read_text() == "years of work"


@pytest.mark.parametrize("kind", ["link", "hard link", "dangling link", "pipe", "file"])
def test_what_lies_under_a_temporary_name_is_not_written_through(tmp_path, precious, kind):
    part, elsewhere = tmp_path / "page.html.part", tmp_path / "elsewhere"
    if kind == "link":
        part.symlink_to(precious)
    elif kind == "hard link":
        os.link(precious, part)
    elif kind == "dangling link":
        part.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(part)
    else:
        part.write_text("left by a kill")
    write_text(tmp_path / "page.html", "page")
    assert (tmp_path / "page.html").read_text() == "page"
    assert not elsewhere.exists() and not os.path.lexists(part)


def test_a_link_that_comes_between_is_refused(tmp_path, precious, monkeypatch):
    part = tmp_path / "x.part"
    real = os.open

    def just_before(path, *arguments, **named):
        part.symlink_to(precious)  # as a neighbour's loop does
        return real(path, *arguments, **named)

    monkeypatch.setattr(atomic.os, "open", just_before)
    with pytest.raises(FileExistsError):
        create(part)


def test_a_folder_under_a_name_is_one_message(tmp_path):
    (tmp_path / "a.part").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        with pytest.raises(MachineError, match=rf"/{name}: cannot be written: a folder has its"):
            write_text(tmp_path / name, "x")
    with pytest.raises(MachineError, match=r"c: cannot be written: its folder is not there"):
        write_text(tmp_path / "none" / "of" / "c", "x")


def test_a_name_that_is_not_unicode_can_be_written_about(tmp_path):
    write_text(tmp_path / "page", os.fsdecode(b"run-\xff"))
    assert (tmp_path / "page").read_bytes() == b"run-\\udcff"


def test_a_full_inode_table_is_not_called_free_space(tmp_path, monkeypatch):
    def raised():
        with pytest.raises(MachineError) as error, disk_errors(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return str(error.value)

    assert "the disk is full; free space" in raised()
    about = list(os.statvfs(tmp_path))
    about[7] = 0  # f_favail
    monkeypatch.setattr(atomic.os, "statvfs", lambda _: os.statvfs_result(about))
    assert "no inodes left for another file" in raised() and "remove files" in raised()


NOT_FINITE = {"a": [1.5, math.nan, {"b": math.inf}], "c": (-math.inf, 2), "d": {"e.f": math.nan}}


def test_numbers_that_json_has_not_become_null_and_are_named():
    found = {}
    assert finite(NOT_FINITE, found) == {
        "a": [1.5, None, {"b": None}],
        "c": [None, 2],
        "d": {"e.f": None},
    }
    assert found == {"a[1]": "nan", "a[2].b": "inf", "c[0]": "-inf", "d.e.f": "nan"}
    for text in (to_text(NOT_FINITE), to_json(NOT_FINITE)):
        assert parse(text.encode())["c"] == [None, 2]
    assert json.loads(to_text({"é": 1})) == {"é": 1} and "é" in to_text("é", ascii_only=False)
