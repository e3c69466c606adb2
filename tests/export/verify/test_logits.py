"""The bounds of the logits: what is noise, what rounding takes, and what is wrong."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.export.verify.logits import (
    allowed_divergence,
    allowed_in_mxfp4,
    check_logits,
    compare_logits,
    lost_share,
)
from gptoss_tune.export.verify.verify import verify
from gptoss_tune.export.verify.weights import TargetReport
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter_targets import targets_of

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("logits") / "base", layers=1, experts=4)


def an_adapter(base, out, *, scale, rank=1, experts=None, **config):
    """A rank-1 adapter with random factors; ``experts``: zero but for these."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": EXPERTS,
        **config,
    }
    out.mkdir()
    (out / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for target in targets_of(config, open_checkpoint(base), "test").values():
        for letter, shape in zip("AB", target.shapes, strict=True):
            weights[f"{target.key}.lora_{letter}.weight"] = (
                torch.randn(shape, generator=generator) * scale
            )
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.slow
def test_a_right_merge_of_a_small_rank_1_adapter_is_green(small, tmp_path, lab):
    adapter = an_adapter(small, tmp_path / "adapter", scale=1e-4)
    lab.merge(small, adapter, tmp_path / "out")
    checkpoint, opened = lab.open(small, adapter)
    result = verify(tmp_path / "out", checkpoint, opened)
    assert result.passed, result.checks
    figures = next(check.figures for check in result.checks if check.name == "logits")
    assert 0 < figures["kl_base"] < 1e-7


def test_a_divergence_below_the_noise_of_fp32_is_summed_right():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 201_088, generator=generator).mul_(3)
    step = 1e-4 * torch.randn(3, 201_088, generator=generator)
    moved = logits + step
    step = moved.double() - logits.double()
    p = logits.double().softmax(-1)
    # KL of a small step is half the variance of the step under p.
    mean = (p * step).sum(-1, keepdim=True)
    expected = ((p * (step - mean).square()).sum(-1) / 2).mean().item()
    found = compare_logits([logits], [moved])["kl"]
    assert found == pytest.approx(expected, rel=1e-3)
    assert compare_logits([logits], [logits])["kl"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", [0, 1])
def test_a_divergence_that_is_no_number_is_none(bad, whose):
    logits = [torch.randn(2, 50), torch.randn(3, 50)]
    pair = [logits, [each.clone() for each in logits]]
    pair[whose][0][1, 7] = bad
    figures = compare_logits(*pair)
    assert not math.isfinite(figures["kl"]) and not math.isfinite(figures["max_abs"])


@pytest.mark.slow
def test_logits_that_are_no_numbers_are_red(small, tmp_path, lab):
    # Both factors and their product are finite, and so is the merged file; attention is not.
    targets = {"target_modules": ["q_proj", "k_proj"], "target_parameters": []}
    adapter = an_adapter(small, tmp_path / "adapter", scale=1e11, **targets)
    lab.merge(small, adapter, tmp_path / "out")
    checkpoint, opened = lab.open(small, adapter)
    merged = open_checkpoint(tmp_path / "out")
    answer = check_logits(checkpoint, merged, opened, [], merge_aware=False, device="cpu")
    assert answer.passed is False and answer.detail == "the logits are NaN or infinite"


@pytest.mark.slow
def test_an_adapter_of_experts_that_no_prompt_reaches_says_nothing(small, tmp_path, lab):
    adapter = an_adapter(small, tmp_path / "adapter", scale=0.05, target_modules=[])
    # The router sends no token to the last expert, the only one that the adapter changes.
    checkpoint, _ = lab.open(small, adapter)
    weights = lab.weights(small)
    bias = weights["model.layers.0.mlp.router.bias"]
    bias[:3], bias[3] = 0, -1e4
    base = tiny_checkpoint(tmp_path / "base", layers=1, experts=4)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 2}))

    def only_the_last(factors):
        # B is [out, r * E] with the experts innermost.
        return {
            n: t * (torch.arange(t.shape[1]) % 4 == 3) if "lora_B" in n else t
            for n, t in factors.items()
        }

    lab.edit_weights(adapter, only_the_last)
    lab.merge(base, adapter, tmp_path / "out")
    checkpoint, opened = lab.open(base, adapter)
    result = verify(tmp_path / "out", checkpoint, opened)
    logits = next(check for check in result.checks if check.name == "logits")
    assert result.passed and logits.passed is None, result.checks
    assert "changes nothing on these prompts" in logits.detail


