"""Factors in a GGUF against the adapter that they were written of: the same change of each weight.

That llama.cpp applies them so is shown in tests/evaluate/llama_cpp/test_greedy.py.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.gguf.lora import serve_lora_command, write_lora
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.weights.gguf.file import open_gguf

NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}


class Written:
    """A file of factors, read back."""

    def __init__(self, file):
        self.model = open_gguf(file)
        self.alpha = self.model.keys["adapter.lora.alpha"].value

    def tensor(self, name):
        entry = self.model.tensors[name]
        assert entry.type == "F32"
        raw = np.frombuffer(bytes(self.model.read_rows(name, 0, entry.shape[0])), np.float32)
        return torch.from_numpy(raw.reshape(entry.shape).copy())

    def change(self, name):
        """What llama.cpp adds to ``[(E,) out, in]``: B A times alpha over the rank of B."""
        a, b = self.tensor(f"{name}.weight.lora_a"), self.tensor(f"{name}.weight.lora_b")
        assert a.shape[-2] == b.shape[-1]
        return b @ a * (self.alpha / b.shape[-1])


def wanted(adapter, module):
    change = adapter.read(module)
    return change.B @ change.A * change.scaling


@pytest.fixture(scope="module")
def opened(base, adapter):
    return open_adapter(adapter, open_checkpoint(base))


@pytest.fixture(scope="module")
def written(opened, tmp_path_factory):
    return Written(write_lora(opened, tmp_path_factory.mktemp("lora") / "mine"))


def test_every_change_is_the_adapters(opened, written):
    """Ranks and scalings of attention and experts differ here, and one alpha holds for all."""
    assert len({target.rank for target in opened.targets.values()}) == 2
    seen = set()
    for module in opened.targets:
        layer, name = module.split(".")[2], module.rpartition(".")[2]
        expected = wanted(opened, module)
        assert expected.abs().max() > 0
        if name == "gate_up_proj":
            parts = {"ffn_gate_exps": expected[:, 0::2], "ffn_up_exps": expected[:, 1::2]}
        elif name == "down_proj":
            parts = {"ffn_down_exps": expected}
        else:
            parts = {NAMES[name]: expected[0]}
        for part, values in parts.items():
            found = written.change(f"blk.{layer}.{part}")
            torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-7)
            seen |= {f"blk.{layer}.{part}.weight.lora_{x}" for x in "ab"}
    assert seen == set(written.model.tensors)


def test_the_header_says_what_llama_cpp_asks_for(written):
    told = {name: key.value for name, key in written.model.keys.items()}
    assert told["general.architecture"] == "gpt-oss"
    assert (told["general.type"], told["adapter.type"]) == ("adapter", "lora")
    assert written.model.keys["adapter.lora.alpha"].type == "FLOAT32"


def test_experts_that_were_not_chosen_have_zeros(base, lab, adapter_copy, tmp_path):
    """An adapter on chosen experts is padded: llama.cpp reads factors of all."""
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter_copy / "adapter_config.json").read_text())
    experts = json.loads((base / "config.json").read_text())["num_local_experts"]
    chosen = [1, 3]
    weights = load_file(adapter_copy / "adapter_model.safetensors")
    for name, value in weights.items():
        if ".experts." not in name:
            continue
        if "lora_A" in name:
            weights[name] = value.unflatten(0, (experts, -1))[chosen].flatten(0, 1).contiguous()
        else:
            weights[name] = value.unflatten(1, (-1, experts))[..., chosen].flatten(1).contiguous()
    save_file(weights, adapter_copy / "adapter_model.safetensors")
    layers = {str(n): chosen for n in range(2)}
    (adapter_copy / "adapter_config.json").write_text(
        json.dumps({**config, "chosen_experts": layers})
    )
    opened = open_adapter(adapter_copy, open_checkpoint(base))
    found = Written(write_lora(opened, tmp_path / "out")).change("blk.1.ffn_down_exps")
    sizes = found.flatten(1).abs().amax(1)
    assert [bool(size) for size in sizes] == [n in chosen for n in range(experts)]


@pytest.mark.parametrize("kind", ["dora", "whole", "embedding"])
def test_what_is_no_factor_is_refused_with_the_way_out(opened, kind, tmp_path, monkeypatch):
    if kind == "whole":
        monkeypatch.setattr(opened, "whole", {"lm_head.weight": None})
    else:
        (name, target), *_ = opened.targets.items()
        monkeypatch.setitem(opened.targets, name, replace(target, **{kind: True}))
    with pytest.raises(CheckpointError, match=r"; merge instead: .*--format gguf"):
        write_lora(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_serves_it(adapter, base, tmp_path):
    out = tmp_path / "mine-lora"
    words = ["adapter", str(adapter), "--for", "llama.cpp", "--base", str(base)]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    (file,) = out.glob("*.gguf")
    assert file.name == "mine-lora.gguf"
    told = " ".join(done.output.split())
    assert "--format gguf" in told and "--lora" in told
    # The very file that merge writes to such a folder (test_resume.py).
    folder = f"{base.name}-gguf"
    assert f"llama-server --model {folder}/{folder}-mxfp4.gguf --lora" in told
    for option in ("--uniform", "--compact"):
        refused = CliRunner().invoke(app, [*words, option, "--out", str(tmp_path / "no")])
        assert refused.exit_code == 2 and option in refused.output


def test_of_a_base_in_several_files_llama_server_is_given_the_first(opened, base, monkeypatch):
    """A shell makes several arguments of ``*.gguf``, and llama-server takes one."""
    monkeypatch.setattr("gptoss_tune.export.gguf.lora.GGUF_MAX_SHARD_SIZE", 1_000_000)
    told = serve_lora_command(Path("mine-lora.gguf"), opened, open_checkpoint(base))
    name = Path(opened.config["base_model_name_or_path"]).name
    assert f"--model {name}-gguf/{name}-gguf-mxfp4-00001-of-*.gguf --lora" in told
