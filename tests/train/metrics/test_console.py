"""A console that nobody reads, or whose disk is full, costs its lines and not the run."""

import io
import os
import subprocess
import sys

import pytest

from gptoss_tune.train.metrics.console import LastingStream, run_console


@pytest.fixture
def stdout(monkeypatch):
    """Return a function that puts a file in the place of standard output."""

    def put(file):
        monkeypatch.setattr(sys, "stdout", file)
        return run_console(quiet=False)

    return put


def broken_pipe():
    """A pipe whose reader has left, as of ``train | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8")


def full_disk():
    return open("/dev/full", "w", encoding="utf-8")


def closed():
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize("broken", [broken_pipe, full_disk, closed])
def test_what_cannot_be_shown_is_said_once_and_ends_nothing(stdout, capsys, broken):
    file = broken()
    console = stdout(file)
    for number in range(3):
        console.print(f"step {number}")
    file.close()  # as at the end of the process: nothing is left in it that would fail again
    said = capsys.readouterr().err
    assert said.count("standard output takes no more lines") == 1
    assert "the run goes on" in said


def test_a_disk_that_has_room_again_gets_the_later_lines(tmp_path):
    class Full(io.StringIO):
        full = True

        def flush(self):
            if self.full:
                raise OSError(28, "No space left on device")

    file = Full()
    stream = LastingStream(file)
    stream.flush()
    file.full = False
    stream.write("later")
    stream.flush()
    assert file.getvalue() == "later"


def test_a_console_that_listens_gets_every_line(stdout, tmp_path):
    file = (tmp_path / "log").open("w+", encoding="utf-8")
    stdout(file).print(f"adapter in {'long/' * 60}")
    file.seek(0)
    assert file.read() == f"adapter in {'long/' * 60}\n"
    assert LastingStream(file).encoding == "utf-8" and not LastingStream(file).isatty()


def test_a_character_that_the_console_has_not_is_spelled_out(tmp_path):
    with (tmp_path / "log").open("w", encoding="ascii") as file:
        LastingStream(file).write("runs/été\n")
    assert (tmp_path / "log").read_text() == "runs/\\xe9t\\xe9\n"


@pytest.mark.slow
def test_a_run_whose_log_is_full_ends_as_any_other(recipe_file, tmp_path):
    command = [sys.executable, "-m", "gptoss_tune.train", str(recipe_file), "train.max_steps=1"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("standard output takes no more lines") == 1
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    assert (tmp_path / "run" / "adapter" / "manifest.json").exists()


def test_a_terminal_gets_lines_broken_between_words_and_a_pipe_whole_ones(monkeypatch):
    path = "runs/" + "x" * 50
    text = f"stopped: the run is complete in {path}, the same command continues from it"
    monkeypatch.setenv("COLUMNS", "40")
    for terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("TERM", "xterm")
        run_console(quiet=False).print(text, highlight=False)
        lines = stream.getvalue().splitlines()
        assert any(path in line for line in lines), lines
        assert " ".join(map(str.strip, lines)) == text
        assert (len(lines) > 1) == terminal
        assert all(len(line) <= 40 or line.strip().startswith(path) for line in lines if terminal)