def test_what_rounding_takes_is_allowed_and_no_more():
    def allowed(change, *targets, merge_aware=False):
        reports = [
            TargetReport(name, delta_norm=norm, holdable=holdable)
            for name, norm, holdable in targets
        ]
        return allowed_divergence(change, lost_share(reports, merge_aware=merge_aware))

    whole, experts = ("a.q_proj", 2.0, 1.0), "a.mlp.experts.down_proj"
    assert allowed(1.0) == allowed(1.0, whole, whole) == pytest.approx(0.05)
    assert allowed(1.0, ("a.o_proj", 2.0, 0.2)) == pytest.approx(0.05 + 0.8**2)
    assert allowed(1.0, whole, ("a.o_proj", 2.0, 0.2)) == pytest.approx(0.05 + 0.8**2 / 2)
    assert allowed(1.0, ("a.o_proj", 2.0, -3.0)) == pytest.approx(1.05)
    # A target that is next to nothing allows next to nothing, however little of it is held.
    assert allowed(1.0, whole, ("a.o_proj", 1e-4, 500.0)) == pytest.approx(0.05)
    assert allowed(1e-3, ("a.o_proj", 2.0, 0.99)) == 2e-3
    assert allowed(1.0, whole, (experts, 2.0, 0.0)) == pytest.approx(0.55)
    assert allowed(1.0, whole, (experts, 2.0, 0.0), merge_aware=True) == pytest.approx(0.05)


def test_a_file_in_mxfp4_is_nearer_than_the_base_where_that_can_be_told():
    # 3.11e-10 of 3.10e-10, as rank 1 with factors of 1e-3 gives, is noise either way.
    assert allowed_in_mxfp4(3.1e-10, 0.99, 2e-3) == 2e-3
    assert 0.4999 < allowed_in_mxfp4(0.5, 0.99, 2e-3) < 0.5
    assert allowed_in_mxfp4(0.5, 0.99, 0.6) == 0.6
    # Nothing of the change can be held: the right file is the base.
    assert allowed_in_mxfp4(0.5, 1.0, 2e-3) == 0.5


@pytest.mark.slow
def test_a_right_export_in_mxfp4_of_a_small_adapter_is_green(small, tmp_path, lab):
    adapter = an_adapter(small, tmp_path / "adapter", scale=1e-3)
    lab.merge(small, adapter, tmp_path / "out", expert_format="mxfp4", accept_loss=True)
    checkpoint, opened = lab.open(small, adapter)
    result = verify(tmp_path / "out", checkpoint, opened)
    assert result.passed, result.checks


@pytest.mark.slow
def test_a_dense_base_off_the_grid_of_mxfp4_is_packed_green(dense_base, tmp_path, lab):
    weights = load_file(dense_base / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in weights.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            tensor += (torch.randn(tensor.shape, generator=generator) * 0.02).bfloat16()
    base = tiny_checkpoint(tmp_path / "base", layers=2, experts=4, format="bf16")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    small = an_adapter(base, tmp_path / "adapter", scale=0.01)
    lab.merge(base, small, tmp_path / "out", expert_format="mxfp4", accept_loss=True)
    checkpoint, opened = lab.open(base, small)
    result = verify(tmp_path / "out", checkpoint, opened)
    assert result.passed, result.checks
    figures = next(check.figures for check in result.checks if check.name == "logits")
    assert figures["kl"] > figures["kl_base"] > 0
