"""verify is green on right files, whoever wrote them, and red on every planted fault."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.verify.verify import verify

GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"
O_PROJ = "model.layers.1.self_attn.o_proj.weight"


def red(result):
    return {check.name for check in result.checks if check.passed is False}


@pytest.fixture
def damaged(merged, tmp_path):
    """A merged folder to change, as if another program had written it: without its hashes."""
    hashes = shutil.ignore_patterns("manifest.json")
    return shutil.copytree(merged, tmp_path / "damaged", ignore=hashes)


@pytest.fixture(scope="module")
def packed(base, adapter, tmp_path_factory, lab):
    out = tmp_path_factory.mktemp("verify") / "packed"
    lab.merge(base, adapter, out, expert_format="mxfp4", accept_loss=True)
    return out


def change_weights(folder, change):
    path = folder / "model.safetensors"
    (folder / "manifest.json").unlink(missing_ok=True)
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def check(lab, base, adapter, folder, **options):
    checkpoint, adapters = lab.open(base, adapter)
    return verify(folder, checkpoint, adapters, **options)


def test_our_merge_is_green_and_holds_the_change(base, adapter, merged, lab):
    result = check(lab, base, adapter, merged)
    assert result.passed and all(c.passed for c in result.checks), result.checks
    assert len(result.targets) == 2 * (4 + 2)
    for target in result.targets:
        assert 0.97 < target.held < 1.03 and abs(target.held - target.holdable) < 1e-3
        assert 0.9 < target.probe < 1.1
        assert target.delta_norm > 0
    figures = next(c for c in result.checks if c.name == "logits").figures
    assert figures["kl"] < 0.05 * figures["kl_base"] and figures["kl_base"] > 0.01
    json.dumps(result.as_dict())


@pytest.mark.slow
def test_pefts_own_merge_in_bf16_is_green(base, dense_base, adapter, tmp_path, lab):
    model = peft.PeftModel.from_pretrained(lab.plain_model(dense_base), adapter)
    model = model.merge_and_unload()
    model.save_pretrained(tmp_path / "peft")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, tmp_path / "peft")
    result = check(lab, base, adapter, tmp_path / "peft")
    # transformers rewrites config.json in its newer words; it means the same.
    assert result.passed, result.checks


def test_mxfp4_is_green_and_states_what_survived(base, adapter, packed, lab):
    result = check(lab, base, adapter, packed)
    assert result.passed, result.checks
    experts = [t for t in result.targets if ".experts." in t.module]
    assert all(0.5 < t.held < 0.99 for t in experts)


@pytest.mark.slow
def test_a_merge_aware_export_is_green_in_both_formats(base, adapter_copy, tmp_path, lab):
    record = {"recipe": {"lora": {"merge_aware": True}}}
    (adapter_copy / "run.json").write_text(json.dumps(record))
    for expert_format in ("mxfp4", "bf16"):
        out = tmp_path / expert_format
        lab.merge(base, adapter_copy, out, expert_format=expert_format)
        result = check(lab, base, adapter_copy, out)
        assert result.passed, result.checks
        name = f"{DOWN}_blocks" if expert_format == "mxfp4" else DOWN
        change_weights(out, lambda w, name=name: w[name][0].add_(1))
        assert "changes" in red(check(lab, base, adapter_copy, out, logits=False))


def transpose_experts(weights):
    # 64 x 96: the values of the change end up elsewhere, the shape stays.
    weights[DOWN] = weights[DOWN].transpose(1, 2).reshape(weights[DOWN].shape).contiguous()


def transposed_change(base_weights):
    def plant(weights):
        square = "model.layers.1.self_attn.q_proj.weight"
        before = base_weights[square]
        change = (weights[square].float() - before.float()).T.reshape(before.shape)
        weights[square] = (before.float() + change).bfloat16()

    return plant


def interleaved_wrongly(weights):
    gate, up = weights[GATE_UP][..., ::2], weights[GATE_UP][..., 1::2]
    weights[GATE_UP] = torch.cat([gate, up], dim=-1).contiguous()


def swap_two_experts(weights):
    weights[GATE_UP] = weights[GATE_UP][[1, 0, 2, 3]].contiguous()


def add_nan(weights):
    weights[O_PROJ][0, 0] = float("nan")


def touch_the_router(weights):
    weights["model.layers.0.mlp.router.weight"][0, 0] += 1


def double_change(base_weights):
    def plant(weights):
        before = base_weights[O_PROJ].float()
        weights[O_PROJ] = (before + 2 * (weights[O_PROJ].float() - before)).bfloat16()

    return plant


FAULTS = {
    "a transposed stack": (lambda before: transpose_experts, {"changes", "logits"}),
    "a transposed change": (transposed_change, {"changes"}),
    "gate and up apart": (lambda before: interleaved_wrongly, {"changes", "logits"}),
    "two experts swapped": (lambda before: swap_two_experts, {"changes", "logits"}),
    "a NaN": (lambda before: add_nan, {"finite", "changes"}),
    "a changed router": (lambda before: touch_the_router, {"untouched tensors"}),
    "a doubled change": (double_change, {"changes"}),
}


LATER = ("gate and up apart", "two experts swapped")


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[pytest.mark.slow] * (name in LATER)) for name in FAULTS]
)
def test_planted_faults_in_the_weights_are_red(base, adapter, damaged, lab, fault):
    plant, expected = FAULTS[fault]
    change_weights(damaged, plant(lab.weights(base)))
    assert expected <= red(check(lab, base, adapter, damaged, logits="logits" in expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    "small",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["large change", "below a rounding step"],
)
def test_a_dropped_expert_is_red(base, adapter_copy, tmp_path, lab, small):
    if small:  # no single weight moves by more than a bf16 step, yet the change is there
        lab.edit_weights(
            adapter_copy,
            lambda w: {
                k: v * (0.05 if ".experts." in k and "lora_B" in k else 1) for k, v in w.items()
            },
        )
    lab.merge(base, adapter_copy, tmp_path / "out")
    assert check(lab, base, adapter_copy, tmp_path / "out").passed
    plain = lab.plain_model(base).state_dict()[DOWN]

    def drop(weights):
        weights[DOWN][2] = plain[2]

    change_weights(tmp_path / "out", drop)
    result = check(lab, base, adapter_copy, tmp_path / "out", logits=False)
    assert red(result) == {"changes"}
    assert any("expert 2" in fault for target in result.targets for fault in target.faults)


@pytest.mark.slow
@pytest.mark.parametrize("disguise", ["dense_base", "base"], ids=["bf16", "MXFP4"])
def test_the_base_in_disguise_is_red(base, adapter, disguise, request, lab):
    result = check(lab, base, adapter, request.getfixturevalue(disguise))
    assert {"changes", "logits"} <= red(result)
    with pytest.raises(CheckpointError, match="does not hold what was trained"):
        result.require()


def test_an_untouched_block_is_red(base, adapter, packed, tmp_path, lab):
    out = shutil.copytree(packed, tmp_path / "out")
    before = lab.weights(base)

    def restore(weights):
        for part in ("blocks", "scales"):
            name = f"{GATE_UP}_{part}"
            weights[name][3, 5] = before[name][3, 5]

    change_weights(out, restore)
    result = check(lab, base, adapter, out, logits=False)
    assert red(result) == {"changes"}
    assert any("expert 3" in fault for target in result.targets for fault in target.faults)


def test_stale_and_altered_configurations_are_red(base, adapter, damaged, lab):
    lab.edit_json(damaged / "config.json", swiglu_limit=6.0)
    assert red(check(lab, base, adapter, damaged, logits=False)) == {"config"}
    lab.edit_json(damaged / "config.json", quantization_config={"quant_method": "mxfp4"})
    assert red(check(lab, base, adapter, damaged)) == {"files"}


def test_missing_companions_and_truncated_files_are_red(base, adapter, damaged, lab):
    (damaged / "chat_template.jinja").unlink()
    assert red(check(lab, base, adapter, damaged, logits=False)) == {"companions"}
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert red(check(lab, base, adapter, damaged)) == {"files"}


def test_a_target_that_was_never_trained_is_red(base, adapter_copy, tmp_path, lab):
    lab.edit_weights(
        adapter_copy,
        lambda w: {
            k: v * (0 if "layers.1.mlp" in k and "lora_B" in k else 1) for k, v in w.items()
        },
    )
    lab.merge(base, adapter_copy, tmp_path / "out")
    result = check(lab, base, adapter_copy, tmp_path / "out", logits=False)
    assert red(result) == {"changes"}
    assert "nothing was trained there" in str(result.checks)


def test_without_the_adapter_it_says_what_it_could_not_check(merged):
    result = verify(merged)
    assert result.passed
    assert {c.name for c in result.checks if c.passed is None} == {
        "config",
        "untouched tensors",
        "changes",
        "logits",
    }


@pytest.mark.slow
def test_commands(base, adapter, tmp_path, lab):
    run = CliRunner().invoke
    out = tmp_path / "out"
    result = run(app, ["merge", str(adapter), "--base", str(base), "--out", str(out), "--verify"])
    assert result.exit_code == 0, result.output
    assert "changes" in result.output and "logits" in result.output
    arguments = ["verify", str(out), "--adapter", str(adapter), "--base", str(base), "--json"]
    report = run(app, arguments)
    assert report.exit_code == 0 and json.loads(report.output)["passed"] is True
    change_weights(out, touch_the_router)
    broken = run(app, arguments)
    assert isinstance(broken.exception, CheckpointError)
    assert json.loads(broken.output)["passed"] is False


WEIGHTS, SETTINGS, HASHES = "model.safetensors", "generation_config.json", "manifest.json"


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", SETTINGS, HASHES])
def test_a_flipped_bit_is_seen_without_base_or_adapter(merged, tmp_path, name):
    out = shutil.copytree(merged, tmp_path / "out")
    assert verify(out).passed
    content = bytearray((out / name).read_bytes())
    # The last bit of a digit, which leaves JSON another number.
    digit = max(content.rfind(str(digit).encode()) for digit in range(10))
    content[-40 if name == WEIGHTS else digit] ^= 1
    (out / name).write_bytes(content)
    result = verify(out)
    assert red(result) == {"hashes"}, result.checks
    detail = next(check.detail for check in result.checks if check.name == "hashes")
    assert name in detail


def test_what_a_manifest_does_not_name_may_change(merged, tmp_path):
    out = shutil.copytree(merged, tmp_path / "out")
    (out / "README.md").write_text("by hand")
    (out / "NOTICE").write_text("longer")
    assert verify(out).passed
    (out / SETTINGS).unlink()
    assert red(verify(out)) == {"hashes", "companions"}


def test_a_manifest_of_another_program_says_nothing(merged, tmp_path):
    out = shutil.copytree(merged, tmp_path / "out")
    (out / HASHES).write_text(json.dumps({"version": 1}))
    hashes = next(check for check in verify(out).checks if check.name == "hashes")
    assert hashes.passed is None and "not checked" in hashes.detail
    lab_manifest = {"files": {"../escape": {"sha256": "0", "bytes": 1}}, "sha256": "0"}
    (out / HASHES).write_text(json.dumps(lab_manifest))
    assert red(verify(out)) == {"hashes"}
