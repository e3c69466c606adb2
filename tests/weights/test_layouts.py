"""Checkpoints that other programs saved: read right, or refused for what they are."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.paths import stays_inside
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LAYER = "model.layers.0."


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    out = tmp_path_factory.mktemp("layouts") / "dense"
    return tiny_checkpoint(out, layers=1, experts=2, format="bf16")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("layouts") / "packed", layers=1, experts=2)


@pytest.fixture
def saved(dense, packed, tmp_path):
    """Saves one of the two with its tensors under other names."""

    def save(change, source=dense):
        out = tmp_path / "saved"
        out.mkdir()
        for file in source.iterdir():
            if file.name != SINGLE:
                os.link(file, out / file.name)
        weights = load_file(source / SINGLE)
        weights = change(weights) or weights
        save_file({k: v.contiguous() for k, v in weights.items()}, out / SINGLE)
        return out

    save.packed = packed
    return save


def edit_config(folder, **changes):
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.unlink()
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def prefixed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def replaced(old, new):
    return lambda weights: {name.replace(old, new): tensor for name, tensor in weights.items()}


def as_transformers_saves_what_it_unpacked(weights):
    ends = (".gate_up_proj", ".down_proj")
    return {n + "_blocks" * n.endswith(ends): tensor for n, tensor in weights.items()}


RENAMINGS = {
    "dense blocks": as_transformers_saves_what_it_unpacked,
    "router.linear": replaced(".router.", ".router.linear."),
    "language_model": prefixed("language_model."),
    "inside model.language_model": lambda w: {
        n.replace("model.", "model.language_model.", 1): t for n, t in w.items()
    },
    "compiled": prefixed("_orig_mod."),
    "several GPUs, compiled": prefixed("module._orig_mod."),
    "PEFT's": prefixed("base_model.model."),
    "no model": lambda weights: {n.removeprefix("model."): t for n, t in weights.items()},
    "FSDP": replaced("layers.0.", "layers.0._fsdp_wrapped_module."),
    "checkpointed": replaced("layers.0.", "layers.0._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("renaming", RENAMINGS)
def test_a_renaming_is_read_and_not_handed_on(saved, dense, renaming):
    folder = saved(RENAMINGS[renaming])
    with pytest.raises(CheckpointError, match=r"gptoss-tune convert .* --out DIR"):
        open_checkpoint(folder)
    found, expected = open_checkpoint(folder, translate=True), open_checkpoint(dense)
    assert found.renamed and not expected.renamed and found.names() == expected.names()
    for name in expected.names():
        assert torch.equal(found.read(name), expected.read(name)), name
    assert found.fingerprint()["weights"] == expected.fingerprint()["weights"]


def test_packed_experts_keep_their_names(saved):
    folder = saved(prefixed("module."), saved.packed)
    found = open_checkpoint(folder, translate=True)
    assert found.expert_format == "mxfp4"
    name = f"{LAYER}mlp.experts.down_proj_blocks"
    assert torch.equal(found.read(name), open_checkpoint(saved.packed).read(name))


def one_by_one(weights):
    out = {n: t for n, t in weights.items() if ".experts." not in n}
    for name in ("gate_up_proj", "down_proj"):
        for expert, values in enumerate(weights[f"{LAYER}mlp.experts.{name}"]):
            out[f"{LAYER}mlp.experts.{expert}.{name}.weight"] = values.T.contiguous()
    return out


def second_layer(weights):
    copies = {n.replace("layers.0", "layers.1"): t.clone() for n, t in weights.items()}
    return {**weights, **copies}


def with_tensor(name):
    return lambda weights: {**weights, name: torch.ones(2, 2)}


def openai_names(weights):
    return {f"block.0.attn.{i}": tensor for i, tensor in enumerate(weights.values())}


def twice(weights):
    return {**weights, "module.lm_head.weight": weights["lm_head.weight"].clone()}


OTHERS = {
    "one by one, gate and up in one": (
        one_by_one,
        "one by one .*order of gate and up is",
    ),
    "a layer more": (second_layer, "config.json says 1 layers, the files hold 2"),
    "factors left over": (
        with_tensor(f"{LAYER}self_attn.q_proj.lora_A.default.weight"),
        "1 factors of an adapter beside the weights.*merge_and_unload",
    ),
    "unmerged": (
        lambda w: {
            **{n.replace("q_proj.", "q_proj.base_layer."): t for n, t in w.items()},
            f"{LAYER}self_attn.q_proj.lora_B.weight": torch.ones(2, 2),
        },
        "factors of an adapter",
    ),
    "OpenAI's names": (openai_names, "named as in OpenAI's own code and have no place"),
    "a buffer": (with_tensor("model.rotary_emb.inv_freq"), "1 are there that config.json does not"),
    "two models": (twice, "are both 'lm_head.weight'"),
    "without a head": (
        lambda w: {n: t for n, t in w.items() if n != "lm_head.weight"},
        "1 of .* tensors are missing, first 'lm_head.weight'",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_renaming_is_called_what_it_is(saved, other):
    change, message = OTHERS[other]
    folder = saved(change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder, translate=True)
    assert "download the checkpoint again" not in str(caught.value) or other == "without a head"


def test_a_tied_head_of_its_own_is_refused(saved):
    folder = saved(lambda weights: None)
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight'"):
        open_checkpoint(folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    out = tmp_path_factory.mktemp("layouts") / "sharded"
    return tiny_checkpoint(out, layers=1, experts=2, format="bf16", max_shard_size=30_000_000)


@pytest.mark.parametrize(
    "left_over", [SINGLE, "model-00001-of-00009.safetensors", "adapter_model.safetensors"]
)
def test_two_sets_of_weights_are_refused(sharded, dense, tmp_path, left_over):
    both = tmp_path / "both"
    shutil.copytree(sharded, both, copy_function=os.link)
    open_checkpoint(both)
    os.link(dense / SINGLE, both / left_over)
    with pytest.raises(CheckpointError, match=f"two sets of weights, .* and {left_over}"):
        open_checkpoint(both)


def test_a_shard_beside_a_single_file_is_refused(dense, tmp_path):
    both = shutil.copytree(dense, tmp_path / "both", copy_function=os.link)
    os.link(dense / SINGLE, both / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors and model-00001-of-00002"):
        open_checkpoint(both)


def test_an_index_of_the_single_file_alone_is_one_set(dense, tmp_path):
    folder = shutil.copytree(dense, tmp_path / "indexed", copy_function=os.link)
    names = dict.fromkeys(load_file(dense / SINGLE), SINGLE)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert len(open_checkpoint(folder).files) == 1


def test_an_index_that_names_the_single_file_among_others_is_refused(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "odd", copy_function=os.link)
    index = json.loads((folder / INDEX).read_text())
    first = min(index["weight_map"].values())
    os.rename(folder / first, folder / SINGLE)
    moved = {n: SINGLE if f == first else f for n, f in index["weight_map"].items()}
    (folder / INDEX).unlink()
    (folder / INDEX).write_text(json.dumps({**index, "weight_map": moved}))
    with pytest.raises(CheckpointError, match=r"transformers loads model.safetensors alone"):
        open_checkpoint(folder)


def test_a_configuration_that_names_the_weights_is_refused(dense, tmp_path):
    folder = shutil.copytree(dense, tmp_path / "named", copy_function=os.link)
    edit_config(folder, transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match="which transformers loads instead"):
        open_checkpoint(folder)


@pytest.mark.parametrize("layout", ["original", "metal"])
def test_other_parts_of_the_release_name_the_folder_to_use(dense, tmp_path, layout):
    release = shutil.copytree(dense, tmp_path / "release", copy_function=os.link)
    part = release / layout
    part.mkdir()
    if layout == "original":
        config = {"num_hidden_layers": 24, "num_experts": 32, "hidden_size": 2880}
        (part / "config.json").write_text(json.dumps(config))
    else:
        (part / "model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"{layout}/ of a release.*use the folder above"):
        open_checkpoint(part)
    open_checkpoint(release)


@pytest.fixture
def cache(dense, tmp_path):
    """A repository of the Hub's cache: links from a snapshot to blobs."""
    repository = tmp_path / "hub" / "models--openai--gpt-oss-20b"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(dense.iterdir())):
        os.link(file, blobs / f"b{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/b{i}")
    return snapshot


