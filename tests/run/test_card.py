"""A real run's card against its types, and the run made again."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.cli.run.reproduce import reproduce
from gptoss_tune.errors import CheckpointError, MachineError, RecipeError
from gptoss_tune.files.atomic import to_json
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.recipe import load_recipe
from gptoss_tune.run.card import RunCard, line_marks
from gptoss_tune.train.run import train
from gptoss_tune.workflows.reproduce import FACTOR_ATOL, compare, differences, launch_words

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def finished(base, rows, tmp_path_factory):
    """Return a finished run and its data file."""
    folder = tmp_path_factory.mktemp("card")
    data = folder / "rows.jsonl"
    shutil.copy(rows, data)
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {base}, dtype: float32}}
lora: {{rank: 4, expert_rank: 2}}
data: {{train: {data}, eval: {rows}, max_length: 256}}
train:
  output_dir: {folder / "run"}
  max_steps: 3
  per_device_train_batch_size: 2
  learning_rate: 5e-3
  activation_checkpointing: none
""",
        encoding="utf-8",
    )
    words = ["train.max_steps=2"]
    train(
        load_recipe(folder / "recipe.yaml", words),
        command=[str(folder / "recipe.yaml"), *words],
    )
    return folder / "run", data


def test_a_finished_runs_card_is_complete(finished):
    run, data = finished
    raw = json.loads((run / "run.json").read_text(encoding="utf-8"))
    card = RunCard.model_validate(raw)
    assert card.status == "finished" and card.steps == 2
    assert card.command["overrides"] == ["train.max_steps=2"]
    assert [(file.split, file.sha256) for file in card.data] == [
        ("train", sha256_of(data)),
        ("eval", sha256_of(data)),
    ]
    assert card.seeds == {"seed": 0, "data_seed": 0}
    assert card.base.fingerprint.keys() == {"config", "weights", "content"}
    assert {"loss", "loss_analysis", "loss_final"} <= card.losses.last.keys()
    assert card.losses.first["loss"] > card.losses.last["loss"]
    assert "eval_loss" in card.losses.eval
    assert card.tokens["trained"] == sum(card.tokens["trained_by_channel"].values()) > 0
    assert card.tokens_per_second is not None and card.tokens_per_second > 0
    assert card.hardware["cores"] >= 1 and card.hardware["memory_bytes"] > 2**30
    # The metadata of a build with CUDA leaves out the local part of the version.
    assert torch.__version__.startswith(card.environment["libraries"]["torch"])
    assert card.peak_memory_bytes > 0 and card.guard["skipped_steps"] == 0


def test_every_field_of_the_card_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "run-card.md").read_text(encoding="utf-8")
    for name in RunCard.model_fields:
        assert f"`{name}`" in page, name


@pytest.mark.slow
def test_a_run_made_again_is_exactly_the_same(finished, tmp_path, capsys):
    run, _ = finished
    reproduce(run, tmp_path / "again")
    said = capsys.readouterr().out
    assert "verdict: exact" in said
    assert "data, base, versions and hardware are those of the run" in said
    again = load_file(tmp_path / "again" / "adapter" / WEIGHTS)
    for name, tensor in load_file(run / "adapter" / WEIGHTS).items():
        assert torch.equal(again[name], tensor), name


def make(recipe_file, overrides):
    train(load_recipe(recipe_file, overrides), command=[str(recipe_file), *overrides])


