"""MXFP4 exports: the released layout, the bytes of training, and an honest survival report."""

import json

import numpy as np
import pytest
import torch
from gptoss_kernels import (
    ExpertProjection,
    Mxfp4Weight,
    dequantize_reference,
    quantize_reference,
)
from gptoss_kernels.experts.projection import merged_mxfp4_expert

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

KEYS = [f"model.layers.{i}.mlp.experts.{p}_proj" for i in range(2) for p in ("gate_up", "down")]


def merge_aware(lab, adapter, aware=True):
    """Say in run.json how the adapter was trained, as a training run does."""
    (adapter / "run.json").write_text(json.dumps({"recipe": {"lora": {"merge_aware": aware}}}))
    return adapter


def decoded(weights, key):
    return dequantize_reference(
        weights[f"{key}_blocks"], weights[f"{key}_scales"], dtype=torch.float32
    )


@pytest.fixture(scope="module")
def exported(base, adapter, tmp_path_factory, lab):
    out = tmp_path_factory.mktemp("mxfp4") / "out"
    report = lab.merge(base, adapter, out, expert_format="mxfp4", accept_loss=True)
    return out, report


def test_the_result_has_the_released_layout(base, exported, lab):
    out, _ = exported
    before, after = lab.weights(base), lab.weights(out)
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
        n: (t.shape, t.dtype) for n, t in after.items()
    }
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert json.loads((out / name).read_text()) == json.loads((base / name).read_text())
    assert open_checkpoint(out).expert_format == "mxfp4"
    model = lab.plain_model(out)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_every_block_is_the_best_of_three_scales(base, adapter, exported, lab):
    out, _ = exported
    truth, after = lab.merged_by_peft(base, adapter), lab.weights(out)
    for key in KEYS:
        wanted = truth[key].transpose(1, 2).double()
        error = (decoded(after, key).double() - wanted).square().unflatten(-1, (-1, 32)).sum(-1)
        ocp = quantize_reference(wanted.float())
        plain = dequantize_reference(ocp.blocks, ocp.scales, dtype=torch.float32).double()
        ocp_error = (plain - wanted).square().unflatten(-1, (-1, 32)).sum(-1)
        assert (error <= ocp_error * (1 + 1e-5)).all(), key
        assert (error < ocp_error * 0.99).any(), key


def test_survival_is_the_share_of_the_change_that_is_left(base, adapter, exported, lab):
    out, report = exported
    truth, before, after = lab.merged_by_peft(base, adapter), lab.weights(base), lab.weights(out)
    kept = squared = 0.0
    for key, line in zip(KEYS, report["survival"]["stacks"], strict=True):
        assert line["module"] == key
        change = truth[key].transpose(1, 2).double() - decoded(before, key).double()
        held = decoded(after, key).double() - decoded(before, key).double()
        per_expert = (change * held).sum((1, 2)) / change.square().sum((1, 2))
        share = (change * held).sum() / change.square().sum()
        assert line["survived"] == pytest.approx(share.item(), rel=1e-3)
        error = (held - change).norm() / change.norm()
        assert line["error"] == pytest.approx(error.item(), rel=1e-3)
        assert line["delta_norm"] == pytest.approx(change.norm().item(), rel=1e-4)
        worst = line["worst_experts"]
        assert [w["expert"] for w in worst] == per_expert.argsort()[:3].tolist()
        assert worst[0]["survived"] == pytest.approx(per_expert.min().item(), rel=1e-3)
        kept, squared = kept + (change * held).sum(), squared + change.square().sum()
    assert report["survival"]["total"] == pytest.approx((kept / squared).item(), rel=1e-3)
    assert report["survival"]["total"] < 0.9
    assert json.loads((out / "merge_report.json").read_text())["survival"] == report["survival"]


