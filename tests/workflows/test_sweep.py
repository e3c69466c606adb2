"""A sweep: which lists are one, its runs and folders, what is skipped, and how it ends."""

import json
import subprocess
import sys

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.workflows.sweep import (
    Sweep,
    folder_of,
    is_finished,
    refuse_many,
    sweep_runs,
    with_folder,
)


def test_several_lists_are_every_combination_in_readable_folders():
    runs = sweep_runs(["train.learning_rate=[1e-4, 2e-4]", "train.seed=1", "lora.rank=[4,8]"])
    assert [str(folder_of("runs/a", run)) for run in runs] == [
        "runs/a-learning_rate-1e-4-rank-4",
        "runs/a-learning_rate-1e-4-rank-8",
        "runs/a-learning_rate-2e-4-rank-4",
        "runs/a-learning_rate-2e-4-rank-8",
    ]
    assert runs[2].overrides == ("train.learning_rate=2e-4", "train.seed=1", "lora.rank=4")


@pytest.mark.parametrize(
    "override",
    [
        "data.train=[a.jsonl, b.jsonl]",
        "lora.target_modules=[q_proj, k_proj]",
        "lora.layers=[1, 2]",
        "evaluation.reasoning_effort=[low, high]",
        "evaluation.prompts=[a.jsonl, b.jsonl]",
        "train.learning_rate=1e-4",
        "train.nothing=[1, 2]",
    ],
)
def test_settings_that_take_lists_keep_their_meaning(override):
    assert sweep_runs([override]) == []


@pytest.mark.parametrize("override", ["method.beta=[0.1,0.5]", "train.optim=[adamw, adamw_8bit]"])
def test_any_setting_of_one_value_can_be_swept(override):
    assert len(sweep_runs([override])) == 2


def test_a_list_of_one_and_a_value_twice_are_refused_and_a_dozen_is_the_limit():
    for text in ("[1e-4]", "[1e-4, 1e-4]", "[]"):
        with pytest.raises(RecipeError, match="expected one value, or a sweep over two or more"):
            sweep_runs([f"train.learning_rate={text}"])
    runs = sweep_runs(["train.seed=[1,2,3,4]", "lora.rank=[1,2,3,4]"])
    with pytest.raises(RecipeError, match=r"16 runs, 12 at most .*--most-runs 16"):
        refuse_many(runs, 12)
    refuse_many(runs, 16)


def test_the_folder_takes_the_place_of_the_overridden_one():
    (run, _) = sweep_runs(["train.output_dir=runs/b", "train.seed=[1,2]"])
    words = with_folder(run, folder_of("runs/b", run))
    assert words == ["train.seed=1", "train.output_dir=runs/b-seed-1"]


def test_a_finished_run_is_skipped_unless_it_is_of_other_settings(tmp_path):
    settings = {"train": {"seed": 1, "output_dir": "x"}, "tracking": {"project": None}}
    assert not is_finished(tmp_path, settings)
    record = {"run_id": "x", "status": "finished", "recipe": settings}
    (tmp_path / "run.json").write_text(json.dumps(record))
    moved = {"train": {"seed": 1, "output_dir": "y"}, "tracking": {"project": "p"}}
    assert is_finished(tmp_path, moved)
    with pytest.raises(RecipeError, match=r"other settings \(train\.seed: 1 there, 2 here\)"):
        is_finished(tmp_path, {"train": {"seed": 2}})


def test_a_run_that_fails_is_passed_over_and_a_stop_ends_the_sweep(tmp_path):
    def commands(*codes):
        return [(tmp_path / f"{n}", ["sh", "-c", f"exit {code}"]) for n, code in enumerate(codes)]

    said = []
    sweep = Sweep()
    sweep.run(commands(0, 2, 0), said.append)
    assert list(sweep.codes.values()) == [0, 2, 0]
    assert sweep.exit_code == 2 and not sweep.stopped
    assert said[1] == f"run 2 of 3: {tmp_path / '1'}"
    sweep = Sweep()
    sweep.run(commands(2, 75, 0), said.append)
    assert list(sweep.codes.values()) == [2, 75] and sweep.stopped
    assert sweep.exit_code == 2, "the worst of all"
    assert Sweep().exit_code == 0


@pytest.mark.slow
def test_a_sweep_is_trained_compared_and_not_trained_again(recipe_file, rows, tmp_path):
    command = [sys.executable, "-m", "gptoss_tune", "train", str(recipe_file)]
    command += ["train.max_steps=2", f"data.eval={rows}", "train.learning_rate=[1e-3,5e-3]"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    table = first.stdout.partition("held-out loss")[2]
    assert table.index("5e-3") < table.index("1e-3"), "the better one first"
    assert (tmp_path / "run-sweep.html").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "2 of them finished before" in again.stdout
    assert "step 1/2" not in again.stdout and "held-out loss" in again.stdout
