"""What is no regular file is not opened: nothing waits, and nothing is read from elsewhere."""

import os
import socket

import pytest

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.regular import open_regular
from gptoss_tune.files.strict_json import read_object


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def made(place, kind):
    path = place / "run.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("run/run.json")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    elif kind == "link":
        (place.parent / "secret").write_text("{}")
        path.symlink_to("../secret")
    elif kind == "circle":
        path.symlink_to("run.json")
    return path


REFUSED = {
    "pipe": "is a pipe, no regular file",
    "folder": "is a folder, no regular file",
    "device": "is a device, no regular file",
    "socket": "is a socket, no regular file",
    "sparse": r"has 4398046511104 bytes, at most \d+ are read",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_not_end_is_refused(place, kind):
    path = made(place, kind)
    for read in (lambda: open_regular(path, largest=1 << 20), lambda: read_object(path)):
        with pytest.raises(CheckpointError, match=rf"run\.json: {REFUSED[kind]}"):
            read()


@pytest.mark.parametrize("kind", ["link", "device", "circle"])
def test_a_link_out_of_the_folder_is_refused_when_the_folder_is_named(place, kind):
    path = made(place, kind)
    with pytest.raises(CheckpointError, match=r"run\.json: is a link to .* outside"):
        read_object(path, folder=place)
    if kind == "link":
        assert read_object(path) == {}, "a user's own link is followed where no folder is named"


def test_a_link_inside_the_folder_and_one_to_the_folder_are_followed(place):
    (place / "real.json").write_text('{"a": 1}')
    (place / "run.json").symlink_to("real.json")
    (place.parent / "alias").symlink_to(place)
    alias = place.parent / "alias"
    assert read_object(alias / "run.json", folder=alias) == {"a": 1}


def test_what_is_not_there_is_the_callers_to_tell(place):
    with pytest.raises(FileNotFoundError):
        read_object(place / "none.json", folder=place)
