"""Every way a checkpoint can be wrong is found when it is opened, and said in one sentence."""

import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.errors import CheckpointError, HubError
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.safetensors_file import SafetensorsFile

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoint") / "base"
    return tiny_checkpoint(out, layers=1, experts=2, max_shard_size=200_000)


@pytest.fixture
def base(original, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in original.iterdir():
        if file.name != "tokenizer.json":
            os.link(file, copy / file.name)
    return copy


def rewrite(path, content):
    """Replace a hard-linked file without touching the original."""
    path.unlink()
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def edit(path, **changes):
    value = {**json.loads(path.read_text()), **changes}
    rewrite(path, {k: v for k, v in value.items() if v is not ...})


def a_shard(folder, tensor="model.layers.0.mlp.router.weight"):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def test_tensors_read_equal_safetensors_own_reader(base):
    checkpoint = open_checkpoint(base)
    assert checkpoint.expert_format == "mxfp4"
    expected = {}
    for file in base.glob("*.safetensors"):
        expected.update(load_file(file))
    assert set(checkpoint.names()) == set(expected) and len(expected) == 22
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor), name
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (tensor.shape, tensor.dtype)
    experts = "model.layers.0.mlp.experts.down_proj_blocks"
    assert torch.equal(checkpoint.read_rows(experts, 1, 2), expected[experts][1:2])
    assert checkpoint.nbytes() == sum(t.nbytes for t in expected.values())
    assert checkpoint.names()[0] == "model.embed_tokens.weight"


def test_the_fingerprint_tells_weights_apart_and_ignores_sharding(tmp_path, original):
    first = open_checkpoint(original).fingerprint()
    arguments = {"layers": 1, "experts": 2}
    whole = open_checkpoint(tiny_checkpoint(tmp_path / "whole", **arguments)).fingerprint()
    other = open_checkpoint(tiny_checkpoint(tmp_path / "o", seed=1, **arguments)).fingerprint()
    assert whole == first
    assert other["config"] == first["config"] and other["weights"] != first["weights"]


def test_a_dense_checkpoint_is_recognised(tmp_path):
    dense = tiny_checkpoint(tmp_path / "dense", layers=1, experts=2, format="bf16")
    checkpoint = open_checkpoint(dense)
    assert checkpoint.expert_format == "bf16"
    assert checkpoint.shape("model.layers.0.mlp.experts.down_proj") == (2, 96, 64)


def damage_missing(base):
    a_shard(base).unlink()


def damage_truncated(base):
    shard = a_shard(base)
    rewrite(shard, shard.read_bytes()[:-100])


def damage_longer(base):
    shard = a_shard(base)
    rewrite(shard, shard.read_bytes() + b"\0")


def damage_header_cut(base):
    shard = a_shard(base)
    rewrite(shard, shard.read_bytes()[:20])


def damage_html(base):
    rewrite(a_shard(base), b"<html>404 not found</html>" * 10)


def damage_header_json(base):
    shard = a_shard(base)
    content = bytearray(shard.read_bytes())
    content[8] = ord("[")
    rewrite(shard, bytes(content))


def damage_offsets(base):
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    rewrite(a_shard(base), struct.pack("<Q", len(header)) + header + b"\0" * 8)


def damage_architecture(base):
    edit(base / "config.json", architectures=["LlamaForCausalLM"])


def damage_config_missing(base):
    (base / "config.json").unlink()


def damage_config_json(base):
    rewrite(base / "config.json", b"{")


def damage_config_size(base):
    edit(base / "config.json", hidden_size=...)


def damage_other_shape(base):
    edit(base / "config.json", intermediate_size=128)


def damage_quantisation(base):
    edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes"})


def damage_stale_config(base):
    edit(base / "config.json", quantization_config=...)


def damage_more_layers(base):
    kinds = ["sliding_attention", "full_attention"]
    edit(base / "config.json", num_hidden_layers=2, layer_types=kinds)


def damage_index_json(base):
    rewrite(base / INDEX, b"[]")


def damage_index_of_another(base):
    index = json.loads((base / INDEX).read_text())
    weight_map = index["weight_map"]
    a, b = "model.embed_tokens.weight", "lm_head.weight"
    weight_map[a], weight_map[b] = weight_map[b], weight_map[a]
    rewrite(base / INDEX, index)


def damage_unlisted(base):
    index = json.loads((base / INDEX).read_text())
    del index["weight_map"]["model.layers.0.mlp.router.bias"]
    rewrite(base / INDEX, index)