def test_too_little_survival_stops_unless_accepted(base, adapter, tmp_path, lab):
    with pytest.raises(CheckpointError, match=r"survives MXFP4 .* would act like the base"):
        lab.merge(base, adapter, tmp_path / "out", expert_format="mxfp4")
    assert not (tmp_path / "out").exists()
    lab.merge(base, adapter, tmp_path / "out", expert_format="mxfp4", accept_loss=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_merge_aware_export_is_the_weights_of_training_bit_for_bit(
    base, adapter_copy, tmp_path, lab
):
    path = merge_aware(lab, adapter_copy)
    report = lab.merge(base, path, tmp_path / "out", expert_format="mxfp4")
    assert report["merge_aware"] is True
    assert [stack["survived"] for stack in report["survival"]["stacks"]] == [1.0] * 4
    assert [stack["error"] for stack in report["survival"]["stacks"]] == [0.0] * 4
    checkpoint = open_checkpoint(base)
    opened = open_adapter(path, checkpoint)
    after = lab.weights(tmp_path / "out")
    for key in KEYS:
        change = opened.read(key)
        stack = Mxfp4Weight(checkpoint.read(f"{key}_blocks"), checkpoint.read(f"{key}_scales"))
        projection = ExpertProjection(
            stack, None, lora_A=change.A, lora_B=change.B, scaling=change.scaling
        )
        got = decoded(after, key)
        for expert in range(4):
            assert torch.equal(got[expert], merged_mxfp4_expert(projection, expert)), key


def test_a_merge_aware_adapter_in_bf16_is_the_same_model(base, adapter_copy, tmp_path, lab):
    path = merge_aware(lab, adapter_copy)
    lab.merge(base, path, tmp_path / "packed", expert_format="mxfp4")
    lab.merge(base, path, tmp_path / "dense", expert_format="bf16")
    packed, dense = lab.weights(tmp_path / "packed"), lab.weights(tmp_path / "dense")
    for key in KEYS:
        assert torch.equal(dense[key].float(), decoded(packed, key).transpose(1, 2)), key


def test_blocks_without_a_change_keep_their_bytes(base, adapter_copy, tmp_path, lab):
    def only_expert_two(weights):
        for name, tensor in weights.items():
            if ".experts." in name and "lora_A" in name:
                rows = tensor.unflatten(0, (4, 3))
                rows[[0, 1, 3]] = 0
                rows[2, :, 32:] = 0  # the first block of the input axis alone
        return weights

    lab.edit_weights(adapter_copy, only_expert_two)
    lab.merge(base, adapter_copy, tmp_path / "out", expert_format="mxfp4", accept_loss=True)
    before, after = lab.weights(base), lab.weights(tmp_path / "out")
    for key in KEYS:
        for part in ("blocks", "scales"):
            old, new = before[f"{key}_{part}"], after[f"{key}_{part}"]
            assert torch.equal(old[[0, 1, 3]], new[[0, 1, 3]])
            assert torch.equal(old[2, :, 1:], new[2, :, 1:])
        assert not torch.equal(before[f"{key}_blocks"][2, :, 0], after[f"{key}_blocks"][2, :, 0])


def test_a_dense_base_of_decoded_values_packs_back_to_the_same_values(
    base, dense_base, tmp_path, lab
):
    attention_only = lab.adapter(base, tmp_path / "adapter", target_parameters=None)
    checkpoint, opened = lab.open(dense_base, attention_only)
    report = merge(checkpoint, opened, tmp_path / "out", MergeOptions(expert_format="mxfp4"))
    assert report["survival"] == {"total": 1.0, "stacks": []}
    before, after = lab.weights(base), lab.weights(tmp_path / "out")
    for key in KEYS:
        assert torch.equal(decoded(before, key), decoded(after, key))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"


def test_blocks_and_scales_in_different_shards(base, adapter, exported, tmp_path, lab):
    out, report = exported
    again = lab.merge(
        base,
        adapter,
        tmp_path / "out",
        expert_format="mxfp4",
        accept_loss=True,
        max_shard_size=1000,
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = index["weight_map"]
    assert files[f"{KEYS[0]}_blocks"] != files[f"{KEYS[0]}_scales"]
    expected = lab.weights(out)
    assert all(torch.equal(t, expected[n]) for n, t in lab.weights(tmp_path / "out").items())
    key = "survival"
    assert sorted(again[key]["stacks"], key=str) == sorted(report[key]["stacks"], key=str)


def test_the_bytes_follow_the_rules_of_openais_own_loader(exported, lab):
    # gpt_oss/torch/weights.py: low nibble at even places, high nibble at odd ones, along the packed
    # input axis; times two to the scale less 127; rows are outputs, gate and up interleaved.
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    values = np.array(table + [-v for v in table], dtype=np.float32)
    out, _ = exported
    weights, model = lab.weights(out), lab.plain_model(out)
    for key in KEYS:
        blocks = weights[f"{key}_blocks"].numpy()
        scales = weights[f"{key}_scales"].numpy().astype(np.int32) - 127
        rows = np.empty((*blocks.shape[:-1], 32), dtype=np.float32)
        rows[..., 0::2], rows[..., 1::2] = values[blocks & 15], values[blocks >> 4]
        decoded_rows = np.ldexp(rows, scales[..., None]).reshape(*blocks.shape[:2], -1)
        loaded = model.get_parameter(key).float().transpose(1, 2)
        assert torch.equal(torch.from_numpy(decoded_rows), loaded), key