@pytest.mark.slow
def test_a_run_of_two_processes_is_made_again_by_two(recipe_file, rows, on_ranks, capfd, tmp_path):
    data = Path(shutil.copy(rows, tmp_path / "rows.jsonl"))
    words = [f"data.train={data}", "train.max_steps=2", "train.per_device_train_batch_size=1"]
    assert on_ranks(2, make, recipe_file, words) == [0, 0]
    run, again = tmp_path / "run", tmp_path / "run-again"
    capfd.readouterr()
    reproduce(run, as_json=True)
    said = capfd.readouterr()
    found = json.loads(said.out)
    assert (found["verdict"], found["differences"]) == ("exact", [])
    assert [(pair["step"], pair["then"] == pair["now"]) for pair in found["steps"]] == [
        (1, True),
        (2, True),
    ]
    assert "step 2/2" in said.err, "the second run speaks beside the comparison"
    record = json.loads((again / "run.json").read_text())
    assert record["environment"]["processes"] == 2
    data.write_text(data.read_text().replace("Paris", "Paris, France"))
    with pytest.raises(RecipeError, match=r"rows\.jsonl:1: another row then"):
        reproduce(run, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_the_launch_is_that_of_the_run():
    def words(gpus, processes, strategy="ddp"):
        record = {"environment": {"processes": processes}, "fingerprint": {"strategy": strategy}}
        return " ".join(launch_words(record, gpus))

    assert words(0, 1).split() == [sys.executable, "-P"]
    assert "--multi_gpu" in words(2, 2) and "--num_processes 2 " in words(0, 2)
    assert "recipes/accelerate/fsdp2.yaml --num_processes 8" in words(8, 8, "fsdp2")
    with pytest.raises(MachineError, match="had 16 processes, and this machine has 8 GPUs"):
        words(8, 16)


def test_what_a_run_changed_on_its_way_is_named(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    changes = [("processes", 1, 2), ("train.learning_rate", 0.1, 0.2)]
    record["changes"] = [{"step": 1, "name": n, "was": a, "now": b} for n, a, b in changes]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        RecipeError, match=r"train\.learning_rate before step 1: 0\.1 then, 0\.2 now"
    ):
        reproduce(run)
    # Held while the run trains, not by the process that starts it again.
    record["environment"]["deterministic"] = True
    found = differences(record, load_recipe(run / "recipe.yaml").model, run)
    assert [(one.what, one.changes_result) for one in found] == [
        ("train.learning_rate before step 1", True),
        ("processes before step 1", False),
    ]


def changed_copy(run, out, change):
    """Copy a run and change one tensor of its adapter."""
    shutil.copytree(run, out)
    tensors = load_file(out / "adapter" / WEIGHTS)
    name = sorted(tensors)[-1]
    tensors[name].flatten()[0] += change
    save_file(tensors, out / "adapter" / WEIGHTS)
    return name


def test_a_planted_difference_in_the_adapter_is_found(finished, tmp_path):
    run, _ = finished
    name = changed_copy(run, tmp_path / "planted", 0.01)
    found = compare(run, tmp_path / "planted")
    assert (found.verdict, found.unequal) == ("different", (name,))
    assert found.factor_difference == pytest.approx(0.01, rel=1e-3)
    changed_copy(run, tmp_path / "rounded", FACTOR_ATOL / 10)
    assert compare(run, tmp_path / "rounded").verdict == "within fp32 reduction error"
    assert compare(run, run).verdict == "exact"


def test_a_step_with_another_loss_is_found(finished, tmp_path):
    run, _ = finished
    shutil.copytree(run, tmp_path / "other")
    metrics = tmp_path / "other" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[1]["loss"] *= 1.001
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare(run, tmp_path / "other")
    assert found.verdict == "different" and not found.unequal
    assert found.loss_difference == pytest.approx(1e-3, rel=1e-3)


def test_a_changed_row_is_named_before_anything_runs(finished, tmp_path):
    run, data = finished
    before = data.read_bytes()
    try:
        data.write_bytes(before.replace(b"Legs of a spider?", b"Legs of a beetle?"))
        with pytest.raises(RecipeError, match=r"rows\.jsonl:6: another row then"):
            reproduce(run, tmp_path / "again")
        data.write_bytes(before + before.splitlines(keepends=True)[0])
        with pytest.raises(RecipeError, match="6 lines then, 7 lines now"):
            reproduce(run, tmp_path / "again")
    finally:
        data.write_bytes(before)
    assert not (tmp_path / "again").exists()


def test_an_unfinished_run_cannot_be_compared(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no run\.json"):
        reproduce(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "stopped"}')
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(CheckpointError, match="'stopped', not finished"):
        reproduce(tmp_path)


@pytest.mark.slow
def test_verifying_an_export_is_noted_on_the_card(finished, tmp_path):
    from gptoss_tune.cli.model.export import merge

    run, _ = finished
    merge(tmp_path / "merged", [str(run)])
    (noted,) = json.loads((run / "run.json").read_text())["verification"]
    assert noted["command"] == "merge" and noted["passed"] is True
    assert noted["folder"] == str(tmp_path / "merged")
    assert {"name", "passed", "detail"} <= noted["checks"][0].keys()
    assert to_json(noted)


def test_marks_of_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"one\r\ntwo\n")
    (tmp_path / "b.jsonl").write_bytes(b"one\ntwo")
    assert line_marks(tmp_path / "a.jsonl") == line_marks(tmp_path / "b.jsonl")
    (tmp_path / "c.parquet").write_bytes(b"one")
    assert line_marks(tmp_path / "c.parquet") is None
