import json

import pytest
import torch
from gptoss_kernels import Mxfp4Weight
from safetensors.torch import load_file, save_file

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.footprint import describe_footprint, footprint
from gptoss_tune.model.load import load_base
from gptoss_tune.recipe import ModelSection
from gptoss_tune.weights import open_checkpoint


def section(base, **settings):
    return ModelSection(name_or_path=str(base), dtype="float32", **settings)


def held(model, kind):
    return {row.precision: row.nbytes for row in footprint(model) if row.kind == kind}


def test_packed_experts_hold_the_files_own_bytes(mxfp4_base, opened):
    model = load_base(opened, section(mxfp4_base))
    file = load_file(mxfp4_base / "model.safetensors")
    total = 0
    for layer in range(2):
        experts = model.model.layers[layer].mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(experts, name)
            assert isinstance(weight, ExpertWeight) and isinstance(weight.stored, Mxfp4Weight)
            prefix = f"model.layers.{layer}.mlp.experts.{name}"
            assert torch.equal(weight.stored.blocks, file[f"{prefix}_blocks"])
            assert torch.equal(weight.stored.scales, file[f"{prefix}_scales"])
            total += weight.stored.nbytes
    experts_weights = 2 * 6 * (64 * 2 * 96 + 96 * 64)
    assert total == experts_weights * 17 // 32
    assert held(model, "experts") == {"MXFP4": total}
    assert not any(p.requires_grad for p in model.parameters())
    assert "experts MXFP4" in describe_footprint(model)


@pytest.mark.parametrize("dtype, width", [("bfloat16", 2), ("float32", 4)])
def test_expanded_experts_are_said_to_be_expanded(mxfp4_base, opened, dtype, width):
    settings = ModelSection(name_or_path=str(mxfp4_base), experts_precision="bf16", dtype=dtype)
    model = load_base(opened, settings)
    precision = {"bfloat16": "bf16", "float32": "fp32"}[dtype]
    assert held(model, "experts") == {precision: 2 * 6 * (64 * 2 * 96 + 96 * 64) * width}


@pytest.mark.parametrize("experts_precision", ["mxfp4", "bf16"])
def test_logits_are_those_of_plain_transformers(
    mxfp4_base, opened, plain_model, input_ids, experts_precision
):
    model = load_base(opened, section(mxfp4_base, experts_precision=experts_precision))
    with torch.no_grad():
        ours, theirs = model(input_ids).logits, plain_model(input_ids).logits
    assert theirs.abs().max() > 1
    # fp32 throughout; measured 4e-7, from the order of summation over a token's experts.
    assert (ours - theirs).norm() / theirs.norm() < 5e-6


def test_nf4_holds_attention_in_four_bits(mxfp4_base, opened, plain_model, input_ids):
    pytest.importorskip("bitsandbytes")
    model = load_base(opened, section(mxfp4_base, linear_precision="nf4"))
    weights = 2 * (64 * 256 + 2 * 64 * 128 + 256 * 64)
    nbytes = held(model, "attention")["NF4"]
    assert weights // 2 < nbytes < weights  # half a byte each, and block maxima
    with torch.no_grad():
        ours, theirs = model(input_ids).logits, plain_model(input_ids).logits
    assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.7


def test_bf16_checkpoint_is_not_called_mxfp4(bf16_base):
    with pytest.raises(RecipeError, match="stores its experts in bf16"):
        load_base(open_checkpoint(str(bf16_base)), section(bf16_base))
    model = load_base(
        open_checkpoint(str(bf16_base)),
        ModelSection(name_or_path=str(bf16_base), experts_precision="bf16"),
    )
    assert set(held(model, "experts")) == {"bf16"}


def copy_with(base, folder, change):
    folder.mkdir()
    tensors = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def drop_scales(tensors, config):
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]


def add_tensor(tensors, config):
    tensors["model.layers.1.self_attn.extra"] = torch.zeros(4)


def shrink_router(tensors, config):
    name = "model.layers.0.mlp.router.weight"
    tensors[name] = tensors[name][:5].clone()


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_scales, r"1 of \d+ tensors are missing.*layers\.1\.mlp\.experts\.down_proj_scales"),
        (add_tensor, r"config\.json does not explain: 'model\.layers\.1\.self_attn\.extra'"),
        (shrink_router, r"router\.weight' has shape \[5, 64\], config\.json says \[6, 64\]"),
    ],
)
def test_a_checkpoint_that_does_not_match_its_config_is_refused(
    mxfp4_base, tmp_path, change, message
):
    folder = copy_with(mxfp4_base, tmp_path / "changed", change)
    with pytest.raises(CheckpointError, match=message):
        load_base(open_checkpoint(str(folder)), section(folder))


def test_auxiliary_router_loss_is_not_inherited(mxfp4_base, opened):
    assert opened.config["router_aux_loss_coef"] == 0.9
    model = load_base(opened, section(mxfp4_base))
    assert model.config.router_aux_loss_coef == 0.0
    assert not model.config.output_router_logits
