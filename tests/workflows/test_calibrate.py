"""A run that MXFP4 would lose is recovered by the merge command; trained factors start runs."""

import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, DataError, RecipeError, RunInterrupted
from gptoss_tune.export.merge.merge import TooLittleSurvives
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.recipe import Recipe, load_recipe
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.run import train
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.workflows.calibrate import Calibration

# Experts alone: all of what is learned then has to pass through MXFP4.
WEAK = (
    "lora.target_modules=[]",
    "train.learning_rate=1.3e-3",
    "train.max_steps=6",
    "train.per_device_train_batch_size=6",
    "export.min_survival=0.8",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wide enough that what MXFP4 drops shows in the loss; the shared tiny base is narrower."""
    folder = tmp_path_factory.mktemp("wider") / "base"
    return tiny_checkpoint(folder, seed=1, layers=2, experts=4, hidden=64, intermediate=96)


@pytest.fixture(scope="module")
def weak(tmp_path_factory, base, rows):
    """Return a run whose change is too small for MXFP4, its recipe and its held-out loss."""
    folder = tmp_path_factory.mktemp("weak")
    (folder / "recipe.yaml").write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        f"lora: {{rank: 4, expert_rank: 2}}\n"
        f"data: {{train: {rows}, eval: {rows}, max_length: 256}}\n"
        f"train: {{output_dir: {folder / 'run'}, activation_checkpointing: none}}\n",
        encoding="utf-8",
    )
    settings = load_recipe(folder / "recipe.yaml", WEAK)
    summary = train(settings)
    return summary.folder, settings, summary.eval_loss


@pytest.fixture
def run(weak, tmp_path):
    """A copy of that run, to change."""
    return shutil.copytree(weak[0], tmp_path / "run")


def continued(weak, tmp_path, *overrides):
    """Return the recipe that starts where the weak run ended."""
    run, _, _ = weak
    return load_recipe(
        run / "recipe.yaml",
        (f"lora.init_from={run}", f"train.output_dir={tmp_path / 'next'}", *overrides),
    )


def merge(run, out, *arguments):
    command = ["merge", run, "--out", out, "--format", "mxfp4", "--json", *arguments]
    return CliRunner().invoke(app, [str(each) for each in command])


def loss_of(folder, settings, base):
    """Return the mean loss over the rows in plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    rows = load_dataset(settings.data, split="train", vocabulary=load_vocabulary(base), seed=0)
    total = weight = 0.0
    for row in rows:
        ids, weights = torch.tensor(row["input_ids"]), torch.tensor(row["loss_weights"])[1:]
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        total, weight = total + float((losses * weights).sum()), weight + float(weights.sum())
    return total / weight


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def stop_after_the_first_step(folder):
    """Ask this process to stop, as a scheduler does, once the training there has made a step."""
    metrics = folder / "metrics.jsonl"

    def watch():
        while not (metrics.exists() and metrics.read_text().count("\n")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def edit_record(folder, **changes):
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.slow
def test_a_change_that_mxfp4_drops_is_recovered(weak, base, rows, tmp_path):
    run, settings, _ = weak
    out = tmp_path / "out"
    refused = merge(run, out)
    assert isinstance(refused.exception, TooLittleSurvives)
    assert "80% is wanted" in str(refused.exception), "the threshold is the recipe's"
    plain = merge(run, tmp_path / "plain", "--accept-loss", "--no-verify")
    before = json.loads(plain.stdout)["survival"]["total"]
    calibrate = ("--calibrate", rows, "--calibrate-steps", 6)
    stop_after_the_first_step(tmp_path / "out.calibration")
    stopped = merge(run, out, *calibrate)
    assert isinstance(stopped.exception, RunInterrupted)
    result = merge(run, out, *calibrate)
    assert result.exit_code == 0, result.exception
    assert "step 1/6" not in result.stderr, "the training goes on where it was"
    assert "step 6/6" in result.stderr
    report = json.loads(result.stdout)
    assert report["survival"]["total"] == 1.0
    assert report["verification"]["passed"]
    assert report["calibration"]["survival_before"] == before < 0.8
    assert f"{before:.1%} as trained, 100.0% after" in result.stderr
    kept = loss_of(tmp_path / "plain", settings, base)
    assert loss_of(out, settings, base) < kept - 0.1

    # Again, as after a merge that was stopped: the finished training is used, not repeated.
    whole = digest(out)
    for noted in (True, False):
        shutil.rmtree(out)
        if not noted:  # stopped between the end of the training and the note about it
            edit_record(tmp_path / "out.calibration", calibration=None)
        again = merge(run, out, *calibrate, "--no-verify")
        assert again.exit_code == 0, again.exception
        assert "step 6/6" not in again.stderr
        assert json.loads(again.stdout)["calibration"] == report["calibration"]
        assert digest(out) == whole

    shutil.rmtree(out)
    packed = merge(run, out, *calibrate, "--format", "gguf")
    assert packed.exit_code == 0, packed.exception
    assert "step 6/6" not in packed.stderr, "the training does not depend on the file"
    written = json.loads(packed.stdout)
    assert [path.suffix for path in out.glob("*.gguf")] == [".gguf"]
    assert written["survival"]["total"] == 1.0 and written["verification"]["passed"]
    assert written["calibration"] == report["calibration"]

    shutil.rmtree(out)
    other = {"adapter": "0" * 64, "survival_before": 0.1}
    edit_record(tmp_path / "out.calibration", calibration=other)
    stale = merge(run, out, *calibrate)
    assert "is the calibration of another adapter" in str(stale.exception)
    differs = merge(run, out, "--calibrate", rows, "--calibrate-steps", 9)
    assert isinstance(differs.exception, RecipeError)
    said = str(differs.exception)
    assert "out.calibration: the calibration there is finished" in said
    assert "differs in\n  train.max_steps: 6 there, 9 here\nset these back" in said
    assert not out.exists()


def test_of_several_thresholds_the_strictest_holds(weak, run, tmp_path):
    recipe = weak[1].model_dump(mode="json")
    damage(run, lambda weights: weights[min(weights)].mul_(1.0625))  # one adapter is merged once
    edit_record(run, recipe={**recipe, "export": {"min_survival": 0.97}})
    assert "97% is wanted" in str(merge(weak[0], tmp_path / "out", run).exception)
    (run / "run.json").unlink()  # a bare adapter names none
    assert "80% is wanted" in str(merge(weak[0], tmp_path / "out", run).exception)
    assert "90% is wanted" in str(merge(run, tmp_path / "out").exception)
    assert "70% is wanted" in str(merge(run, tmp_path / "out", "--min-survival", 0.7).exception)


def test_what_survives_is_not_trained_again(weak, rows, tmp_path):
    out = tmp_path / "out"
    arguments = ("--calibrate", rows, "--min-survival", 0.01, "--no-verify")
    result = merge(weak[0], out, *arguments)
    assert result.exit_code == 0, result.exception
    assert "calibration is not needed" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--calibrate", "x.jsonl", "--format", "bf16"), "use it with --format mxfp4"),
        (("--calibrate", "x.jsonl", "--accept-loss"), "give one of the two"),
        (("--calibrate", "x.jsonl", "{run}"), "got 2 adapters"),
        (("--calibrate-steps", 3), "it needs --calibrate FILE"),
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(weak, tmp_path, arguments, said):
    given = [str(each).format(run=weak[0]) for each in arguments]
    result = merge(weak[0], tmp_path / "out", *given)
    assert result.exit_code == 2
    assert said in plain_text(result.output)
    assert not list(tmp_path.iterdir())


def test_data_that_is_not_there_is_missed_before_anything_is_merged(weak, tmp_path):
    result = merge(weak[0], tmp_path / "out", "--calibrate", "nowhere.jsonl")
    assert isinstance(result.exception, DataError)
    assert "nowhere.jsonl: no such file, nor is it among the run's own data" in str(
        result.exception
    )
    assert not list(tmp_path.iterdir())


def test_a_bare_adapter_has_no_recipe_to_train_with(weak, rows, tmp_path):
    result = merge(weak[0] / "adapter", tmp_path / "out", "--calibrate", rows)
    assert result.exit_code == 2
    assert "holds no recipe.yaml; expected a run" in plain_text(result.output)


def plain_text(output):
    """Return what typer put into a box as one line."""
    return " ".join(output.replace("│", " ").split())


def test_training_starts_with_the_loss_that_the_adapter_has(weak, tmp_path, losses):
    summary = train(continued(weak, tmp_path, "train.max_steps=1", "data.eval=null"))
    fresh = losses(weak[0])[1]
    start = losses(summary.folder)[1]
    assert start == pytest.approx(weak[2], rel=1e-5)
    assert start < fresh - 0.1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.rank=8", "r: got 4, expected 8"),
        ("lora.alpha=16", "lora_alpha: got 32.0, expected 16.0"),
        ("lora.expert_rank=3", "rank_pattern: got"),
        ("lora.target_modules=[q_proj]", "of the 12 factors that the recipe trains are missing"),
        ("lora.init_from=nowhere", "nowhere holds no adapter_config.json"),
    ],
)
def test_another_adapter_than_the_recipe_s_is_refused(weak, base, tmp_path, override, said):
    settings = continued(weak, tmp_path)
    key, value = override.split("=")
    lora = {key.removeprefix("lora."): yaml.safe_load(value)}
    settings = Recipe.model_validate(
        {**settings.model_dump(), "lora": {**settings.lora.model_dump(), **lora}}
    )
    with pytest.raises(CheckpointError, match=re.escape(said)):
        build(settings, open_checkpoint(base), "cpu")


