"""What a command writes where the stream cannot show it: spelled out, never a traceback."""

import io
import json
import sys
from pathlib import Path

import pytest

from gptoss_tune.display import can_show, spell_out
from gptoss_tune.errors import run_command

TEXT = "⟦北京 😀 é\udcff⟧"


def stream(encoding, errors="strict"):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


def written(out):
    out.flush()
    return out.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "koi8-r", "utf-16"])
def test_any_text_can_be_written_to_any_stream(encoding):
    out = stream(encoding)
    spell_out(out)
    out.write(TEXT)
    text = written(out).decode(encoding)
    for char in TEXT:
        assert (char in text) == can_show(char, encoding), char
    assert "\\udcff" in text and ("\\u5317" in text) == (encoding not in ("utf-8", "utf-16"))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_json_stays_the_json_it_was(encoding):
    out = stream(encoding)
    spell_out(out)
    value = {"text": "⟦北京 😀 é\\⟧"}
    out.write(json.dumps(value, ensure_ascii=False))
    assert json.loads(written(out).decode(encoding)) == value


def test_what_the_user_chose_stays():
    out = stream("ascii", "replace")
    spell_out(out, io.StringIO())
    out.write("é")
    assert written(out) == b"?"


def test_every_command_prepares_its_streams(monkeypatch):
    out = stream("ascii", "surrogateescape")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    run_command(lambda: print("█ \udcff"), debug=False)
    assert written(out) == b"\\u2588 \\udcff\n"


@pytest.mark.parametrize("missing", ["fcntl", "resource"])
def test_a_system_that_is_not_supported_is_one_message(missing, capsys):
    def command():
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    with pytest.raises(SystemExit) as ended:
        run_command(command, debug=False)
    assert ended.value.code == 3 and "on Windows, run it in WSL 2" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: __import__("no_such_module_at_all"), debug=False)


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["a"] * 3000)])
def test_a_name_that_the_system_does_not_take_is_one_message(name, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(Path(name).read_text, debug=False)
    assert (
        ended.value.code == 3 and "a path that the system does not take" in capsys.readouterr().err
    )
