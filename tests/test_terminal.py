"""What is said to a person while a command works, and after it."""

import io
import sys

import pytest

from gptoss_tune.terminal import loading, next_commands, speaks


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("kind", "drawn"), [(Terminal, True), (io.StringIO, False)])
def test_a_spinner_is_drawn_on_a_terminal_and_leaves_a_log_alone(monkeypatch, kind, drawn):
    monkeypatch.setattr(sys, "stderr", kind())
    monkeypatch.delenv("RANK", raising=False)
    before = sys.stdout
    with loading("torch"):
        assert sys.stdout is before
    assert ("loading torch" in sys.stderr.getvalue()) == drawn


def test_one_process_of_many_speaks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("RANK", "1")
    with loading("torch"):
        assert not speaks()
    assert sys.stderr.getvalue() == ""


def test_next_commands_can_be_copied():
    lines = next_commands([(["gptoss-tune", "chat", "runs/a b"], "talk"), (["ls"], "look")])
    assert lines == ["next:", "  gptoss-tune chat 'runs/a b'  # talk", f"  {'ls':<27}  # look"]
