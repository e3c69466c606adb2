"""Bases as people have them: other dtypes, other names, without some files, or merged already."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.merge.lineage import lineage_report, merged_before, refuse_unsound_sum
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.verify.verify import verify
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
SINGLE = "model.safetensors"


def red(result):
    return {check.name: check.detail for check in result.checks if check.passed is False}


def copy_of(folder, out, *without):
    shutil.copytree(folder, out, copy_function=os.link, ignore=shutil.ignore_patterns(*without))
    return out


def replace_json(file, **changes):
    value = {**json.loads(file.read_text()), **changes}
    file.unlink()
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


def in_dtype(folder, out, dtype, noise=0.0):
    """A dense base in another dtype, its values off the bf16 grid by ``noise`` of a step."""
    copy_of(folder, out, SINGLE)
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, tensor in load_file(folder / SINGLE).items():
        off = torch.rand(tensor.shape, generator=generator) - 0.5
        weights[name] = (tensor.float() * (1 + noise * 2**-8 * off)).to(dtype)
    save_file(weights, out / SINGLE, metadata={"format": "pt"})
    replace_json(out / "config.json", torch_dtype=..., dtype=str(dtype).removeprefix("torch."))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("expert_format", ["bf16", "mxfp4"])
def test_a_base_of_another_dtype_gives_bf16(
    dense_base, adapter, tmp_path, lab, dtype, expert_format
):
    other = in_dtype(dense_base, tmp_path / "base", dtype, noise=0.9)
    out = tmp_path / "out"
    lab.merge(other, adapter, out, expert_format=expert_format, accept_loss=True)
    found = lab.weights(out)
    codes = {name for name in found if name.endswith(("_blocks", "_scales"))}
    assert bool(codes) == (expert_format == "mxfp4")
    assert {t.dtype for n, t in found.items() if n not in codes} == {torch.bfloat16}
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "torch_dtype" not in config
    embedding = "model.embed_tokens.weight"
    assert torch.equal(found[embedding], load_file(other / SINGLE)[embedding].bfloat16())
    checkpoint, opened = lab.open(other, adapter)
    assert red(verify(out, checkpoint, opened, logits=False)) == {}
    weights = {**found, embedding: found[embedding].clone()}
    weights[embedding][7, 7] += 1
    save_file(weights, out / SINGLE, metadata={"format": "pt"})
    assert set(red(verify(out, checkpoint, opened, logits=False))) == {
        "hashes",
        "untouched tensors",
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_pefts_merge_into_another_dtype_is_green_by_that_dtypes_steps(
    dense_base, adapter, tmp_path, lab, dtype
):
    base = in_dtype(dense_base, tmp_path / "base", dtype)
    checkpoint, opened = lab.open(base, adapter)
    out = copy_of(base, tmp_path / "out", SINGLE)
    weights = load_file(base / SINGLE)
    wrong = {}
    for module in opened[0].adapter.targets:
        change = opened[0].adapter.read(module)
        delta = torch.matmul(change.B, change.A) * change.scaling
        name = module if ".experts." in module else f"{module}.weight"
        delta = delta.transpose(1, 2) if ".experts." in module else delta[0]
        # As PEFT adds: the change rounded to the base's dtype, then the sum.
        weights[name] = weights[name] + delta.to(dtype)
        wrong[name] = (weights[name].float() * (1 + 2**-9)).to(dtype)
    save_file(weights, out / SINGLE, metadata={"format": "pt"})
    assert red(verify(out, checkpoint, opened, logits=False)) == {}
    # An error that bf16 would hide is seen in a finer dtype.
    save_file({**weights, **wrong}, out / SINGLE, metadata={"format": "pt"})
    assert set(red(verify(out, checkpoint, opened, logits=False))) == {"changes"}


@pytest.mark.slow
@pytest.mark.parametrize("expert_format", [pytest.param("bf16", marks=pytest.mark.slow), "mxfp4"])
def test_a_base_alone_is_converted_and_verified(base, dense_base, tmp_path, lab, expert_format):
    out = tmp_path / "out"
    source, goal = (base, dense_base) if expert_format == "bf16" else (dense_base, base)
    command = ["merge", "--base", str(source), "--out", str(out), "--format", expert_format]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found, expected = lab.weights(out), lab.weights(goal)
    assert found.keys() == expected.keys()
    checkpoint, wanted = open_checkpoint(out), open_checkpoint(goal)
    assert checkpoint.expert_format == wanted.expert_format == expert_format
    for name in found:
        if not name.endswith(("_blocks", "_scales")):
            assert torch.equal(found[name], expected[name]), name
    assert "converted by gptoss-tune" in (out / "NOTICE").read_text()
    again = CliRunner().invoke(app, ["verify", str(out), "--base", str(source), "--no-logits"])
    assert again.exit_code == 0, again.output
    weights = dict(found)
    weights["lm_head.weight"] = weights["lm_head.weight"].clone()
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, out / SINGLE, metadata={"format": "pt"})
    (out / "manifest.json").unlink()
    wrong = verify(out, open_checkpoint(source), logits=False)
    assert set(red(wrong)) == {"untouched tensors"}


def test_nothing_to_merge_is_said(tmp_path):
    result = CliRunner().invoke(app, ["merge", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, CheckpointError)
    assert "name a run or an adapter, or with --base" in str(result.exception)


def test_what_transformers_saves_after_unpacking_is_merged(
    dense_base, adapter, merged, tmp_path, lab
):
    renamed = copy_of(dense_base, tmp_path / "renamed", SINGLE)
    weights = load_file(dense_base / SINGLE)
    ends = (".gate_up_proj", ".down_proj")
    weights = {n + "_blocks" * n.endswith(ends): tensor for n, tensor in weights.items()}
    save_file(weights, renamed / SINGLE, metadata={"format": "pt"})
    checkpoint = open_checkpoint(renamed, translate=True)
    opened = [WeightedAdapter(open_adapter(adapter, checkpoint))]
    merge(checkpoint, opened, tmp_path / "out", MergeOptions())
    found, expected = lab.weights(tmp_path / "out"), lab.weights(merged)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # The way out that other commands name makes a folder that they take.
    copy = tmp_path / "copy"
    merge(checkpoint, [], copy, MergeOptions())
    assert open_checkpoint(copy).names() == open_checkpoint(dense_base).names()


def test_generation_settings_and_template_are_completed_and_said(base, adapter, tmp_path, lab):
    files = ("generation_config.json", "chat_template.jinja")
    bare = copy_of(base, tmp_path / "bare", *files)
    out = tmp_path / "out"
    command = ["merge", str(adapter), "--base", str(bare), "--out", str(out), "--no-verify"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "the base has no chat_template.jinja, generation_config.json" in result.output
    for name in files:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    checkpoint, opened = lab.open(bare, adapter)
    assert red(verify(out, checkpoint, opened, logits=False)) == {}


def test_a_template_inside_the_tokenizers_settings_counts(base, adapter, tmp_path, lab):
    embedded = copy_of(base, tmp_path / "embedded", "chat_template.jinja")
    text = (base / "chat_template.jinja").read_text()
    replace_json(embedded / "tokenizer_config.json", chat_template=text)
    report = lab.merge(embedded, adapter, tmp_path / "out")
    assert "completed" not in report and not (tmp_path / "out" / "chat_template.jinja").exists()
    assert red(verify(tmp_path / "out")) == {}


def test_named_chat_templates_travel_and_are_asked_for(base, adapter, tmp_path, lab):
    named = copy_of(base, tmp_path / "named")
    (named / "additional_chat_templates").mkdir()
    (named / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    out = tmp_path / "out"
    lab.merge(named, adapter, out)
    copy = out / "additional_chat_templates" / "tool_use.jinja"
    assert copy.read_text() == "{{ messages }}"
    checkpoint, opened = lab.open(named, adapter)
    assert red(verify(out, checkpoint, opened, logits=False)) == {}
    copy.unlink()
    assert set(red(verify(out, checkpoint, opened, logits=False))) == {"hashes", "companions"}


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_a_base_without_a_tokenizer_is_refused_before_the_work(
    base, adapter, tmp_path, lab, missing
):
    bare = copy_of(base, tmp_path / "bare", missing)
    with pytest.raises(
        CheckpointError, match=f"has no {missing}, .*copy the tokenizer's files.* --tokenizer DIR"
    ):
        lab.merge(bare, adapter, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"bare"}


def test_an_adapter_twice_or_merged_already_is_refused(base, adapter, merged, tmp_path, lab):
    twin = shutil.copytree(adapter, tmp_path / "twin")
    lab.edit_json(twin / "adapter_config.json", base_model_name_or_path="someone/else")
    with pytest.raises(CheckpointError, match=r"is the same adapter as .* PATH=WEIGHT"):
        lab.merge(base, {adapter: 1.0, twin: 1.0}, tmp_path / "out")
    for again in (adapter, twin):
        with pytest.raises(CheckpointError, match=r"already holds .* double the change"):
            lab.merge(merged, again, tmp_path / "out")
    second = lab.adapter(base, tmp_path / "second", seed=1)
    lab.merge(merged, second, tmp_path / "both")
    with pytest.raises(CheckpointError, match="already holds"):
        lab.merge(tmp_path / "both", adapter, tmp_path / "out")
    lab.merge(tmp_path / "both", {adapter: -1.0}, tmp_path / "out")


def stub_of(digest, weight):
    opened = SimpleNamespace(path="runs/a", weights_digest=digest, digest=f"whole of {digest}")
    return WeightedAdapter(opened, weight)


def merged_into(base, digest, weight):
    """The report that a merge into ``base`` leaves, as the next base has it."""
    refuse_unsound_sum(base, [stub_of(digest, weight)])
    report = {
        "base": lineage_report(base),
        "adapters": [{"sha256": f"whole of {digest}", "weights": digest, "weight": weight}],
    }
    (base.path / "merge_report.json").write_text(json.dumps(report))


def test_what_a_base_holds_is_a_sum_with_signs(tmp_path):
    base = SimpleNamespace(path=tmp_path)
    merged_into(base, "a", 1.0)
    merged_into(base, "b", 0.5)
    merged_into(base, "a", -0.1)
    merged_into(base, "a", -0.2)
    with pytest.raises(CheckpointError, match="already holds"):
        merged_into(base, "a", 1.0)
    with pytest.raises(CheckpointError, match=r"with the weight 0\.7.* take out more"):
        merged_into(base, "a", -0.8)
    merged_into(base, "a", -0.7)
    assert merged_before(base) == {"a": pytest.approx(0), "b": 0.5}
    with pytest.raises(CheckpointError, match="take out more than is there"):
        merged_into(base, "a", -1.0)
    merged_into(base, "a", 1.0)
    with pytest.raises(CheckpointError, match="already holds"):
        merged_into(base, "a", 1.0)


def test_reports_without_sums_are_read(tmp_path):
    base = SimpleNamespace(path=tmp_path)
    report = {"base": {"merged": ["a"]}, "adapters": [{"sha256": "whole of b", "weight": 2.0}]}
    (tmp_path / "merge_report.json").write_text(json.dumps(report))
    assert merged_before(base) == {"a": None, "whole of b": 2.0}
    for digest in ("a", "b"):
        with pytest.raises(CheckpointError, match="already holds"):
            refuse_unsound_sum(base, [stub_of(digest, 1.0)])
    refuse_unsound_sum(base, [stub_of("a", -3.0), stub_of("b", -2.0)])
    with pytest.raises(CheckpointError, match="take out more"):
        refuse_unsound_sum(base, [stub_of("b", -3.0)])
    odd = {"base": {"merged": [1, None, {}], "merged_weights": []}, "adapters": [3, {"weights": 4}]}
    (tmp_path / "merge_report.json").write_text(json.dumps(odd))
    assert merged_before(base) == {}


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e400", "0"])
def test_weights_that_are_no_factor(base, adapter, tmp_path, lab, weight):
    command = ["merge", f"{adapter}={weight}", "--base", str(base), "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, [*command, "--no-verify"])
    assert result.exit_code == 2 and "expected a number" in result.output
    with pytest.raises(CheckpointError, match="weight in the sum"):
        lab.merge(base, {adapter: float(weight)}, tmp_path / "o")


@pytest.mark.parametrize("expert_format", ["bf16", "mxfp4"])
def test_a_change_that_no_dtype_holds_is_refused(base, adapter, tmp_path, lab, expert_format):
    options = {"expert_format": expert_format, "accept_loss": True}
    with pytest.raises(CheckpointError, match="is NaN or infinite"):
        lab.merge(base, {adapter: 3e38}, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["0", "-5", "5XB", "GB", "0.1", "1e9", "nan", ""])
def test_sizes_that_are_none(base, adapter, tmp_path, size):
    command = ["merge", str(adapter), "--base", str(base), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, f"--max-shard-size={size}", "--no-verify"])
    assert result.exit_code == 2, result.output
    assert not list(tmp_path.iterdir())


def test_sizes_with_their_units():
    from gptoss_tune.cli.arguments import size_in_bytes

    sizes = {"5GB": 5 * 10**9, "5000000000": 5 * 10**9, "1.5 MiB": 3 << 19, "2gib": 2 << 30}
    assert {text: size_in_bytes(text) for text in sizes} == sizes


def test_no_shard_is_smaller_than_a_byte(base, adapter, tmp_path, lab):
    with pytest.raises(CheckpointError, match="above 0"):
        lab.merge(base, adapter, tmp_path / "out", max_shard_size=-5)


@pytest.mark.parametrize("device", ["mps", "gpu", "meta", "cuda:x", "cuda:99", ""])
@pytest.mark.parametrize("command", ["merge", "verify", "evaluate"])
def test_devices_that_are_none(base, adapter, merged, tmp_path, command, device):
    arguments = {
        "merge": [str(adapter), "--base", str(base), "--out", str(tmp_path / "out")],
        "verify": [str(merged)],
        "evaluate": [str(adapter)],
    }[command]
    result = CliRunner().invoke(app, [command, *arguments, "--device", device])
    assert result.exception.exit_code == (3 if device == "cuda:99" else 2)
    assert "device" in str(result.exception) and not list(tmp_path.iterdir())


def test_every_file_is_synced_before_the_folder_has_its_name(
    base, adapter, tmp_path, lab, monkeypatch
):
    synced, renamed = set(), []
    fsync, rename = os.fsync, Path.rename

    def record_sync(descriptor):
        about = os.fstat(descriptor)
        synced.add((about.st_dev, about.st_ino))
        fsync(descriptor)

    def record_rename(path, target):
        if Path(target) == tmp_path / "out":
            renamed.extend([path, *path.rglob("*")])
            for each in renamed:
                about = each.stat()
                assert (about.st_dev, about.st_ino) in synced, each
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    lab.merge(base, adapter, tmp_path / "out")
    assert len(renamed) > 8
