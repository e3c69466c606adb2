import importlib.metadata
import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Mxfp4Config

from gptoss_tune.errors import RecipeError
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train import trainer as trainer_module
from gptoss_tune.train.run import train


def adapter_tensors(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def weighted_loss(model, dataset):
    """Return the mean loss over all weights, from the logits of a plain model."""
    total, weight = 0.0, 0.0
    for row in dataset:
        ids, weights = torch.tensor(row["input_ids"]), torch.tensor(row["loss_weights"])[1:]
        with torch.no_grad():
            logits = model(ids[None]).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        total += float((losses * weights).sum())
        weight += float(weights.sum())
    return total / weight


def test_a_run_learns_and_leaves_an_adapter_that_plain_peft_reads(recipe, base, rows, tmp_path):
    settings = recipe("train.max_steps=8", f"data.eval={rows}", "train.eval_steps=4")
    summary = train(settings)
    run = tmp_path / "run"
    plain = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    ).float()
    dataset = load_dataset(settings.data, split="train", vocabulary=load_vocabulary(base))
    before = weighted_loss(plain, dataset)
    after = weighted_loss(PeftModel.from_pretrained(plain, str(run / "adapter")), dataset)
    assert after < before - 0.5
    # The run's own evaluation is the mean over all weights, whatever the batches.
    assert summary.eval_loss == pytest.approx(after, rel=1e-5)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert {"loss_analysis", "loss_final", "tokens_per_second", "memory_gib"} <= set(steps[0])
    assert [row["step"] for row in metrics if "eval_loss" in row] == [4, 8]
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["steps"] == 8
    assert record["efforts"] == {"medium": len(dataset)}
    assert record["environment"]["libraries"]["torch"] == importlib.metadata.version("torch")
    assert load_recipe(run / "recipe.yaml") == settings
    assert {p.name for p in (run / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }


@pytest.mark.slow
def test_accumulation_averages_over_all_trained_tokens_of_the_step(recipe, losses, tmp_path):
    """Micro-batches of unequal weight: one of 6 rows equals 6 of one row, and 2 of 3."""
    runs = {}
    for rows_per_batch, batches in ((6, 1), (1, 6), (3, 2)):
        run = tmp_path / f"{rows_per_batch}x{batches}"
        train(
            recipe(
                f"train.output_dir={run}",
                f"train.per_device_train_batch_size={rows_per_batch}",
                f"train.gradient_accumulation_steps={batches}",
                "train.max_steps=2",
            )
        )
        runs[rows_per_batch] = losses(run), adapter_tensors(run)
    reference_losses, reference = runs.pop(6)
    for run_losses, tensors in runs.values():
        for step, loss in reference_losses.items():
            assert run_losses[step] == pytest.approx(loss, rel=2e-5)
        for name, tensor in reference.items():
            # Adam divides by the gradient's size, so fp32 noise in it shows at this order.
            torch.testing.assert_close(tensors[name], tensor, rtol=2e-3, atol=2e-4)


def test_resume_auto_continues_bit_for_bit(recipe, losses, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(f"train.output_dir={whole}", "train.max_steps=6"))

    class Killed(BaseException):
        """Stands for a process that dies between two steps."""

    from gptoss_tune.train import sft

    original = sft.WeightedSftTrainer.log

    def dies_after_step_5(self, logs, start_time=None):
        original(self, logs, start_time)
        if self.state.global_step == 5:
            raise Killed

    sft.WeightedSftTrainer.log = dies_after_step_5
    try:
        with pytest.raises(Killed):
            train(recipe(f"train.output_dir={parts}", "train.max_steps=6", "train.save_steps=2"))
    finally:
        sft.WeightedSftTrainer.log = original
    assert sorted(p.name for p in parts.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    train(recipe(f"train.output_dir={parts}", "train.max_steps=6", "train.save_steps=2"))
    assert losses(parts) == losses(whole)
    expected = adapter_tensors(whole)
    for name, tensor in adapter_tensors(parts).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
def test_a_checkpoint_keeps_the_newest_lines_and_not_all(recipe, losses, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_LINES_KEPT", 2)
    summary = train(recipe("train.save_steps=2", "train.max_steps=6"))
    run = tmp_path / "run"
    state = json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"]] == [5, 6]
    assert list(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert summary.loss == losses(run)[6]


def advised(error, folder, **words):
    """Return the overrides that a message advises, its placeholders filled in."""
    text = str(error).rpartition("To train it longer, ")[2]
    ways = [way.partition(": ")[2] for way in text.split(", or ")]
    found = []
    for number, way in enumerate(ways):
        options = way.replace("NEW", str(folder / f"new-{number}"))
        for word, value in words.items():
            options = options.replace(word, value)
        found.append(options.split())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("length", ["train.max_steps=4", "train.num_train_epochs=1"])
def test_the_advice_how_to_train_a_finished_run_longer_works(recipe, losses, tmp_path, length):
    epochs = length.startswith("train.num")
    settings = [length, "train.save_steps=2", *(["train.max_steps=null"] if epochs else [])]
    first = train(recipe(*settings))
    with pytest.raises(RecipeError, match="is finished") as refused:
        train(recipe(*settings))
    fresh, further = advised(refused.value, tmp_path, MORE="3" if epochs else "6")
    more = train(recipe(*settings, *fresh))
    start = load_file(first.adapter / "adapter_model.safetensors")
    end = load_file(more.adapter / "adapter_model.safetensors")
    assert start.keys() == end.keys()
    assert losses(more.folder)[1] < losses(first.folder)[1], "it starts where the other ended"
    *overrides, option, name = further
    assert option == "--allow-change"
    kept = [
        one for one in settings if one.split("=")[0] not in {o.split("=")[0] for o in overrides}
    ]
    longer = train(recipe(*kept, *overrides), allow_change=[name])
    assert longer.steps == (9 if epochs else 6)
    assert min(losses(longer.folder)) == (4 if epochs else 5)


@pytest.mark.slow
def test_the_first_lines_say_who_computes_a_step(recipe, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(recipe("train.max_steps=1"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("on 1 process, 2 rows a step, ")
    if not torch.cuda.is_available():
        assert lines[1].endswith("1 thread (OMP_NUM_THREADS sets another number)")


WAYS = {
    "experts in bf16": ["model.experts_precision=bf16"],
    "merge-aware": ["lora.merge_aware=true"],
    "packed rows, offloaded": ["data.packing=true", "train.activation_checkpointing=offload"],
    "8-bit moments": ["train.optim=adamw_8bit"],
    "bf16 compute": ["model.dtype=bfloat16", "train.activation_checkpointing=full"],
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_every_way_to_train_continues_bit_for_bit(recipe, losses, tmp_path, settings):
    if "train.optim=adamw_8bit" in settings:
        pytest.importorskip("bitsandbytes")
    settings = [*settings, "train.save_steps=2", "train.save_total_limit=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(*settings, f"train.output_dir={whole}"))
    shutil.copytree(whole, parts)
    for folder in ("adapter", "checkpoint-4"):
        shutil.rmtree(parts / folder)
    record = json.loads((parts / "run.json").read_text())
    (parts / "run.json").write_text(json.dumps({**record, "status": "running"}))
    train(recipe(*settings, f"train.output_dir={parts}"))
    assert losses(parts) == losses(whole)
    expected = adapter_tensors(whole)
    for name, tensor in adapter_tensors(parts).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    ["full", *(pytest.param(one, marks=pytest.mark.slow) for one in ("selective", "offload"))],
)
def test_checkpointing_changes_no_loss(recipe, losses, tmp_path, mode):
    for name in ("none", mode):
        train(
            recipe(f"train.output_dir={tmp_path / name}", f"train.activation_checkpointing={name}")
        )
    assert losses(tmp_path / mode) == losses(tmp_path / "none")


@pytest.mark.slow
def test_bfloat16_runs_in_mixed_precision_with_fp32_adapters(recipe, losses, tmp_path):
    train(recipe("model.dtype=bfloat16", "train.max_steps=2"))
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run").values())
    assert {t.dtype for t in adapter_tensors(tmp_path / "run").values()} == {torch.float32}


@pytest.mark.slow
def test_wandb_offline_records_the_run_beside_it(recipe, tmp_path):
    train(recipe("tracking.wandb=offline", "train.max_steps=1"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_eight_bit_optimizer_trains(recipe, losses, tmp_path):
    pytest.importorskip("bitsandbytes")
    train(recipe("train.optim=adamw_8bit"))
    values = losses(tmp_path / "run")
    assert values[4] < values[1]
