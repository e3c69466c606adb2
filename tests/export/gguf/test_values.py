"""A GGUF holds the values of the safetensors export of the same merge, and says the same of it."""

import json

import pytest
import torch
from gptoss_kernels import dequantize_reference

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.export.merge.merge import MergeOptions, TooLittleSurvives, merge
from gptoss_tune.export.verify.verify import verify
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights.gguf.file import open_gguf

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INSIDE = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp.weight": "mlp.router.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
    **{
        f"attn_{theirs}.{part}": f"self_attn.{ours}_proj.{part}"
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))
        for part in ("weight", "bias")
    },
}


def expected_values(weights):
    """Every tensor of a GGUF as fp32, written down from a safetensors export by the release's
    own rules: rows of gate and up in turn, dense experts [E, in, out]."""
    layers = 1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name)
    found = {theirs: weights[ours].float() for theirs, ours in OUTSIDE.items()}
    for layer in range(layers):
        blk, prefix = f"blk.{layer}", f"model.layers.{layer}"
        for theirs, ours in INSIDE.items():
            found[f"{blk}.{theirs}"] = weights[f"{prefix}.{ours}"].float()
        experts = {}
        for projection in ("gate_up_proj", "down_proj"):
            key = f"{prefix}.mlp.experts.{projection}"
            experts[f"{projection}.bias"] = weights[f"{key}_bias"].float()
            if f"{key}_blocks" in weights:
                packed = (weights[f"{key}_blocks"], weights[f"{key}_scales"])
                dense = dequantize_reference(*packed, dtype=torch.float32)
            else:
                dense = weights[key].float().transpose(1, 2)
            experts[f"{projection}.weight"] = dense
        for part in ("weight", "bias"):
            both = experts[f"gate_up_proj.{part}"]
            found[f"{blk}.ffn_gate_exps.{part}"] = both[:, 0::2]
            found[f"{blk}.ffn_up_exps.{part}"] = both[:, 1::2]
            found[f"{blk}.ffn_down_exps.{part}"] = experts[f"down_proj.{part}"]
    return found


def assert_same_values(gguf, folder, weights):
    found, expected = gguf.values(folder), expected_values(weights)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def without(report, *keys):
    return {key: value for key, value in report.items() if key not in keys}


CONTAINER = ("container", "name", "computed_by", "bytes", "max_shard_size")


@pytest.mark.slow
@pytest.mark.parametrize("expert_format", ["mxfp4", "bf16"])
@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4 base", "bf16 base"])
def test_the_values_are_those_of_the_safetensors_export(
    light, light_dense, adapter, gguf, lab, tmp_path, expert_format, packed
):
    base = light if packed else light_dense
    options = {"expert_format": expert_format, "accept_loss": True}
    # The adapter was made on the packed base, whose dense twin has the same weights.
    adapters = {adapter: 1.0} if packed else None
    ours = gguf.merge(base, adapters, tmp_path / "gguf", **options)
    if packed:
        theirs = lab.merge(base, adapters, tmp_path / "out", **options)
    else:
        checkpoint, _ = lab.open(base)
        theirs = merge(checkpoint, [], tmp_path / "out", MergeOptions(**options))
    assert_same_values(gguf, tmp_path / "gguf", lab.weights(tmp_path / "out"))
    assert without(ours, *CONTAINER) == without(theirs, "bytes", "max_shard_size")
    assert json.loads((tmp_path / "gguf" / "merge_report.json").read_text()) == ours


def test_the_base_alone_keeps_its_codes(light, gguf, lab, tmp_path):
    gguf.merge(light, None, tmp_path / "out", expert_format="mxfp4")
    assert_same_values(gguf, tmp_path / "out", lab.weights(light))


def test_a_weighted_sum_of_adapters(light, adapter, gguf, lab, tmp_path):
    second = lab.adapter(light, tmp_path / "second", seed=3, target_parameters=None)
    adapters = {adapter: 0.5, second: -2.0}
    options = {"expert_format": "mxfp4", "accept_loss": True}
    gguf.merge(light, adapters, tmp_path / "gguf", **options)
    lab.merge(light, adapters, tmp_path / "out", **options)
    assert_same_values(gguf, tmp_path / "gguf", lab.weights(tmp_path / "out"))


@pytest.mark.parametrize("expert_format", ["mxfp4", "bf16"])
def test_a_merge_aware_run_is_the_weights_of_training(
    light, adapter_copy, gguf, lab, tmp_path, expert_format
):
    (adapter_copy / "run.json").write_text(json.dumps({"recipe": {"lora": {"merge_aware": True}}}))
    report = gguf.merge(light, adapter_copy, tmp_path / "gguf", expert_format=expert_format)
    assert report["merge_aware"] is True
    assert [stack["survived"] for stack in report["survival"]["stacks"]] == [1.0] * 4
    lab.merge(light, adapter_copy, tmp_path / "out", expert_format=expert_format)
    assert_same_values(gguf, tmp_path / "gguf", lab.weights(tmp_path / "out"))


def test_stacks_are_reported_in_the_order_of_the_model(packed_gguf):
    _, report = packed_gguf
    modules = [stack["module"] for stack in report["survival"]["stacks"]]
    names = ("gate_up_proj", "down_proj")
    assert modules == [f"model.layers.{i}.mlp.experts.{name}" for i in range(2) for name in names]