def test_a_link_to_a_snapshot_and_a_moved_cache_are_read(cache, tmp_path, monkeypatch):
    link = tmp_path / "base"
    link.symlink_to(cache)
    assert open_checkpoint(link).names() == open_checkpoint(cache).names()
    monkeypatch.chdir(tmp_path)
    open_checkpoint("base")
    (tmp_path / "again").symlink_to("base")
    open_checkpoint("again")
    shutil.move(tmp_path / "hub", tmp_path / "disk")
    (tmp_path / "hub").symlink_to(tmp_path / "disk")
    open_checkpoint(cache)


def test_blobs_on_another_disk_are_read(cache, tmp_path):
    blobs = cache.parents[1] / "blobs"
    shutil.move(blobs, tmp_path / "disk")
    blobs.symlink_to(tmp_path / "disk")
    open_checkpoint(cache)
    (tmp_path / "disk" / "b99.incomplete").touch()
    open_checkpoint(cache)


def test_a_strangers_link_to_a_folder_of_secrets_is_refused(cache, tmp_path):
    secrets, blobs = tmp_path / "secrets", cache.parents[1] / "blobs"
    secrets.mkdir()
    shutil.rmtree(blobs)
    blobs.symlink_to(secrets)
    (secrets / "id_rsa").touch()
    (secrets / "known_hosts").touch()
    for file in cache.iterdir():
        file.unlink()
    (cache / "tokenizer_config.json").symlink_to("../../blobs/id_rsa")
    assert not stays_inside(cache, cache / "tokenizer_config.json")
    # Guessing at names beside it is seen by those that are not there.
    for name in ("known_hosts", "id_ed25519"):
        (cache / f"{name}.jinja").symlink_to(f"../../blobs/{name}")
    assert not stays_inside(cache, cache / "tokenizer_config.json")
    (cache / "elsewhere.json").symlink_to(tmp_path / "elsewhere")
    assert not stays_inside(cache, cache / "elsewhere.json")
