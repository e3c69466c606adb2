"""Ranks that were given different recipes, rows or bases: all end before a weight is read."""

import os

import pytest

from gptoss_tune.errors import run_command
from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.dump import by_name
from gptoss_tune.run import checkpoints
from gptoss_tune.train.distributed.agreement import compared, disagreements
from gptoss_tune.train.run import train

ROWS = {"data.train_rows": f"6 rows, sha256 {'a' * 64}", "data.eval_rows": None}


def test_an_entry_is_named_with_its_value_on_each_rank():
    ranks = [{"train.seed": 0}, {"train.seed": 5}, {"train.seed": 0}, {}]
    assert disagreements(ranks) == [
        "train.seed: 0 on ranks 0, 2, 5 on rank 1, (nothing of that name) on rank 3"
    ]
    assert disagreements(ranks[:1] * 3) == []


def test_the_settings_of_equal_rows_may_differ():
    """The file has another place on another machine; its rows are what counts."""
    ranks = [{**ROWS, "data.train": "a.jsonl"}, {**ROWS, "data.train": "/mnt/a.jsonl"}]
    assert disagreements(ranks) == []
    ranks[1]["data.train_rows"] = f"6 rows, sha256 {'b' * 64}"
    rows = "data.train_rows: 6 rows, sha256 aaaaaaaaaaaa on rank 0, 6 rows, sha256 bbbbbbbbbbbb"
    assert disagreements(ranks) == [
        "data.train: a.jsonl on rank 0, /mnt/a.jsonl on rank 1",
        f"{rows} on rank 1",
    ]


# Overrides of one rank -> whether the ranks still agree; the fingerprint stands for the others.
SETTINGS = {
    "train.learning_rate=1e-4": False,
    "train.save_steps=3": False,
    "train.logging_steps=2": False,
    "train.per_device_train_batch_size=1": False,
    "train.gradient_accumulation_steps=2": False,
    "guard.check_steps=0": False,
    "distributed.timeout_seconds=9": False,
    "lora.rank=8": False,
    "train.output_dir=elsewhere": True,
    "model.name_or_path=elsewhere": True,
    "tracking.wandb=offline": True,
}


@pytest.mark.parametrize(("override", "agrees"), SETTINGS.items())
def test_what_the_ranks_have_to_agree_on(recipe, override, agrees):
    settings = [by_name(recipe(*one).model_dump(mode="json")) for one in ((), (override,))]
    found = disagreements([compared(ROWS, one) for one in settings])
    assert [line.split(":")[0] for line in found] == ([] if agrees else [override.split("=")[0]])


def test_prompts_are_compared_by_what_they_hold(recipe, rows, tmp_path):
    def with_prompts(path):
        settings = recipe(f"evaluation.drift.references={path}", "evaluation.at_start=false")
        return compared(ROWS, by_name(settings.model_dump(mode="json")))

    moved, shorter = tmp_path / "moved.jsonl", tmp_path / "shorter.jsonl"
    text = rows.read_text()
    moved.write_text(text)
    shorter.write_text(text.splitlines()[0] + "\n")
    assert disagreements([with_prompts(rows), with_prompts(moved)]) == []
    (line,) = disagreements([with_prompts(rows), with_prompts(shorter)])
    assert line.startswith("evaluation.drift.references: ['sha256 ")
    folder = tmp_path / "folder"
    folder.mkdir()
    moved.rename(folder / "a.jsonl")
    before = with_prompts(folder)
    shorter.rename(folder / "b.jsonl")
    assert len(disagreements([before, with_prompts(folder)])) == 1


def started_with(recipe_file, overrides, log):
    """What each rank does, with overrides of its own."""
    rank = int(os.environ["RANK"])
    os.dup2(os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT), 2)
    run_command(lambda: train(load_recipe(recipe_file, overrides[rank])), debug=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rows", "rate", "steps", "intervals"])
def test_all_ranks_end_before_the_model_is_loaded(recipe_file, on_ranks, rows, tmp_path, case):
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text().replace("Paris", "Lyons"))
    override, named = {
        "rows": (f"data.train={other}", "data.train_rows: 6 rows"),
        "rate": ("train.learning_rate=1e-4", "train.learning_rate: 0.005 on rank 0, 0.0001 on"),
        "steps": ("train.max_steps=3", "steps: 4 on rank 0, 3 on rank 1"),
        "intervals": ("train.save_steps=3", "train.save_steps: None on rank 0, 3 on rank 1"),
    }[case]
    common = ["train.per_device_train_batch_size=1"]
    log = tmp_path / "log"
    body = started_with
    assert on_ranks(2, body, recipe_file, [common, [*common, override]], log) == [2, 2]
    for rank in range(2):
        said = log.with_name(f"log.{rank}").read_text()
        assert "were not started with the same; no weight was read" in said and named in said
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "run.json").exists()


def with_a_disk_that_hangs(recipe_file, overrides, log):
    """What each rank does: train, and the first checkpoint's write never ends."""
    import time

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    checkpoints.publish = lambda *args, **kwargs: time.sleep(3600)
    run_command(lambda: train(load_recipe(recipe_file, overrides)), debug=False)


@pytest.mark.slow
def test_a_disk_that_hangs_under_rank_0_ends_all(recipe_file, on_ranks, tmp_path):
    overrides = ["train.save_steps=1", "train.per_device_train_batch_size=1"]
    overrides.append("distributed.timeout_seconds=20")
    log = tmp_path / "log"
    assert on_ranks(2, with_a_disk_that_hangs, recipe_file, overrides, log) == [75, 75]
    said = log.read_text()
    assert "rank 0 has not moved for 20 s while the others wait" in said
    assert "Traceback" not in said