def point_index_at(base, name):
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    rewrite(base / INDEX, index)


def damage_relative(base):
    point_index_at(base, "../outside.safetensors")


def damage_absolute(base):
    point_index_at(base, "/etc/passwd.safetensors")


def damage_pickle_in_index(base):
    point_index_at(base, "pytorch_model.bin")


def damage_symlink(base):
    shard = a_shard(base)
    outside = base.parent / "outside.safetensors"
    shutil.copy(shard, outside)
    shard.unlink()
    shard.symlink_to(outside)


def damage_pickle(base):
    for file in [*base.glob("*.safetensors"), base / INDEX]:
        file.unlink()
    (base / "pytorch_model.bin").write_bytes(b"x")


def damage_empty(base):
    for file in [*base.glob("*.safetensors"), base / INDEX]:
        file.unlink()


def damage_dtype(base):
    shard = a_shard(base)
    tensors = load_file(shard)
    name = "model.layers.0.mlp.router.weight"
    tensors[name] = tensors[name].int()
    shard.unlink()
    save_file(tensors, shard)


DAMAGES = {
    damage_missing: r"names 'model-.*', which is missing",
    damage_truncated: "according to its header; the file is truncated",
    damage_longer: "according to its header",
    damage_header_cut: "not a whole safetensors file",
    damage_html: "not a whole safetensors file",
    damage_header_json: "header cannot be read",
    damage_offsets: "claims 8 bytes, its shape needs 16",
    damage_architecture: "expected \\['GptOssForCausalLM'\\]",
    damage_config_missing: "no such file; the weights beside it cannot be told apart",
    damage_config_json: "cannot be read as JSON",
    damage_config_size: "hidden_size is None; expected a whole number",
    damage_other_shape: "config and weights are of different models",
    damage_quantisation: "'bitsandbytes': quantised by .*expected 'mxfp4'",
    damage_stale_config: "holds MXFP4 experts, but config.json has no quantization_config",
    damage_more_layers: "19 of 41 tensors are missing",
    damage_index_json: "expected a JSON object",
    damage_index_of_another: "which does not hold it",
    damage_unlisted: "holds it; the index is of another download",
    damage_relative: "leaves the folder; refused",
    damage_absolute: "leaves the folder; refused",
    damage_pickle_in_index: "expected a .safetensors file",
    damage_symlink: "outside the folder; refused",
    damage_pickle: "pickle files",
    damage_empty: "holds neither",
    damage_dtype: "has dtype torch.int32, expected a floating dtype",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_checkpoint_is_refused_with_its_reason(base, damage):
    damage(base)
    with pytest.raises(CheckpointError, match=DAMAGES[damage]) as caught:
        open_checkpoint(base)
    assert str(base) in str(caught.value)


def test_a_dense_checkpoint_with_a_stale_config_is_refused(tmp_path):
    dense = tiny_checkpoint(tmp_path / "dense", layers=1, experts=2, format="bf16")
    edit(dense / "config.json", quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match="the experts are not packed"):
        open_checkpoint(dense)


def test_links_into_the_hub_cache_of_the_same_repository_are_followed(base, tmp_path):
    snapshot = tmp_path / "models--openai--gpt-oss" / "snapshots" / "abc"
    blobs = tmp_path / "models--openai--gpt-oss" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(base.iterdir())):
        shutil.copy(file, blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert open_checkpoint(snapshot).names() == open_checkpoint(base).names()


def test_a_tensor_that_is_not_there_and_a_file_cut_while_open(base):
    checkpoint = open_checkpoint(base)
    with pytest.raises(CheckpointError, match="has no tensor"):
        checkpoint.read("model.layers.7.x")
    shard = a_shard(base)
    file = SafetensorsFile(shard)
    rewrite(shard, shard.read_bytes()[:-100])
    last = max(file.entries.values(), key=lambda e: e.offset)
    with pytest.raises(CheckpointError, match="cut while it was read"):
        file.read(last.spec.name)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("nowhere/at/all", None, "no such folder"),
        ("FILE", None, "is one file of a checkpoint; name its folder"),
        ("FOLDER", "main", "has no revision 'main'"),
    ],
)
def test_names_that_are_no_checkpoint(base, name, revision, message):
    name = {"FILE": base / "config.json", "FOLDER": base}.get(name, name)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(name, revision)


def test_a_hub_name_without_a_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match="not in the cache and the Hub did not answer") as caught:
        open_checkpoint("openai/gpt-oss-20b")
    assert caught.value.exit_code == 3
