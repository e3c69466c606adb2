"""Attention and lm_head held in int8 or NF4: one model, that of the decoded weights."""

import sys

import pytest
import torch
from gptoss_kernels import Int8Weight, quantize_int8
from torch import nn

from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.model.causal_lm import divergence
from gptoss_tune.model.footprint import footprint
from gptoss_tune.model.load import load_base
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.model.packed.layers import Int8Linear, Nf4Linear, head_weight, packed_layer
from gptoss_tune.recipe import ModelSection
from gptoss_tune.recipe.schema import LoraSection
from gptoss_tune.weights import open_checkpoint

BOTH = {"linear_precision": "int8", "head_precision": "int8"}
# Relative RMS in fp32; measured 3e-7 to 9e-7, from the sums over tiles of the vocabulary.
SAME_SUMS = 5e-6


def section(base, **settings):
    return ModelSection(name_or_path=str(base), **{"dtype": "float32", **settings})


def relative_rms(actual, expected):
    assert expected.norm() > 0
    return float((actual - expected).norm() / expected.norm())


def with_decoded_weights(model):
    """Put plain layers of the decoded weights in the place of the packed ones."""
    for name, layer in list(model.named_modules()):
        packed = getattr(layer, "packed", None)
        weight = None
        if packed is not None:
            parts = [
                packed.rows(first, min(first + 8192, packed.shape[0]))
                for first in range(0, packed.shape[0], 8192)
            ]
            weight = torch.cat(parts)
        if weight is None:
            continue
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
        plain.bias = getattr(layer, "bias", None)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, plain)
    return model


def loss_and_gradients(model, input_ids):
    torch.manual_seed(0)
    adapted = add_adapters(model, LoraSection(rank=4)).train()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:  # B too, or no gradient would pass below the first layer
            generator = torch.Generator().manual_seed(len(name))
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    weights = torch.ones(input_ids.shape)
    weights[:, ::3] = 0
    labels = input_ids.roll(-1, 1)
    out = adapted(input_ids, shift_labels=labels, loss_weights=weights, use_cache=False)
    out.loss_sum.backward()
    grads = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    return out.loss_sum.detach(), grads


WAYS = {
    "int8": {"linear_precision": "int8", "head_precision": "int8"},
    "nf4": {"linear_precision": "nf4", "head_precision": "nf4"},
    "int8, head on the host": {"linear_precision": "int8", "head": "cpu"},
    "int8 head on the host": {"head_precision": "int8", "head": "cpu", "embeddings": "cpu"},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_training_is_that_of_the_decoded_weights(mxfp4_base, opened, input_ids, way):
    if "nf4" in way.values():
        pytest.importorskip("bitsandbytes")
    settings = section(mxfp4_base, **way)
    packed, dense = load_base(opened, settings), with_decoded_weights(load_base(opened, settings))
    assert not any(hasattr(layer, "packed") for layer in dense.modules())
    with torch.no_grad():
        assert relative_rms(packed(input_ids).logits, dense(input_ids).logits) < SAME_SUMS
    loss, grads = loss_and_gradients(packed, input_ids)
    expected_loss, expected = loss_and_gradients(dense, input_ids)
    assert relative_rms(loss, expected_loss) < SAME_SUMS
    assert grads.keys() == expected.keys() and len(grads) == 2 * (4 * 2 + 2 * 2)
    for name, grad in grads.items():
        assert relative_rms(grad, expected[name]) < SAME_SUMS, name


def test_a_head_on_the_host_is_the_released_one_and_takes_nothing_of_the_device(
    mxfp4_base, opened, input_ids
):
    model = load_base(opened, section(mxfp4_base, head="cpu"))
    released = opened.read("lm_head.weight").float()
    assert torch.equal(model.lm_head.rows(8192, 8200), released[8192:8200])
    assert model.lm_head.nbytes == released.nbytes
    assert not list(model.lm_head.parameters()) and not list(model.lm_head.buffers())
    assert not any("lm_head" in name for name in model.state_dict())
    exact = load_base(opened, section(mxfp4_base))
    with torch.no_grad():
        assert relative_rms(model(input_ids).logits, exact(input_ids).logits) < SAME_SUMS
    (loss, grads), (exact_loss, expected) = (
        loss_and_gradients(one, input_ids) for one in (model, exact)
    )
    assert relative_rms(loss, exact_loss) < SAME_SUMS
    for name, grad in grads.items():
        assert relative_rms(grad, expected[name]) < SAME_SUMS, name
    packed = load_base(opened, section(mxfp4_base, head="cpu", head_precision="int8"))
    assert packed.lm_head.nbytes == 201_088 * (64 + 2)


def test_int8_is_much_nearer_to_the_released_weights_than_nf4(mxfp4_base, opened, input_ids):
    pytest.importorskip("bitsandbytes")
    with torch.no_grad():
        exact = load_base(opened, section(mxfp4_base))(input_ids).logits
        apart = {}
        for precision in ("int8", "nf4"):
            settings = section(mxfp4_base, head_precision=precision)
            apart[precision] = relative_rms(load_base(opened, settings)(input_ids).logits, exact)
    assert 1e-3 < apart["int8"] < 0.01 < 0.05 < apart["nf4"] < 0.2


def test_divergence_reads_the_packed_head(mxfp4_base, opened):
    model = load_base(opened, section(mxfp4_base, head_precision="int8"))
    head = head_weight(model.lm_head)
    assert isinstance(head, Int8Weight)
    old, new = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    dense = with_decoded_weights(model).lm_head.weight
    expected = divergence(old, new, dense)
    assert expected.min() > 0.01
    assert torch.allclose(divergence(old, new, head), expected, rtol=1e-4)


def test_what_is_held_is_said(mxfp4_base, opened):
    model = load_base(opened, section(mxfp4_base, **BOTH))
    rows = {(row.kind, row.precision): row for row in footprint(model)}
    head = rows["embeddings", "INT8"]
    assert head.parameters == 201_088 * 64
    assert head.nbytes == 201_088 * 64 + 2 * 201_088  # a bf16 scale for each 64 values
    weights = 2 * (64 * 256 + 2 * 64 * 128 + 256 * 64)
    assert rows["attention", "INT8"].nbytes == weights + 2 * weights // 64
    assert not any(p.requires_grad for p in model.parameters())


def test_an_adapted_int8_layer_is_pefts_own_linear_with_fp32_factors(mxfp4_base, opened):
    model = load_base(opened, section(mxfp4_base, **{**BOTH, "dtype": "bfloat16"}))
    adapted = add_adapters(model, LoraSection(rank=4))
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer, Int8Linear)
    assert type(layer).__module__ == "peft.tuners.lora.layer"
    trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert trained == {torch.float32}


