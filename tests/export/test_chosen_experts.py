"""Exports of an adapter on chosen experts: padded for others, and every other expert's bytes."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.errors import CheckpointError
from gptoss_tune.evaluate.load import (
    load_answering_model,
    load_evaluated_model,
    open_evaluated_model,
)
from gptoss_tune.export.adapter_formats import write_adapter
from gptoss_tune.export.hub.files import _adapter_files
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.verify.verify import verify
from gptoss_tune.model.load import load_base
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.recipe import LoraSection, ModelSection
from gptoss_tune.train.resume.adapter_files import save_adapter
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

CHOICE = {0: (1, 3), 1: (0, 2)}
E, RANK = 4, 3
IDS = torch.tensor([[200006, 1428, 200008, 40, 41, 42, 200007]])
PROJECTIONS = ("gate_up_proj", "down_proj")
# fp32 on both sides, as in tests/model/adapters/test_lora.py.
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def compact(base, tmp_path_factory):
    """An adapter as a run saves it, every factor random; not merge-aware."""
    section = {"rank": 4, "expert_rank": RANK, "experts": {"count": 2}}
    lora = LoraSection.model_validate(section)
    opened = open_checkpoint(str(base))
    bare = load_base(opened, ModelSection(name_or_path=str(base), dtype="float32"))
    model = add_adapters(bare, lora, CHOICE)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    folder = tmp_path_factory.mktemp("compact") / "adapter"
    save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def aware(compact, tmp_path_factory):
    """The same one, said to be trained merge-aware."""
    folder = tmp_path_factory.mktemp("aware") / "adapter"
    shutil.copytree(compact, folder)
    (folder / "run.json").write_text(json.dumps({"recipe": {"lora": {"merge_aware": True}}}))
    return folder


@pytest.fixture(scope="module")
def padded(base, compact, tmp_path_factory):
    out = tmp_path_factory.mktemp("padded") / "adapter"
    write_adapter(open_adapter(compact, open_checkpoint(base)), out, "peft")
    return out


def logits(name, base, load=load_evaluated_model, dtype="float32"):
    subject = open_evaluated_model(str(name), base=str(base))
    section = ModelSection(name_or_path=str(base), dtype=dtype)
    with torch.no_grad():
        return load(subject, section, torch.device("cpu"))(IDS).logits


def stack(layer, projection):
    return f"model.layers.{layer}.mlp.experts.{projection}"


def test_the_adapter_says_of_whom_it_has_factors(base, compact):
    config = json.loads((compact / "adapter_config.json").read_text())
    assert config["chosen_experts"] == {"0": [1, 3], "1": [0, 2]}
    opened = open_adapter(compact, open_checkpoint(base))
    assert opened.choice == CHOICE
    weights = load_file(compact / "adapter_model.safetensors")
    rows = {w.shape[0] for n, w in weights.items() if ".experts." in n and "lora_A" in n}
    assert rows == {2 * RANK}
    change = opened.read(stack(0, "down_proj"))
    assert change.chosen == (1, 3) and change.A.shape[0] == E
    assert change.A[1].any() and change.B[3].any()
    assert not change.A[[0, 2]].any() and not change.B[[0, 2]].any()


def test_plain_peft_reads_the_padded_copy_as_the_same_model(base, compact, padded, lab):
    assert "chosen_experts" not in json.loads((padded / "adapter_config.json").read_text())
    weights = load_file(padded / "adapter_model.safetensors")
    rows = {w.shape[0] for n, w in weights.items() if ".experts." in n and "lora_A" in n}
    assert rows == {E * RANK}
    plain = lab.plain_model(base, torch.float32)
    with torch.no_grad():
        untuned = plain(IDS).logits
        theirs = peft.PeftModel.from_pretrained(plain, padded)(IDS).logits
    ours = logits(compact, base)
    assert (untuned - theirs).norm() / theirs.norm() > 0.05
    assert (ours - theirs).norm() / theirs.norm() < TOLERANCE


def test_our_loader_reads_both_as_the_same_bits(base, compact, padded):
    expected = logits(padded, base)
    assert torch.equal(logits(compact, base), expected)
    assert torch.equal(logits(compact, base, load_answering_model), expected)


def test_a_merge_aware_one_answers_as_it_is_evaluated(base, aware):
    assert torch.equal(logits(aware, base, load_answering_model), logits(aware, base))


def test_plain_peft_refuses_the_compact_one(base, compact, lab):
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(lab.plain_model(base), compact)


def test_for_vllm_all_experts_have_factors(base, compact, tmp_path):
    write_adapter(open_adapter(compact, open_checkpoint(base)), tmp_path / "out", "vllm")
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    b = weights["base_model.model.model.layers.0.mlp.experts.lora_B.weight"]
    assert b.shape[1] == E * 4
    by_expert = b.view(b.shape[0], 4, E)
    assert by_expert[..., [1, 3]].any() and not by_expert[..., [0, 2]].any()


def test_a_compact_copy_is_the_same_factors(base, compact, tmp_path):
    opened = open_adapter(compact, open_checkpoint(base))
    write_adapter(opened, tmp_path / "out", "peft", compact=True)
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (compact, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert open_adapter(tmp_path / "out", open_checkpoint(base)).choice == CHOICE
    with pytest.raises(CheckpointError, match="leave --compact out"):
        write_adapter(opened, tmp_path / "other", "vllm", compact=True)


def test_a_push_uploads_the_padded_copy(base, compact, padded, tmp_path):
    files = _adapter_files(open_adapter(compact, open_checkpoint(base)), "owner/base", tmp_path)
    assert "chosen_experts" not in json.loads(files["adapter_config.json"])
    uploaded = files["adapter_model.safetensors"].read_bytes()
    assert uploaded == (padded / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def packed(base, compact, aware, tmp_path_factory, lab):
    """MXFP4 exports of the two."""
    found = {}
    for name, adapter in (("plain", compact), ("aware", aware)):
        out = tmp_path_factory.mktemp("packed") / name
        lab.merge(base, adapter, out, expert_format="mxfp4", accept_loss=True)
        found[name] = out
    return found


@pytest.mark.parametrize("name", ["plain", "aware"])
def test_mxfp4_keeps_the_bytes_of_the_other_experts(base, packed, name, lab):
    before, after = lab.weights(base), lab.weights(packed[name])
    for layer, chosen in CHOICE.items():
        others = [e for e in range(E) if e not in chosen]
        for projection in PROJECTIONS:
            blocks, scales = (f"{stack(layer, projection)}_{part}" for part in ("blocks", "scales"))
            assert torch.equal(before[blocks][others], after[blocks][others])
            assert torch.equal(before[scales][others], after[scales][others])
            for expert in chosen:
                assert not torch.equal(before[blocks][expert], after[blocks][expert])


def test_mxfp4_of_the_chosen_experts_is_that_of_a_padded_adapter(
    base, padded, packed, tmp_path, lab
):
    lab.merge(base, padded, tmp_path / "out", expert_format="mxfp4", accept_loss=True)
    ours, theirs = lab.weights(packed["plain"]), lab.weights(tmp_path / "out")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def dense(base, compact, tmp_path_factory, lab):
    out = tmp_path_factory.mktemp("dense") / "out"
    lab.merge(base, compact, out)
    return out


def test_bf16_keeps_the_bytes_of_the_other_experts(base, padded, dense, tmp_path, lab):
    """Also the sign of a zero, which adding nothing would change."""
    lab.merge(base, {}, tmp_path / "untuned", expert_format="bf16")
    before, after = lab.weights(tmp_path / "untuned"), lab.weights(dense)
    lab.merge(base, padded, tmp_path / "padded")
    wanted = lab.weights(tmp_path / "padded")
    minus_zeros = 0
    for layer, chosen in CHOICE.items():
        others = [e for e in range(E) if e not in chosen]
        for projection in PROJECTIONS:
            name = stack(layer, projection)
            old, new = (w[name][others].view(torch.int16) for w in (before, after))
            assert torch.equal(old, new)
            minus_zeros += int((old == -(2**15)).sum())
            assert torch.equal(after[name][list(chosen)], wanted[name][list(chosen)])
            assert not torch.equal(after[name][list(chosen)], before[name][list(chosen)])
    assert minus_zeros > 0


def verified(folder, base, adapter):
    checkpoint = open_checkpoint(base)
    opened = [WeightedAdapter(open_adapter(adapter, checkpoint))]
    return verify(folder, checkpoint, opened, logits=False)


def failures(result):
    return " ".join(check.detail for check in result.checks if check.passed is False)


def test_verify_passes_all_exports(base, compact, aware, packed, dense):
    for folder, adapter in ((dense, compact), (packed["plain"], compact), (packed["aware"], aware)):
        assert failures(verified(folder, base, adapter)) == ""


@pytest.mark.parametrize("expert", [0, 2])
def test_verify_sees_an_expert_changed_that_has_no_factors(
    base, compact, packed, tmp_path, lab, expert
):
    out = shutil.copytree(packed["plain"], tmp_path / "out")
    (file,) = out.glob("*.safetensors")
    weights = load_file(file)
    weights[f"{stack(0, 'down_proj')}_blocks"][expert, 5, 0, 3] ^= 1
    save_file(weights, file, metadata={"format": "pt"})
    told = failures(verified(out, base, compact))
    assert f"expert {expert}: differs from the base, and no factors change it" in told


def test_verify_sees_experts_in_each_others_places(base, compact, dense, tmp_path):
    """As an export would leave them that counts the chosen ones from 0."""
    out = shutil.copytree(dense, tmp_path / "out")
    (file,) = out.glob("*.safetensors")
    weights = load_file(file)
    wrong = weights[stack(0, "down_proj")]
    weights[stack(0, "down_proj")] = wrong[[1, 0, 3, 2]].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    assert "no factors change it" in failures(verified(out, base, compact))


@pytest.mark.parametrize(
    "told, message",
    [
        ({"0": [1, 3], "7": [0, 2]}, "names the layer '7'; expected 0 to 1"),
        ({"0": [1, 4], "1": [0, 2]}, "expected numbers of experts from 0 to 3, ascending"),
        ({"0": [3, 1], "1": [0, 2]}, "expected numbers of experts from 0 to 3, ascending"),
        ({"0": [1, 1], "1": [0, 2]}, "expected numbers of experts from 0 to 3, ascending"),
        ({"0": [True, 3], "1": [0, 2]}, "expected numbers of experts"),
        ({"0": [1], "1": [0, 2]}, "expected as many experts in each layer"),
        ({}, "expected as many experts in each layer"),
        ([1, 3], "expected as many experts in each layer"),
        ({"0": [1], "1": [0]}, "factors of rank 6, adapter_config.json says 3"),
    ],
    ids=["layer", "beyond", "order", "twice", "bool", "uneven", "empty", "list", "fewer"],
)
def test_a_choice_that_is_none_is_refused(base, compact, tmp_path, lab, told, message):
    folder = shutil.copytree(compact, tmp_path / "adapter")
    lab.edit_json(folder / "adapter_config.json", chosen_experts=told)
    (folder / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(folder, open_checkpoint(base))