def damage(run, change):
    """Change the weights of a run's adapter, and leave nothing that knows their hash."""
    path = run / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    (run / "adapter" / "manifest.json").unlink()


def drop_one(weights):
    del weights[min(weights)]


def add_one(weights):
    weights["base_model.model.lm_head.lora_A.weight"] = torch.zeros(2, 2)


def transpose_one(weights):
    weights[min(weights)] = weights[min(weights)].T.contiguous()


def spoil_one(weights):
    weights[min(weights)][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_one, "1 of the 8 factors"),
        (add_one, "superfluous 'base_model.model.lm_head.lora_A.weight'"),
        (transpose_one, "the adapter is of another base or rank"),
        (spoil_one, "holds NaN or infinity"),
    ],
)
def test_a_damaged_adapter_starts_nothing(weak, run, base, tmp_path, change, said):
    damage(run, change)
    settings = continued((run, *weak[1:]), tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        build(settings, open_checkpoint(base), "cpu")


def test_swapped_expert_factors_are_not_started_from(weak, run, base, tmp_path):
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_version": "0.19.0"}))
    (run / "adapter" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="--for peft --repair"):
        build(continued((run, *weak[1:]), tmp_path), open_checkpoint(base), "cpu")


@pytest.mark.parametrize("method", ["{name: dpo}", "{name: dpo, reference: base}", "{name: kto}"])
def test_a_calibrated_preference_is_held_to_the_reference_it_was_trained_against(
    tmp_path, rows, method
):
    """It starts from the trained adapter, which would be its reference where none is named."""
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{name_or_path: base}}\nlora: {{}}\nmethod: {method}\ndata: {{train: {rows}}}\n"
        f"train: {{output_dir: run, max_steps: 3}}\n",
        encoding="utf-8",
    )
    recipe = Calibration(tmp_path, str(rows), 5, tmp_path / "out").recipe(None, None)
    assert recipe.lora.init_from and recipe.method.reference == "base"


def test_a_run_held_to_the_adapter_it_started_from_is_not_calibrated(tmp_path, rows):
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: base}\nlora: {init_from: first}\nmethod: {name: dpo}\n"
        f"data: {{train: {rows}}}\ntrain: {{output_dir: run, max_steps: 3}}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match=r"against the adapter .* lora\.merge_aware: true"):
        Calibration(tmp_path, str(rows), 5, tmp_path / "out").recipe(None, None)