def test_embeddings_for_the_host_never_go_to_the_device(mxfp4_base, opened):
    model = load_base(opened, section(mxfp4_base, embeddings="cpu", head="cpu"), device="meta")
    assert model.lm_head._parts[0].device.type == "cpu" and model.lm_head.device.type == "meta"
    assert model.model.embed_tokens.weight.device.type == "cpu"
    assert model.model.norm.weight.device.type == "meta"


def test_nf4_decodes_to_bitsandbytes_own_layers_weight(mxfp4_base, opened):
    bnb = pytest.importorskip("bitsandbytes")
    model = load_base(opened, section(mxfp4_base, linear_precision="nf4"))
    layer = model.model.layers[0].self_attn.o_proj
    released = opened.read("model.layers.0.self_attn.o_proj.weight").float()
    theirs = bnb.nn.Params4bit(released, requires_grad=False, quant_type="nf4").to("cpu")
    expected = bnb.functional.dequantize_4bit(theirs.data, theirs.quant_state)
    assert torch.equal(layer.rows(0, 64), expected)


def test_a_tile_of_the_nf4_head_decodes_alone_and_no_other_rows():
    pytest.importorskip("bitsandbytes")
    weight = torch.randn(8192 + 64, 64, generator=torch.Generator().manual_seed(2))
    head = Nf4Linear(weight, None, "model.head_precision")
    assert head.packed is head and len(head.further_tiles) == 1 and head.shape == weight.shape
    for first, stop in ((0, 8192), (8192, 8256)):
        error = relative_rms(head.rows(first, stop), weight[first:stop])
        assert 0.05 < error < 0.12, "about 9 % for normal weights"
    for wrong in ((64, 128), (8192, 8300)):
        with pytest.raises(ValueError, match="not within one tile"):
            head.rows(*wrong)


def test_impossible_choices_are_refused(mxfp4_base, opened, tmp_path, monkeypatch):
    narrow = nn.Linear(63, 8, device="meta")
    with pytest.raises(RecipeError, match=r"model.linear_precision: int8: .* multiple of 16"):
        packed_layer(narrow, torch.zeros(8, 63), "int8", "model.linear_precision")
    tied = open_checkpoint(str(mxfp4_base))
    monkeypatch.setitem(tied.config, "tie_word_embeddings", True)
    for settings, todo in (
        ({"head_precision": "int8"}, "head_precision: bf16"),
        ({"head": "cpu"}, "head: gpu"),
    ):
        with pytest.raises(RecipeError, match=rf"tie_word_embeddings.* set model.{todo}"):
            load_base(tied, section(mxfp4_base, **settings))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for key in ("linear_precision", "head_precision"):
        with pytest.raises(MachineError, match=rf"model.{key}: nf4 needs bitsandbytes.*int8"):
            load_base(opened, section(mxfp4_base, **{key: "nf4"}))


def test_int8_decodes_to_what_was_packed_from_the_files_own_weight(mxfp4_base, opened):
    model = load_base(opened, section(mxfp4_base, **BOTH))
    layer = model.model.layers[1].self_attn.k_proj
    released = opened.read("model.layers.1.self_attn.k_proj.weight").to(torch.float32)
    expected = quantize_int8(released)
    assert torch.equal(layer.weight, expected.values) and torch.equal(layer.scales, expected.scales)
    assert torch.equal(layer.bias, opened.read("model.layers.1.self_attn.k_proj.bias").float())
