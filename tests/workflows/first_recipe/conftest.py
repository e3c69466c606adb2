"""Small data files of every shape, and init as a script runs it."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.harmony.vocabulary import load_vocabulary


def chat(number, thought=None, length=3):
    answer = {"role": "assistant", "content": f"{number} " * length}
    if thought:
        answer["thinking"] = thought
    return {"messages": [{"role": "user", "content": f"Say {number}."}, answer]}


def called(number):
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    function = {"name": "add", "description": "Add.", "parameters": {"type": "object"}}
    return {
        "tools": [{"type": "function", "function": function}],
        "messages": [
            {"role": "user", "content": f"Add {number}."},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": str(number)},
            {"role": "assistant", "content": str(number)},
        ],
    }


def pair(number):
    return {"prompt": f"Say {number}.", "chosen": f"{number}", "rejected": "no"}


def labelled(number):
    return {"prompt": f"Say {number}.", "completion": f"{number}", "label": number % 4 != 0}


SHAPES = {
    "chat": chat,
    "thinking": lambda n: chat(n, thought="Say it."),
    "tools": called,
    "pairs": pair,
    "labels": labelled,
    "tagged": lambda n: {
        "prompt": f"Say {n}.",
        "completion": f"<think>It is {n}.</think>{n}",
    },
    "text": lambda n: {"text": f"A text of some words, number {n}. " * 20},
    "alpaca": lambda n: {"instruction": f"Say {n}.", "input": "", "output": str(n)},
    "odd": lambda n: {"user_input": f"Say {n}.", "model_output": str(n), "rationale": "So."},
}


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write rows of a shape into a file of the current directory and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(shape, count=40, name=None, **settings):
        rows = [SHAPES[shape](number, **settings) for number in range(count)]
        path = tmp_path / (name or f"{shape}.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path.name

    return write


@pytest.fixture
def init(tmp_path, monkeypatch):
    """Run init on a machine whose cards are given, without a terminal."""
    from gptoss_tune.workflows.first_recipe import cards

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, here=()):
        monkeypatch.setattr(cards, "detected_gpus", lambda: list(here))
        return CliRunner().invoke(app, ["init", *arguments])

    return run
