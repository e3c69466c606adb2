"""Every adapter that cannot be merged is refused in one sentence, before anything is written."""

import json

import pytest
import torch
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.weights.sources import adapter_folder, base_name

EXPERT_A = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_A.weight"
LINEAR_B = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"


def without(part):
    return lambda weights: {k: v for k, v in weights.items() if part not in k}


def with_nan(name):
    def change(weights):
        weights[name][0, 1] = float("nan")

    return change


def renamed(old, new):
    return lambda weights: {k.replace(old, new): v for k, v in weights.items()}


def cut(name):
    return lambda weights: {**weights, name: weights[name][:, :-1].contiguous()}


WEIGHTS = {
    "expert keys dropped": (without(".experts."), r"missing \(8 of experts\)"),
    "one layer's down dropped": (
        without("layers.1.mlp.experts.lora_B"),
        "1 of 24 factors .* are missing",
    ),
    "an unread key": (
        lambda w: {**w, "base_model.model.extra.lora_A.weight": torch.ones(2, 2)},
        "targeted by nothing",
    ),
    "NaN in an expert": (with_nan(EXPERT_A), "holds NaN or infinity"),
    "NaN in attention": (with_nan(LINEAR_B), "holds NaN or infinity"),
    "other inputs": (cut(EXPERT_A), "the adapter is of another base"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be_trusted(base, adapter_copy, tmp_path, lab, case):
    change, message = WEIGHTS[case]
    lab.edit_weights(adapter_copy, change)
    with pytest.raises(CheckpointError, match=message):
        lab.merge(base, adapter_copy, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


CONFIGS = {
    "use_dora": (True, "PEFT has no DoRA for target_parameters"),
    "lora_bias": (True, "promises a bias on B of .*q_proj, and the file has none"),
    "bias": ("all", "biases of the base were trained beside the factors; expected 'none'"),
    "modules_to_save": (["lm_head"], "1 of 1 tensors that modules_to_save promises are missing"),
    "layer_replication": ([[0, 2], [1, 2]], "another architecture"),
    "use_qalora": (True, "pools its inputs in groups"),
    "alora_invocation_tokens": ([200006], "acts on the tokens after its invocation alone"),
    "init_lora_weights": ("pissa", "changed the base before the training"),
    "peft_type": ("LOHA", "expected 'LORA'"),
    "r": (0, "expected a positive number"),
    "lora_alpha": ("16", "expected a positive number"),
    "rank_pattern": ({}, "factors of rank 3, adapter_config.json says 4"),
    "target_modules": (["router"], "adapts through target_parameters alone"),
}


@pytest.mark.parametrize("key", CONFIGS)
def test_configurations_that_cannot_be_merged(base, adapter_copy, tmp_path, lab, key):
    value, message = CONFIGS[key]
    lab.edit_json(adapter_copy / "adapter_config.json", **{key: value})
    with pytest.raises(CheckpointError, match=message):
        lab.merge(base, adapter_copy, tmp_path / "out")


def test_an_adapter_of_another_architecture(base, adapter_copy, lab):
    changes = {"target_modules": ["fc1"], "target_parameters": []}
    lab.edit_json(adapter_copy / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match="match nothing"):
        lab.open(base, adapter_copy)


def test_an_adapter_of_another_base_by_shape_and_by_hash(base, adapter_copy, tmp_path, lab):
    wider = tiny_checkpoint(tmp_path / "wider", layers=2, experts=4, intermediate=64)
    with pytest.raises(CheckpointError, match="of another base"):
        lab.open(wider, adapter_copy)
    record = {"base": {"name": str(base), "fingerprint": open_checkpoint(base).fingerprint()}}
    (adapter_copy / "run.json").write_text(json.dumps(record))
    lab.open(base, adapter_copy)
    other = tiny_checkpoint(tmp_path / "other", layers=2, experts=4, seed=7)
    with pytest.raises(CheckpointError, match="base whose weights differ"):
        lab.open(other, adapter_copy)
    lab.open(other, adapter_copy, other_base=True)


def swap_experts(weights):
    """What PEFT 0.19.0 saved: A ``[E*r, out]``, B ``[in, r*E]``."""
    out = dict(weights)
    for name in [n for n in weights if ".experts." in n and "lora_A" in n]:
        a, b = weights[name], weights[name.replace("lora_A", "lora_B")]
        stacked_a, stacked_b = a.unflatten(0, (4, 3)), b.unflatten(1, (3, 4))
        out[name] = stacked_b.permute(2, 1, 0).reshape(12, -1).contiguous()
        swapped = stacked_a.permute(2, 1, 0).reshape(-1, 12)
        out[name.replace("lora_A", "lora_B")] = swapped.contiguous()
    return out


def test_swapped_factors_are_found_and_read_right_on_request(base, adapter, adapter_copy, lab):
    lab.edit_weights(adapter_copy, swap_experts)
    with pytest.raises(CheckpointError, match="in and out swapped, as PEFT"):
        lab.open(base, adapter_copy)
    checkpoint = open_checkpoint(base)
    repaired = open_adapter(adapter_copy, checkpoint, repair=True)
    original = open_adapter(adapter, checkpoint)
    for module in original.targets:
        expected, got = original.read(module), repaired.read(module)
        assert torch.equal(got.A, expected.A) and torch.equal(got.B, expected.B), module


def test_half_swapped_factors_are_refused(base, adapter_copy, lab):
    def half(weights):
        swapped = swap_experts(weights)
        return {k: swapped[k] if "layers.0" in k else v for k, v in weights.items()}

    lab.edit_weights(adapter_copy, half)
    with pytest.raises(CheckpointError, match="put together from two adapters"):
        lab.open(base, adapter_copy)


def test_pickle_missing_and_unfinished_adapters(base, adapter_copy, tmp_path, lab):
    weights = adapter_copy / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(CheckpointError, match="the adapter is incomplete"):
        lab.open(base, adapter_copy)
    (adapter_copy / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="pickle file, which can run code"):
        lab.open(base, adapter_copy)
    weights.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        lab.open(base, adapter_copy)
    with pytest.raises(CheckpointError, match="no such folder"):
        adapter_folder(tmp_path / "nowhere")
    run = tmp_path / "run"
    (run / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"has not finished .*checkpoint-3"):
        adapter_folder(run)
    (run / "checkpoint-3").rmdir()
    with pytest.raises(CheckpointError, match="expected a run"):
        adapter_folder(run)


def test_adapters_of_different_bases_need_a_named_one(adapter, adapter_copy, lab):
    lab.edit_json(adapter_copy / "adapter_config.json", base_model_name_or_path="someone/else")
    with pytest.raises(CheckpointError, match="different bases"):
        base_name([adapter, adapter_copy])
    lab.edit_json(adapter_copy / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="names no base"):
        base_name([adapter_copy])


def test_an_output_that_exists_is_not_touched(base, adapter, tmp_path, lab):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="never overwritten"):
        lab.merge(base, adapter, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["precious"]


def test_a_disk_that_cannot_hold_the_result(base, adapter, tmp_path, lab, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(MachineError, match=r"the merge needs 0\.1 GB more") as caught:
        lab.merge(base, adapter, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_no_part_of_a_file(base, adapter, tmp_path, lab):
    # A real ENOSPC: a file size limit makes the kernel refuse the write.
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(MachineError, match="a file of this size is not allowed"):
            lab.merge(base, adapter, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())
    lab.merge(base, adapter, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_second_merge_into_the_same_folder_waits_its_turn(base, adapter, tmp_path, lab):
    checkpoint, opened = lab.open(base, adapter)

    def inspect(folder):
        with pytest.raises(MachineError, match="another merge is writing it"):
            lab.merge(base, adapter, tmp_path / "out")

    merge(checkpoint, opened, tmp_path / "out", MergeOptions(), inspect=inspect)
    assert (tmp_path / "out" / "config.json").exists()


def test_an_inspection_that_fails_keeps_the_name_from_appearing(base, adapter, tmp_path, lab):
    checkpoint, opened = lab.open(base, adapter)

    def inspect(folder):
        raise CheckpointError("red")

    with pytest.raises(CheckpointError, match="red"):
        merge(checkpoint, opened, tmp_path / "out", MergeOptions(), inspect=inspect)
    assert not (tmp_path / "out").exists()


def test_the_command_says_one_sentence_and_exits_with_two(tmp_path):
    arguments = ["merge", str(tmp_path / "no"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, CheckpointError)
    assert result.exception.exit_code == 2
    weight = CliRunner().invoke(app, ["merge", "x=heavy", "--out", str(tmp_path / "out")])
    assert weight.exit_code == 2 and "is no number" in weight.output
