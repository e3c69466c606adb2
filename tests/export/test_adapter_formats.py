"""Adapter files for PEFT and vLLM, held against plain PEFT."""

import json
import re

import peft
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.adapter_formats import serve_command, write_adapter
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

EXPERTS = "model.layers.1.mlp.experts"
GATE_UP = f"{EXPERTS}.gate_up_proj"


def logits(lab, base, adapter):
    model = peft.PeftModel.from_pretrained(lab.plain_model(base, torch.float32), adapter)
    with torch.no_grad():
        return model(torch.tensor([[200006, 1428, 200008, 40, 41, 42, 200007]])).logits


def opened(base, adapter, **options):
    return open_adapter(adapter, open_checkpoint(base), **options)


def test_for_peft_is_the_same_file_again(base, adapter, tmp_path):
    write_adapter(opened(base, adapter), tmp_path / "out", "peft")
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = "adapter_config.json"
    old = json.loads((adapter / config).read_text())
    assert json.loads((tmp_path / "out" / config).read_text()) == old


def test_for_vllm_is_one_rank_with_the_scale_in_b(base, adapter, tmp_path, lab):
    write_adapter(opened(base, adapter), tmp_path / "out", "vllm")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["rank_pattern"] == {} and config["alpha_pattern"] == {}
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.mlp.experts"
    # What vLLM reads: rows of A expert by expert, columns of B rank by rank (E = 4, r = 4).
    expected = {
        f"{prefix}.base_layer.lora_A.weight": (16, 64),
        f"{prefix}.base_layer.lora_B.weight": (192, 16),
        f"{prefix}.lora_A.weight": (16, 96),
        f"{prefix}.lora_B.weight": (64, 16),
    }
    assert {n: tuple(weights[n].shape) for n in expected} == expected
    difference = logits(lab, base, tmp_path / "out") - logits(lab, base, adapter)
    assert difference.abs().max() < 1e-3


def test_a_swapped_adapter_is_repaired(base, adapter, adapter_copy, tmp_path, lab):
    def swap(weights):
        out = dict(weights)
        for name in [n for n in weights if ".experts." in n and "lora_A" in n]:
            a, b = weights[name], weights[name.replace("lora_A", "lora_B")]
            out[name] = b.unflatten(1, (3, 4)).permute(2, 1, 0).reshape(12, -1).contiguous()
            back = a.unflatten(0, (4, 3)).permute(2, 1, 0).reshape(-1, 12)
            out[name.replace("lora_A", "lora_B")] = back.contiguous()
        return out

    lab.edit_weights(adapter_copy, swap)
    lab.edit_json(adapter_copy / "adapter_config.json", peft_version="0.19.0")
    arguments = ["adapter", str(adapter_copy), "--base", str(base), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, CheckpointError) and "--repair" in str(refused.exception)
    result = CliRunner().invoke(app, [*arguments, "--repair"])
    assert result.exit_code == 0, result.output
    assert "the copy is right" in result.output
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    opened(base, tmp_path / "out")


def test_what_a_server_refuses_is_refused_here(base, adapter, tmp_path, lab):
    cases = {
        "vLLM needs both projections": {"target_parameters": [lab.experts[0]]},
        "vLLM does not adapt": {"target_modules": ["lm_head"], "target_parameters": None},
    }
    for number, (message, changes) in enumerate(cases.items()):
        path = lab.adapter(base, tmp_path / str(number), **changes)
        with pytest.raises(CheckpointError, match=message):
            write_adapter(opened(base, path), tmp_path / "out", "vllm")
        write_adapter(opened(base, path), tmp_path / f"peft{number}", "peft")
    with pytest.raises(CheckpointError, match=r"SGLang does not read .* gptoss-tune merge"):
        write_adapter(opened(base, adapter), tmp_path / "out", "sglang")
    assert not (tmp_path / "out").exists()


def test_the_serve_command_names_the_least_rank_vllm_accepts(base, adapter, tmp_path):
    command = serve_command(opened(base, adapter), tmp_path / "mine", "vllm", "mxfp4")
    assert re.fullmatch(
        rf"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules mine={tmp_path}/mine",
        command,
    )


@pytest.mark.parametrize("kind", ["packed", "dense"])
def test_the_printed_lines_load_base_and_adapter(
    base, dense_base, adapter_copy, tmp_path, lab, kind
):
    source = base if kind == "packed" else dense_base
    lab.edit_json(adapter_copy / "adapter_config.json", base_model_name_or_path=str(source))
    command = ["adapter", str(adapter_copy), "--for", "peft", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert ("Mxfp4Config(dequantize=True)" in result.output) == (kind == "packed")
    names = {}
    exec(result.output, names)
    expected = open_adapter(adapter_copy, open_checkpoint(source)).read(GATE_UP)
    parameters = dict(names["model"].named_parameters())
    loaded = parameters[f"base_model.model.{EXPERTS}.base_layer.lora_A.default.weight"]
    assert torch.equal(loaded.float(), expected.A.flatten(0, 1))
    with torch.no_grad():
        tokens = torch.tensor([[200006, 1428, 200008, 40, 41]])
        assert torch.isfinite(names["model"](tokens).logits).all()


def test_the_record_of_the_run_travels(base, adapter_copy, tmp_path):
    record = {"base": {"name": str(base)}, "recipe": {"lora": {"merge_aware": True}}}
    (adapter_copy / "run.json").write_text(json.dumps(record))
    write_adapter(opened(base, adapter_copy), tmp_path / "out", "peft")
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == record
