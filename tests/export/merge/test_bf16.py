"""Merged checkpoints against plain PEFT's merge_and_unload on plain transformers."""

import json

import peft
import pytest
import torch
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.response_template import RESPONSE_TEMPLATE
from gptoss_tune.weights import open_checkpoint

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"

# Two ways to sum a product in fp32 may round to neighbouring bf16 values: one step of 2^-8 (of 2^-7
# where the two lie on either side of a power of two).
ONE_ROUNDING = 2.0**-7


@pytest.fixture(scope="module")
def truth(base, adapter, lab):
    """PEFT's own merge in fp32, which is then rounded once."""
    return {name: t.bfloat16() for name, t in lab.merged_by_peft(base, adapter).items()}


def test_every_tensor_equals_pefts_merge_within_one_rounding(merged, truth, lab):
    ours = lab.weights(merged)
    assert set(ours) == set(truth)
    for name, expected in truth.items():
        got, wanted = ours[name].float(), expected.float()
        assert got.shape == wanted.shape, name
        assert ((got - wanted).abs() <= ONE_ROUNDING * wanted.abs()).all(), name
        assert (got == wanted).float().mean() > 0.999, name


def test_plain_transformers_gives_the_logits_of_base_and_adapter(base, adapter, merged, lab):
    tokens = torch.tensor([[200006, 1428, 200008, 40, 41, 42, 43, 200007]])
    plain = lab.plain_model(base, torch.float32)
    with torch.no_grad():
        untouched = plain(tokens).logits
        expected = peft.PeftModel.from_pretrained(plain, adapter)(tokens).logits
        got = lab.plain_model(merged, torch.float32)(tokens).logits
    change = (expected - untouched).pow(2).mean().sqrt()
    error = (got - expected).pow(2).mean().sqrt()
    assert change > 0.05 * expected.std()
    # bf16 weights against unrounded ones, relative to what the adapter changes.
    assert error < 0.05 * change


def test_the_result_is_a_whole_dense_checkpoint(base, merged):
    config = json.loads((merged / "config.json").read_text())
    original = json.loads((base / "config.json").read_text())
    del original["quantization_config"]
    assert config == {**original, "torch_dtype": "bfloat16"}
    assert open_checkpoint(merged).expert_format == "bf16"
    for name in (
        "tokenizer.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
        "LICENSE",
    ):
        assert (merged / name).read_bytes() == (base / name).read_bytes(), name
    # transformers serve is told how the answers of gpt-oss are laid out.
    settings = json.loads((merged / "tokenizer_config.json").read_text())
    assert settings.pop("response_template") == RESPONSE_TEMPLATE
    assert settings == json.loads((base / "tokenizer_config.json").read_text())
    assert "changed by fine-tuning" in (merged / "NOTICE").read_text()
    assert sorted(p.name for p in merged.parent.iterdir()) == ["bf16"]


def test_tensors_without_a_change_keep_their_bytes(base, merged, lab):
    before, after = lab.weights(base), lab.weights(merged)
    same = [n for n in after if "_proj" not in n or n.endswith("bias")]
    assert len(same) == 3 + 2 * 11
    for name in same:
        assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)), name


def test_a_bf16_base_gives_the_same_model_as_its_mxfp4_form(
    dense_base, adapter, merged, tmp_path, lab
):
    checkpoint, opened = lab.open(dense_base, adapter)
    merge(checkpoint, opened, tmp_path / "out", MergeOptions())
    ours = lab.weights(tmp_path / "out")
    for name, tensor in lab.weights(merged).items():
        assert torch.equal(ours[name], tensor), name


def test_sharding_changes_no_tensor(base, adapter, merged, tmp_path, lab):
    lab.merge(base, adapter, tmp_path / "out", max_shard_size=150_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 4
    ours, expected = lab.weights(tmp_path / "out"), lab.weights(merged)
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    open_checkpoint(tmp_path / "out")


def test_two_adapters_are_summed_with_their_weights(base, adapter, tmp_path, lab):
    second = lab.adapter(
        base,
        tmp_path / "second",
        seed=1,
        target_modules=["v_proj"],
        target_parameters=[DOWN],
        rank_pattern={},
        alpha_pattern={},
    )
    lab.merge(base, {adapter: 0.5, second: -2.0}, tmp_path / "out")
    ours = lab.weights(tmp_path / "out")
    before = lab.plain_model(base, torch.float32).state_dict()
    truth = {name: tensor.clone() for name, tensor in before.items()}
    for path, weight in ((adapter, 0.5), (second, -2.0)):
        for name, tensor in lab.merged_by_peft(base, path).items():
            truth[name] += weight * (tensor - before[name])
    for name, expected in truth.items():
        error = (ours[name].float() - expected).abs()
        # The differences above are of fp32 numbers near 1: their own error is about 1e-7.
        assert (error <= ONE_ROUNDING * expected.abs() + 1e-6).all(), name


@pytest.mark.parametrize(
    "changes",
    [
        {"target_parameters": [GATE_UP], "target_modules": ["q_proj"]},
        {"target_parameters": [DOWN], "target_modules": ["lm_head"]},
        {"target_parameters": [f"layers.1.{GATE_UP}"], "target_modules": r".*\.1\..*\.o_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "target_parameters": None},
        {"use_rslora": True, "rank_pattern": {}, "alpha_pattern": {}},
    ],
    ids=["gate_up alone", "down alone and head", "one layer by name", "one layer", "rslora"],
)
def test_partial_adapters_merge_as_peft_merges_them(base, tmp_path, changes, lab):
    path = lab.adapter(base, tmp_path / "adapter", **changes)
    lab.merge(base, path, tmp_path / "out")
    before, ours = lab.weights(base), lab.weights(tmp_path / "out")
    changed = 0
    for name, unrounded in lab.merged_by_peft(base, path).items():
        got, expected = ours[name].float(), unrounded.bfloat16().float()
        assert ((got - expected).abs() <= ONE_ROUNDING * expected.abs()).all(), name
        changed += name not in before or not torch.equal(before[name].float(), expected)
    assert changed > 0


def test_the_same_merge_gives_the_same_bytes(base, adapter, merged, tmp_path, lab):
    lab.merge(base, adapter, tmp_path / "out")
    assert lab.digests(tmp_path / "out") == lab.digests(merged)


def test_a_run_folder_and_its_recorded_base_are_enough(base, adapter_copy, tmp_path, merged, lab):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    adapter_copy.rename(run_folder / "adapter")
    record = {"base": {"name": str(base), "fingerprint": open_checkpoint(base).fingerprint()}}
    (run_folder / "run.json").write_text(json.dumps(record))
    config = run_folder / "adapter" / "adapter_config.json"
    lab.edit_json(config, base_model_name_or_path="elsewhere/entirely")
    arguments = ["merge", str(run_folder), "--out", str(tmp_path / "out"), "--format", "bf16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "bf16, 0.05 GB" in result.output
    expected = lab.weights(merged)
    ours = lab.weights(tmp_path / "out")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())
