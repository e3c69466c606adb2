"""A plan's bytes against the tensors of loaded models and against what autograd really saves."""

import inspect
import weakref

import pytest
import torch
from gptoss_kernels import Mxfp4Weight, experts, linear_cross_entropy
from torch import nn
from transformers import GptOssConfig

from gptoss_tune.checkpoint import open_checkpoint
from gptoss_tune.model import memory as model_memory
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.build import build
from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION
from gptoss_tune.model.holdings import holdings
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.model.memory import set_checkpointing
from gptoss_tune.model.norms import set_norms
from gptoss_tune.recipe import Recipe
from gptoss_tune.recipe.plan_memory import (
    KEEP_ATTENTION_FROM,
    LOSS_CHUNK_ROWS,
    SCRATCH_BYTES,
    layer_saved,
    memory,
    model_saved,
)
from gptoss_tune.recipe.plan_model import Architecture, architecture_of
from gptoss_tune.recipe.plan_weights import adapter_factors, base_bytes

# What the plan promises. Counted from shapes, so a miss means that code and plan have parted.
WITHIN = 0.05


def recipe_for(base, **sections):
    values = {
        "model": {"name_or_path": str(base), **sections.get("model", {})},
        "lora": sections.get("lora", {}),
        "data": {"train": "a.jsonl", "max_length": 64},
        "train": {"output_dir": "run", "max_steps": 1, **sections.get("train", {})},
    }
    return Recipe.model_validate(values)


def held(model):
    totals = {}
    for row in holdings(model):
        totals[row.kind] = totals.get(row.kind, 0) + row.nbytes
    return totals


@pytest.mark.parametrize(
    ("settings", "lora"),
    [
        ({}, {}),
        ({"dtype": "float32"}, {"rank": 4, "expert_rank": 2}),
        ({"experts_precision": "bf16"}, {"layers": [1], "target_modules": ["o_proj"]}),
        ({"embeddings": "cpu"}, {}),
        ({"linear_precision": "nf4"}, {"target_parameters": ["down_proj"]}),
    ],
    ids=["mxfp4", "fp32, other expert rank", "dense, one layer", "host", "nf4, down only"],
)
def test_resident_bytes_are_those_of_the_loaded_model(mxfp4_base, settings, lora):
    if settings.get("linear_precision") == "nf4":
        pytest.importorskip("bitsandbytes")
    recipe = recipe_for(mxfp4_base, model=settings, lora=lora)
    actual = held(build(recipe, open_checkpoint(mxfp4_base), "cpu").model)
    planned = memory(architecture_of(str(mxfp4_base)), recipe)
    assert {
        kind: planned.kinds["other weights" if kind == "other" else kind] for kind in actual
    } == pytest.approx(actual, rel=1e-3)
    assert planned.resident == pytest.approx(sum(actual.values()), rel=1e-3)


