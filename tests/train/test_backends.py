"""The expert backends and the merge-aware mode through a whole run."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Mxfp4Config

from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.model.build import build
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.run import train
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

# fp32 on both sides, different orders of summation; measured 6e-7.
SAME_LOGITS = 5e-6


def plain_logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    ).float()
    with torch.no_grad():
        return model(ids).logits


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.slow
@pytest.mark.interpreter
def test_triton_in_the_interpreter_gives_the_losses_of_torch(recipe, capsys, losses, tmp_path):
    """One layer: the interpreter does a thousandth of what compiled kernels do."""
    base = tiny_checkpoint(
        tmp_path / "base", seed=1, layers=1, experts=4, hidden=32, intermediate=64
    )
    for backend in ("torch", "triton"):
        overrides = [f"model.backend={backend}", "train.max_steps=2", f"model.name_or_path={base}"]
        overrides += [
            "train.per_device_train_batch_size=1",
            f"train.output_dir={tmp_path / backend}",
        ]
        train(recipe(*overrides))
        assert f"experts: {backend} backend" in capsys.readouterr().out
    expected, actual = losses(tmp_path / "torch"), losses(tmp_path / "triton")
    assert actual.keys() == expected.keys() == {1, 2}
    for step, loss in expected.items():
        assert actual[step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_merge_aware_training_ends_in_the_exported_files_own_logits(recipe, base, tmp_path):
    # Experts alone: merged attention weights are rounded to bf16, as the layout has them.
    settings = recipe(
        "lora.merge_aware=true",
        "lora.target_modules=[]",
        "train.max_steps=6",
        "train.learning_rate=2e-2",
    )
    summary = train(settings)
    opened = open_checkpoint(base)
    adapter = open_adapter(summary.folder, opened)
    report = merge(
        opened,
        [WeightedAdapter(adapter, 1.0)],
        tmp_path / "exported",
        MergeOptions(expert_format="mxfp4"),
    )
    assert report["survival"]["total"] == 1.0
    ids = torch.randint(0, 199_998, (1, 24), generator=torch.Generator().manual_seed(0))
    built = build(settings, opened, "cpu").model
    trained = PeftModel.from_pretrained(built.unload(), str(summary.adapter))
    with torch.no_grad():
        ours = trained(ids).logits
    exported = plain_logits(tmp_path / "exported", ids)
    assert relative(ours, exported) < SAME_LOGITS
    assert relative(plain_logits(base, ids), exported) > 1e-2


def test_an_adapter_trained_without_it_loses_in_the_same_export(recipe, base, tmp_path):
    """The control: without merge-aware training the export is not the trained model."""
    summary = train(recipe("train.max_steps=6", "train.learning_rate=2e-2"))
    opened = open_checkpoint(base)
    adapter = open_adapter(summary.folder, opened)
    options = MergeOptions(expert_format="mxfp4", accept_loss=True)
    report = merge(opened, [WeightedAdapter(adapter, 1.0)], tmp_path / "exported", options)
    assert report["survival"]["total"] < 0.999
