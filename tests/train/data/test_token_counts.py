"""Tokens by dataset and channel: counted from the rows themselves, over ranks and resumes."""

import json
import math

import pytest
import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.harmony.conversation import CHANNEL_NAMES
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.data.token_counts import count_row
from gptoss_tune.train.metrics.step_metrics import StepMetrics
from gptoss_tune.train.observers.observer import StepObserver
from gptoss_tune.train.observers.observers import StepObservers
from gptoss_tune.train.run import train


@pytest.fixture
def two_datasets(recipe_file, rows, tmp_path):
    """Return a function from overrides to a recipe of two datasets of chats and one of texts.

    The second is used twice an epoch.
    """
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("one", lines[:4]), ("two", lines[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    lines = [json.dumps({"text": f"A story of {n} words. " * 9}) + "\n" for n in range(3)]
    (tmp_path / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    text = recipe_file.read_text().replace(
        f"train: {rows}",
        f"train: [{tmp_path / 'one.jsonl'}, {{path: {tmp_path / 'two.jsonl'}, weight: 2}}, "
        f"{tmp_path / 'texts.jsonl'}]",
    )
    recipe_file.write_text(text, encoding="utf-8")
    return lambda *overrides: load_recipe(recipe_file, overrides)


def truth(recipe, base):
    """Return tokens by dataset of one epoch, from each dataset rendered on its own."""
    found = []
    for source in recipe.data.train:
        one = {"train": [source.path], "packing": False}
        rows = load_dataset(
            recipe.data.model_validate({**recipe.data.model_dump(), **one}),
            split="train",
            vocabulary=load_vocabulary(base),
        )
        counts = dict.fromkeys(CHANNEL_NAMES, 0)
        for row in rows:
            for weight, channel in zip(row["loss_weights"], row["channels"], strict=True):
                counts[CHANNEL_NAMES[channel]] += weight != 0
        read = sum(rows["length"][:])
        times = int(source.weight)
        found.append((times * read, {name: times * n for name, n in counts.items()}))
    return found


def record(run):
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["tokens"]


def logged(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def check(account, expected):
    """Compare an account; a dataset without raw text has no count of it."""
    for _, counts in expected:
        if not counts["text"]:
            del counts["text"]
    assert [(one["read"], one["trained_by_channel"]) for one in account["by_dataset"]] == expected
    assert account["read"] == sum(read for read, _ in expected)
    by_channel = {
        name: sum(counts.get(name, 0) for _, counts in expected) for name in CHANNEL_NAMES
    }
    assert account["trained_by_channel"] == by_channel
    assert account["trained"] == sum(by_channel.values()) > 0


@pytest.mark.parametrize("packing", ["false", "true"], ids=["rows", "packed"])
def test_an_epoch_counts_every_dataset_as_often_as_its_weight(
    two_datasets, base, tmp_path, packing
):
    recipe = two_datasets(
        "train.max_steps=null", "train.num_train_epochs=1", f"data.packing={packing}"
    )
    train(recipe)
    expected = truth(recipe, base)
    check(record(tmp_path / "run"), expected)
    last = logged(tmp_path / "run")[-1]
    assert [last[f"trained_tokens_dataset_{n}"] for n in (0, 1, 2)] == [
        sum(counts.values()) for _, counts in expected
    ]
    assert last["trained_tokens_final"] == sum(counts["final"] for _, counts in expected)
    assert last["trained_tokens_text"] == expected[2][1]["text"] > 0
    assert any(row.get("loss_text", 0) > 0 for row in logged(tmp_path / "run"))
    assert last["tokens"] == sum(read for read, _ in expected)


@pytest.mark.slow
def test_two_processes_count_together_and_a_resume_goes_on(
    two_datasets, recipe_file, forked_python, tmp_path
):
    two_datasets()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(load_recipe(recipe_file, [f"train.output_dir={whole}", "train.max_steps=3"]))
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\n"
        "from gptoss_tune.train import sft\n"
        "from gptoss_tune.recipe import load_recipe\n"
        "from gptoss_tune.train.run import train\n"
        "original = sft.WeightedSftTrainer.log\n"
        "def log(self, logs, start_time=None):\n"
        "    original(self, logs, start_time)\n"
        "    self.accelerator.wait_for_everyone()\n"
        "    if self.state.global_step == 2 and 'dies' in sys.argv:\n"
        "        os._exit(9)\n"
        "sft.WeightedSftTrainer.log = log\n"
        "train(load_recipe(sys.argv[1], [a for a in sys.argv[2:] if a != 'dies']))\n"
    )
    options = [f"train.output_dir={parts}", "train.max_steps=3", "train.save_steps=1"]
    options += ["train.per_device_train_batch_size=1"]
    for dies in (["dies"], []):
        done = forked_python([script, recipe_file, *options, *dies], ranks=2)
        assert (done.returncode == 0) is not bool(dies), done.stderr
    assert record(parts) == record(whole)
    names = ("tokens", "trained_tokens", "trained_tokens_total")
    assert [[row[n] for n in names] for row in logged(parts)] == [
        [row[n] for n in names] for row in logged(whole)
    ]


def test_a_step_that_is_left_out_was_read_and_not_trained(recipe, tmp_path, monkeypatch):
    original = StepMetrics.on_gradients

    def spoiled(self, step):
        if step.number == 2:
            next(p for p in step.model.parameters() if p.grad is not None).grad.fill_(math.nan)
        original(self, step)

    monkeypatch.setattr(StepMetrics, "on_gradients", spoiled)
    train(recipe())
    rows = logged(tmp_path / "run")
    assert rows[1]["trained_tokens_total"] == rows[0]["trained_tokens_total"] > 0
    assert rows[1]["tokens"] > rows[0]["tokens"]
    assert record(tmp_path / "run")["trained"] == rows[-1]["trained_tokens_total"]


def test_documents_of_a_packed_row_count_for_their_own_dataset():
    row = {
        "input_ids": [1] * 7,
        "loss_weights": [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 1.0],
        "channels": [0, 0, 1, 0, 3, 3, 2],
        "position_ids": [0, 1, 2, 0, 1, 0, 1],
        "sources": [2, 0, 2],
    }
    assert count_row(row).tolist() == [[0, 0, 0, 1, 0, 2], [0] * 6, [0, 1, 1, 1, 0, 5]]


def test_a_checkpoint_without_a_count_or_of_other_datasets_is_refused(recipe, tmp_path):
    metrics = StepMetrics(tmp_path, recipe().data.train, torch.device("cpu"))
    observers = StepObservers([metrics], tmp_path)
    with pytest.raises(CheckpointError, match=r"tokens\.json: no readable count of tokens"):
        observers.resume(first_rank=True)
    (tmp_path / "tokens.json").write_text(json.dumps({"tokens": [[1] * 5] * 2}))
    with pytest.raises(
        CheckpointError, match=r"tokens\.json: counts 2 datasets, the recipe names 1"
    ):
        observers.resume(first_rank=True)
    (tmp_path / "tokens.json").write_text(json.dumps({"tokens": [[1] * 5]}))
    observers.resume(first_rank=True)
    assert metrics.account.total().tolist() == [[1, 1, 1, 1, 0, 1]], "of a version without text"


@pytest.mark.parametrize("file", ["tokens.json", "../x.json", "state.txt"])
def test_an_observer_s_file_is_its_own(recipe, tmp_path, file):
    metrics = StepMetrics(tmp_path, recipe().data.train, torch.device("cpu"))
    other = StepObserver()
    other.file = file
    with pytest.raises(ValueError, match="expected a name of its own"):
        StepObservers([metrics, other])