def test_too_little_survival_stops_unless_accepted(light, adapter, gguf, tmp_path):
    with pytest.raises(TooLittleSurvives, match=r"export with --format gguf-bf16") as refused:
        gguf.merge(light, adapter, tmp_path / "out", expert_format="mxfp4")
    assert not (tmp_path / "out").exists()
    report = gguf.merge(
        light, adapter, tmp_path / "out", expert_format="mxfp4", min_survival=refused.value.share
    )
    assert report["survival"]["total"] == refused.value.share
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_lies_in_the_folder(packed_gguf, light):
    out, _ = packed_gguf
    names = {"LICENSE", "NOTICE", "manifest.json", "merge_report.json", "tuned-mxfp4.gguf"}
    assert {p.name for p in out.iterdir()} == names
    assert list(json.loads((out / "manifest.json").read_text())["files"]) == ["tuned-mxfp4.gguf"]
    assert (out / "LICENSE").read_bytes() == (light / "LICENSE").read_bytes()
    assert "changed by fine-tuning" in (out / "NOTICE").read_text()


def test_large_files_are_divided(light, adapter, gguf, packed_gguf, tmp_path):
    whole, _ = packed_gguf
    options = {"expert_format": "mxfp4", "accept_loss": True, "max_shard_size": 30_000_000}
    gguf.merge(light, adapter, tmp_path / "tuned", **options)
    names = [f"tuned-mxfp4-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert sorted(p.name for p in (tmp_path / "tuned").glob("*.gguf")) == names
    manifest = json.loads((tmp_path / "tuned" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == names
    one, several = gguf.values(whole), gguf.values(tmp_path / "tuned")
    assert list(one) == list(several)
    assert all(torch.equal(tensor, several[name]) for name, tensor in one.items())
    assert open_gguf(whole).keys == open_gguf(tmp_path / "tuned").keys


def test_a_base_under_other_names_is_read(light, gguf, lab, packed_gguf, tmp_path):
    import shutil

    from safetensors.torch import save_file

    other = shutil.copytree(light, tmp_path / "base")
    weights = {f"module.{name}": tensor for name, tensor in lab.weights(light).items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    gguf.merge(other, None, tmp_path / "out", expert_format="mxfp4")
    assert_same_values(gguf, tmp_path / "out", lab.weights(light))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"swiglu_limit": 5.0}, r"swiglu_limit is 5\.0; llama.cpp computes with 7\.0"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types are not sliding and full in turn"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 32.0, "attention_factor": 2.0}},
            r"attention_factor of its rotary embedding is 2\.0",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(gguf, lab, tmp_path, changes, said):
    base = tiny_checkpoint(tmp_path / "base", layers=2, experts=2)
    if "tie_word_embeddings" in changes:
        from safetensors.torch import save_file

        weights = lab.weights(base)
        weights.pop("lm_head.weight")
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    lab.edit_json(base / "config.json", **changes)
    with pytest.raises(CheckpointError, match=said):
        gguf.merge(base, None, tmp_path / "out", expert_format="mxfp4")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_foreign_tokenizer_is_refused(light, gguf, tmp_path):
    import shutil

    base = shutil.copytree(light, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    tokenizer["pre_tokenizer"]["trim_offsets"] = True
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="pre_tokenizer is not the one of gpt-oss"):
        gguf.merge(base, None, tmp_path / "out", expert_format="mxfp4")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_two_words_for_one_token_are_refused(light, gguf, tmp_path):
    import shutil

    base = shutil.copytree(light, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    # The library tokenizers numbers added tokens after the others, whatever the file says.
    words = tokenizer["model"]["vocab"]
    words[max(words, key=words.get)] += 1
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="two words for token"):
        gguf.merge(base, None, tmp_path / "out", expert_format="mxfp4")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_without_the_library_it_says_what_to_install(light, gguf, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MachineError, match=r"pip install \"gptoss-tune\[gguf\]\""):
        gguf.merge(light, None, tmp_path / "out", expert_format="mxfp4")
    assert not any(tmp_path.iterdir())


def test_a_head_that_was_trained_whole_lies_in_an_mxfp4_gguf(light, gguf, lab, tmp_path):
    """Beside factors of the experts, which are packed again."""
    adapter = lab.adapter(light, tmp_path / "adapter", modules_to_save=["lm_head"])

    def moved(weights):
        head = "base_model.model.lm_head.weight"
        return {**weights, head: weights[head] + 0.05 * torch.randn_like(weights[head])}

    lab.edit_weights(adapter, moved)
    options = {"expert_format": "mxfp4", "accept_loss": True}
    lab.merge(light, adapter, tmp_path / "folder", **options)
    gguf.merge(light, adapter, tmp_path / "gguf", **options)
    weights, stored = lab.weights(tmp_path / "folder"), lab.weights(light)
    assert not torch.equal(weights["lm_head.weight"], stored["lm_head.weight"])
    assert_same_values(gguf, tmp_path / "gguf", weights)
    checkpoint, opened = lab.open(light, adapter)
    checks = verify(tmp_path / "gguf", checkpoint, opened, logits=False).checks
    assert all(check.passed is not False for check in checks), checks
