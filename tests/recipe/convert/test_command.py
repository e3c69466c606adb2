"""gptoss-tune convert as it is typed."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.recipe import load_recipe


@pytest.fixture
def run(folder):
    return lambda *arguments: CliRunner().invoke(app, ["convert", *arguments])


def test_printed_or_written(run, folder):
    printed = run("axolotl-lora.yml")
    assert printed.exit_code == 0
    (folder / "printed.yaml").write_text(printed.stdout)  # the rest goes to stderr
    assert "no counterpart" in printed.stderr
    written = run("axolotl-lora.yml", "--out", "made/mine.yaml")
    assert written.exit_code == 0
    assert load_recipe("made/mine.yaml") == load_recipe("printed.yaml")
    said = written.stdout
    assert "36 lora_dropout: 0.05 -> no dropout" in said
    assert "gptoss-tune preview made/mine.yaml" in said.splitlines()[-1]
    again = run("axolotl-lora.yml", "--out", "made/mine.yaml")
    assert getattr(again.exception, "exit_code", None) == 2
    assert run("axolotl-lora.yml", "--out", "made/mine.yaml", "--force").exit_code == 0


def test_json(run):
    made = json.loads(run("trl-dpo.yml", "--json").stdout)
    assert made["tool"] == "TRL"
    assert {key["fate"] for key in made["keys"]} == {"converted", "none"}
    assert made["recipe"].startswith("# Converted from TRL's trl-dpo.yml.")


def test_another_base(run, folder):
    text = (folder / "trl-dpo.yml").read_text().replace("openai/gpt-oss-20b", "some/llama")
    (folder / "llama.yml").write_text(text)
    refused = run("llama.yml")
    assert "--model 20b" in str(refused.exception)
    assert run("llama.yml", "--model", "20b").exit_code == 0
