"""docs/bases.md is what happens: every way in it, every command, and what is said."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bases.md"
CONVERTED = ("read", "`convert`", "written")


def rows():
    """Each way's cells by the command at the head of their column."""
    found, commands = {}, []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| a base that is |"):
            commands = re.findall(r"`([\w-]+)`", line)
        elif line.startswith("| ") and commands:
            way, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found[way] = dict(zip(commands, cells, strict=True))
    return found


def test_every_way_has_a_row_and_every_refusal_its_words(ways):
    found, text = rows(), PAGE.read_text(encoding="utf-8")
    every = ways.other.EVERY
    assert list(found) == [way for group in every.values() for way in group]
    for way, cells in found.items():
        assert len(cells) == 10 and set(cells.values()) <= {*CONVERTED, "refused", "not needed"}
        refused = {"refused", "`convert`"} & set(cells.values())
        assert bool(refused) == (f"- {way}: " in text), way
    for way in every["Read by everything"]:
        assert set(found[way].values()) <= {"read", "written", "not needed"}, way
    for way in (*ways.TRANSLATED, *ways.OPENAI):
        wanted = "refused" if "alone" in way else "written"  # until its tokenizer is there
        assert found[way]["convert"] == wanted, way
        assert {v for c, v in found[way].items() if c != "convert"} <= {*CONVERTED}, way
    for way in every["Refused"]:
        assert found[way]["train"] == found[way]["convert"] == "refused", way


@pytest.mark.parametrize(
    "way",
    [
        "`language_model.` before each name",
        "three linear layers an expert",
        "`original/` of a release",
    ],
)
def test_the_advice_leads_to_success(ways, bases, tmp_path, way):
    source = {**ways.TRANSLATED, **ways.OPENAI}[way](bases, tmp_path / "the base")
    serve = ["--target", "vllm", "--out", str(tmp_path / "served")]
    refused = CliRunner().invoke(app, ["serve-config", str(source), *serve])
    advice = re.search(r"`gptoss-tune (convert .*) --out DIR`", str(refused.exception))
    assert advice is not None, refused.exception
    out = str(tmp_path / "converted")
    done = CliRunner().invoke(app, [*shlex.split(advice[1]), "--out", out])
    assert done.exit_code == 0, done.output
    served = CliRunner().invoke(app, ["serve-config", out, *serve])
    assert served.exit_code == 0, served.output


@pytest.mark.slow
def test_the_page_is_what_happens():
    command = [sys.executable, Path(__file__).parent / "table.py", "--check", PAGE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
