"""Adapter files as programs save them: read right under other names, refused when a bit flipped."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.evaluate.load import open_evaluated_model
from gptoss_tune.model.initial_adapter import init_from
from gptoss_tune.run.checkpoints import publish
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

PREFIX = "base_model.model."


def renamed(change):
    return lambda weights: {change(name): tensor for name, tensor in weights.items()}


NAMES = {
    "the adapter's name": lambda n: n.replace(".weight", ".default.weight"),
    "another name": lambda n: n.replace(".weight", ".my-adapter_2.weight"),
    "compiled": lambda n: n.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled outside": lambda n: f"_orig_mod.{n}",
    "several GPUs": lambda n: f"module.{n}",
    "no prefix": lambda n: n.removeprefix(PREFIX),
    "no prefix, no model": lambda n: n.removeprefix(f"{PREFIX}model."),
    "checkpointed": lambda n: n.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "all at once": lambda n: f"module._orig_mod.{n}".replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("names", NAMES)
def test_other_names_are_read_and_not_handed_to_peft(base, adapter, adapter_copy, lab, names):
    lab.edit_weights(adapter_copy, renamed(NAMES[names]))
    checkpoint = open_checkpoint(base)
    found = open_adapter(adapter_copy, checkpoint, translate=True)
    expected = open_adapter(adapter, checkpoint)
    assert found.renamed and found.targets == expected.targets
    for module in expected.targets:
        got, wanted = found.read(module), expected.read(module)
        assert torch.equal(got.A, wanted.A) and torch.equal(got.B, wanted.B), module
    # PEFT reads the file itself when a model is evaluated or chatted with.
    with pytest.raises(CheckpointError, match=r"write a copy with `gptoss-tune adapter"):
        open_evaluated_model(str(adapter_copy), base=str(base))


def test_the_way_out_of_other_names_works(base, adapter, adapter_copy, merged, tmp_path, lab):
    lab.edit_weights(adapter_copy, renamed(NAMES["all at once"]))
    run, source = CliRunner().invoke, ["--base", str(base)]
    copy, out = tmp_path / "copy", tmp_path / "out"
    done = run(app, ["adapter", str(adapter_copy), "--for", "peft", "--out", str(copy), *source])
    assert done.exit_code == 0, done.output
    open_evaluated_model(str(copy), base=str(base))
    done = run(app, ["merge", str(adapter_copy), "--out", str(out), "--no-verify", *source])
    assert done.exit_code == 0, done.output
    expected = lab.weights(merged)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in lab.weights(out).items())


def test_a_factor_twice_is_refused(base, adapter_copy, lab):
    lab.edit_weights(
        adapter_copy, lambda w: {**w, **{f"module.{n}": t.clone() for n, t in w.items()}}
    )
    with pytest.raises(CheckpointError, match="are one factor"):
        open_adapter(adapter_copy, open_checkpoint(base), translate=True)


@pytest.mark.parametrize(
    "parameter", ["experts.gate_up_proj_bias", "router.bias", "self_attn.sinks"]
)
def test_other_parameters_are_named_as_such(base, adapter_copy, lab, parameter):
    targets = [*lab.experts, parameter]
    lab.edit_json(adapter_copy / "adapter_config.json", target_parameters=targets)
    with pytest.raises(CheckpointError, match=rf"names '{parameter}', which is model\.layers\.0"):
        lab.open(base, adapter_copy)


@pytest.mark.parametrize("start", ["eva", "orthogonal", "gaussian"])
def test_a_start_that_leaves_the_base_alone_is_merged(
    base, adapter_copy, merged, tmp_path, lab, start
):
    config = {"init_lora_weights": start}
    if start == "eva":
        config["eva_config"] = {"rho": 2.0, "tau": 0.99}
    lab.edit_json(adapter_copy / "adapter_config.json", **config)
    lab.merge(base, adapter_copy, tmp_path / "out")
    expected = lab.weights(merged)
    found = lab.weights(tmp_path / "out")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    command = ["adapter", str(adapter_copy), "--base", str(base), "--out", str(tmp_path / "copy")]
    assert CliRunner().invoke(app, command).exit_code == 0
    written = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    assert written["init_lora_weights"] is True and "eva_config" not in written


@pytest.fixture
def hashed(adapter, tmp_path):
    """An adapter with a manifest, as a run leaves it."""
    staged = tmp_path / "staged"
    shutil.copytree(adapter, staged, ignore=shutil.ignore_patterns("README.md"))
    (tmp_path / "run").mkdir()
    publish(staged, tmp_path / "run" / "adapter", run_id="x", step=1)
    return tmp_path / "run"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    file.write_bytes(content)


def test_a_flipped_bit_in_an_adapter_is_seen_by_everything_that_reads_it(
    base, merged, hashed, tmp_path
):
    open_adapter(hashed, open_checkpoint(base))
    flip(hashed / "adapter" / "adapter_model.safetensors")
    out, source = ["--out", str(tmp_path / "out")], [str(hashed)]
    with_base = ["--base", str(base)]
    commands = {
        "merge": [*source, *out, *with_base],
        "verify": [str(merged), "--adapter", *source, *with_base],
        "adapter": [*source, *out, *with_base],
        "chat": [*source, *with_base],
        "serve-config": [*source, *out, *with_base, "--target", "vllm"],
    }
    for name, arguments in commands.items():
        result = CliRunner().invoke(app, [name, *arguments])
        assert isinstance(result.exception, CheckpointError), (name, result.output)
        assert "adapter_model.safetensors is not the file that was written" in str(result.exception)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="is not the file that was written"):
        open_evaluated_model(str(hashed), base=str(base))
    with pytest.raises(CheckpointError, match="is not the file that was written"):
        init_from(None, hashed)


def test_an_edited_configuration_names_the_way_to_keep_it(base, hashed, lab):
    folder = hashed / "adapter"
    lab.edit_json(folder / "adapter_config.json", lora_alpha=9)
    with pytest.raises(CheckpointError, match=r"adapter_config.json is not .*remove manifest.json"):
        open_adapter(hashed, open_checkpoint(base))
    (folder / "manifest.json").unlink()
    open_adapter(hashed, open_checkpoint(base))


def test_a_changed_manifest_is_refused(base, hashed):
    manifest = hashed / "adapter" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 1', '"step": 2'))
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        open_adapter(hashed, open_checkpoint(base))