class Kept:
    """What a graph holds in place of a tensor; gone when the graph no longer needs it."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved_bytes(model, length, *, dtype, hidden=None):
    """Return the bytes the graph keeps, each storage once, without parameters and buffers."""
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in [*model.parameters(), *model.buffers()]
        if not isinstance(tensor, ExpertWeight)
    }
    boxes = weakref.WeakSet()

    def pack(tensor):
        boxes.add(box := Kept(tensor))
        return box

    vocabulary = model.config.vocab_size
    tokens = torch.arange(length)[None] % vocabulary
    inputs = {"input_ids": tokens} if hidden is None else {"inputs_embeds": hidden(length)}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        weights = torch.ones(1, length)
        out = model(**inputs, shift_labels=tokens, loss_weights=weights, use_cache=False)
    storages = [box.tensor.untyped_storage() for box in boxes]
    assert out.loss_sum.requires_grad, "or nothing would have been kept"
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values())


CASES = {
    "none": {},
    "selective": {"train": {"checkpointing": "selective"}},
    "full": {"train": {"checkpointing": "full"}},
    "fp32": {"model": {"dtype": "float32"}},
    "merge-aware": {"lora": {"merge_aware": True}},
    "upper layer": {"lora": {"layers": [1]}},
    "upper layer, full": {"lora": {"layers": [1]}, "train": {"checkpointing": "full"}},
    "experts only": {"lora": {"target_modules": [], "expert_rank": 4}},
    "attention only": {"lora": {"target_parameters": []}},
    "output only": {"lora": {"target_modules": ["o_proj"], "target_parameters": []}},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_saved_bytes_of_the_tiny_model(mxfp4_base, case):
    train = {"checkpointing": "none", **case.get("train", {})}
    recipe = recipe_for(mxfp4_base, **{**case, "train": train})
    model = build(recipe, open_checkpoint(mxfp4_base), "cpu").model.train()
    for length in (24, 64):
        actual = saved_bytes(model, length, dtype=recipe.model.dtype)
        planned = model_saved(architecture_of(str(mxfp4_base)), recipe).bytes(length)
        assert planned == pytest.approx(actual, rel=WITHIN), (length, planned, actual)


@pytest.fixture(scope="module")
def real_layer():
    """One adapted layer of gpt-oss-20b's shapes with all 32 experts; every token meets the same 4.

    So that four experts are decoded and not thirty-two: the bytes do not depend on the choice.
    """
    config = GptOssConfig(num_hidden_layers=1, num_local_experts=32, vocab_size=32, use_cache=False)
    with torch.device("meta"):
        model = GptOssForTuning._from_config(
            config, dtype=torch.bfloat16, experts_implementation=EXPERTS_IMPLEMENTATION
        )
        # Dense stacks of these shapes are 1.5 GiB that nothing would read.
        layer = model.model.layers[0]
        shapes = {name: getattr(layer.mlp.experts, name).shape for name in STACKS}
        for name in STACKS:
            setattr(layer.mlp.experts, name, None)
    rotary = type(model.model.rotary_emb)(config)
    model = model.to_empty(device="cpu").requires_grad_(False)
    model.model.rotary_emb = rotary
    for parameter in model.parameters():
        parameter.fill_(0.01)
    router = model.model.layers[0].mlp.router
    router.bias.copy_(torch.arange(32) % 8 == 0)
    generator = torch.Generator().manual_seed(2)
    for name, (num_experts, inner, out) in shapes.items():
        blocks = torch.randint(
            0, 256, (num_experts, out, inner // 32, 16), dtype=torch.uint8, generator=generator
        )
        scales = torch.full(blocks.shape[:-1], 118, dtype=torch.uint8)
        weight = nn.Parameter(ExpertWeight(Mxfp4Weight(blocks, scales)), requires_grad=False)
        setattr(model.model.layers[0].mlp.experts, name, weight)
    model = add_adapters(model, recipe_for("unused").lora)
    set_attention(model)
    set_norms(model)
    return model.train()


STACKS = ("gate_up_proj", "down_proj")
ONE_LAYER = Architecture(
    layer_types=("sliding_attention",),
    hidden=2880,
    intermediate=2880,
    experts=32,
    experts_per_token=4,
    heads=64,
    key_value_heads=8,
    head_dim=64,
    vocabulary=32,
    window=128,
    packed=True,
)


def test_resident_bytes_of_a_released_layer(real_layer):
    recipe = recipe_for("unused")
    actual = held(real_layer)
    planned = base_bytes(ONE_LAYER, recipe.model)
    assert planned == pytest.approx({kind: actual[kind] for kind in planned}, rel=1e-3)
    factors = adapter_factors(ONE_LAYER, recipe.lora)
    assert actual["adapters"] == 4 * sum(factor.parameters for factor in factors)


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_saved_bytes_of_a_released_layer(real_layer, mode):
    recipe = recipe_for("unused", train={"checkpointing": mode})
    set_checkpointing(real_layer, mode)

    def hidden(length):
        # As from a layer below: it asks for a gradient.
        return torch.randn(1, length, 2880, dtype=torch.bfloat16, requires_grad=True)

    actual = {n: saved_bytes(real_layer, n, dtype="bfloat16", hidden=hidden) for n in (8, 24)}
    per_token = (actual[24] - actual[8]) / 16
    around = 2880 * 2 + 4  # the final norm
    if mode == "full":
        planned = model_saved(ONE_LAYER, recipe)
        assert planned.per_token == pytest.approx(per_token, rel=WITHIN)
        assert planned.bytes(24) == pytest.approx(actual[24], rel=WITHIN)
        return
    layer = layer_saved(
        ONE_LAYER, adapter_factors(ONE_LAYER, recipe.lora), recipe, with_gate_up=mode == "none"
    )
    around += 64 * 2  # cosines and sines
    assert layer.per_token + around == pytest.approx(per_token, rel=WITHIN)
    assert layer.bytes(24) + 24 * around == pytest.approx(actual[24], rel=WITHIN)


def test_the_plan_knows_the_bounds_of_the_code():
    """Recipes are planned without torch, so the plan repeats these numbers."""
    assert KEEP_ATTENTION_FROM == model_memory.KEEP_ATTENTION_FROM
    assert SCRATCH_BYTES == model_memory.SCRATCH_BYTES
    assert inspect.signature(experts).parameters["scratch_bytes"].default == SCRATCH_BYTES[0]
    chunk = inspect.signature(linear_cross_entropy).parameters["chunk_rows"]
    assert chunk.default == LOSS_CHUNK_ROWS
