"""The layer-by-layer forward against whole models of plain transformers and PEFT."""

import peft
import pytest
import torch

from gptoss_tune.export.verify.layerwise import LayerwiseModel

# Longer than the window of 128, so that the sliding layers hide something.
PROMPTS = [[200006, 1428, 200008, 40, 41, 42, 200007], [i * 37 % 5000 for i in range(150)]]


def relative(actual, expected):
    return ((actual - expected).pow(2).mean() / expected.pow(2).mean()).sqrt().item()


@pytest.mark.parametrize("stored", ["mxfp4", "bf16"])
def test_a_checkpoint_has_the_logits_of_plain_transformers(base, dense_base, lab, stored):
    path = base if stored == "mxfp4" else dense_base
    model = lab.plain_model(path, torch.float32)
    checkpoint, _ = lab.open(path)
    for prompt, got in zip(PROMPTS, LayerwiseModel(checkpoint).logits(PROMPTS), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0]
        assert relative(got, expected) < 1e-4


def test_adapters_beside_it_have_the_logits_of_peft(base, adapter, tmp_path, lab):
    head = lab.adapter(
        base, tmp_path / "head", target_modules=["lm_head", "v_proj"], target_parameters=None
    )
    for path in (adapter, head):
        model = peft.PeftModel.from_pretrained(lab.plain_model(base, torch.float32), path)
        checkpoint, adapters = lab.open(base, path)
        got = LayerwiseModel(checkpoint, adapters).logits(PROMPTS)
        for prompt, logits in zip(PROMPTS, got, strict=True):
            with torch.no_grad():
                expected = model(torch.tensor([prompt])).logits[0]
            assert relative(logits, expected) < 1e-4


def test_two_adapters_beside_it_are_one_sum(base, adapter, tmp_path, lab):
    out = tmp_path / "sum"
    second = lab.adapter(base, tmp_path / "second", seed=3, rank_pattern={}, alpha_pattern={})
    lab.merge(base, {adapter: 1.0, second: 1.0}, out)
    checkpoint, adapters = lab.open(base, adapter, second)
    expected = LayerwiseModel(checkpoint, adapters).logits(PROMPTS[:1])[0]
    merged, _ = lab.open(out)
    got = LayerwiseModel(merged).logits(PROMPTS[:1])[0]
    assert relative(got, expected) < 0.02  # rounding of the merged weights to bf16
