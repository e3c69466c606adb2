"""A plan's bytes against the tensors of loaded models and against what autograd really saves."""

import inspect

import pytest
from gptoss_kernels import linear_cross_entropy
from gptoss_kernels.experts import experts
from gptoss_kernels.packed_linear import TILE_ROWS

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.build import build
from gptoss_tune.model.causal_lm import CHUNK_ROWS, PACKED_CHUNK_ROWS
from gptoss_tune.plan.architecture import architecture_of
from gptoss_tune.plan.experts.at_work import SCRATCH_BYTES
from gptoss_tune.plan.memory import (
    LOSS_CHUNK_ROWS,
    PACKED_LOSS_CHUNK_ROWS,
    layer_saved,
    memory,
    model_saved,
)
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.plan.weights import PACKED_TILE_ROWS, adapter_factors, base_bytes
from gptoss_tune.recipe import Recipe
from gptoss_tune.testing.measured import (
    RELEASED_LAYER,
    released_hidden,
    released_layer,
    resident_bytes,
    saved_bytes,
)
from gptoss_tune.weights import open_checkpoint

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


def setup_of(recipe, architecture):
    return TrainingSetup(
        architecture, recipe.model, recipe.lora, recipe.method, recipe.data, recipe.train
    )


def built(recipe, base):
    """Return the model; of chosen experts two in each layer."""
    choice = None if recipe.lora.experts == "all" else {0: (1, 4), 1: (0, 5)}
    return build(recipe, open_checkpoint(base), "cpu", choice=choice).model


@pytest.mark.parametrize(
    ("settings", "lora"),
    [
        ({}, {}),
        ({"dtype": "float32"}, {"rank": 4, "expert_rank": 2}),
        ({"experts_precision": "bf16"}, {"layers": [1], "target_modules": ["o_proj"]}),
        ({"embeddings": "cpu"}, {}),
        ({"linear_precision": "nf4"}, {"target_parameters": ["down_proj"]}),
        ({"linear_precision": "int8", "head_precision": "int8"}, {}),
        ({"linear_precision": "nf4", "head_precision": "nf4", "embeddings": "cpu"}, {}),
        ({"linear_precision": "int8", "head": "cpu", "embeddings": "cpu"}, {}),
        ({}, {"experts": {"count": 2}}),
    ],
    ids=[
        *("mxfp4", "fp32, other expert rank", "dense, one layer", "host", "nf4, down only"),
        *("int8", "nf4, host", "int8, both on the host", "chosen"),
    ],
)
def test_resident_bytes_are_those_of_the_loaded_model(mxfp4_base, settings, lora):
    if "nf4" in settings.values():
        pytest.importorskip("bitsandbytes")
    recipe = recipe_for(mxfp4_base, model=settings, lora=lora)
    actual = resident_bytes(built(recipe, mxfp4_base))
    planned = memory(setup_of(recipe, architecture_of(str(mxfp4_base))))
    assert {
        kind: planned.kinds["other weights" if kind == "other" else kind] for kind in actual
    } == pytest.approx(actual, rel=1e-3)
    assert planned.resident == pytest.approx(sum(actual.values()), rel=1e-3)


CASES = {
    "none": {},
    "selective": {"train": {"activation_checkpointing": "selective"}},
    "full": {"train": {"activation_checkpointing": "full"}},
    "fp32": {"model": {"dtype": "float32"}},
    "merge-aware": {"lora": {"merge_aware": True}},
    "upper layer": {"lora": {"layers": [1]}},
    "upper layer, full": {"lora": {"layers": [1]}, "train": {"activation_checkpointing": "full"}},
    "experts only": {"lora": {"target_modules": [], "expert_rank": 4}},
    "attention only": {"lora": {"target_parameters": []}},
    "int8": {"model": {"linear_precision": "int8", "head_precision": "int8"}},
    "chosen experts": {"lora": {"experts": {"count": 2}}},
    "chosen experts, selective": {
        "lora": {"experts": {"count": 2}},
        "train": {"activation_checkpointing": "selective"},
    },
    "chosen experts, full": {
        "lora": {"experts": {"count": 2}},
        "train": {"activation_checkpointing": "full"},
    },
    "output only": {"lora": {"target_modules": ["o_proj"], "target_parameters": []}},
}


QUICK = ("none", "full", "merge-aware", "int8", "chosen experts")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name, case in CASES.items()
    ],
)
def test_saved_bytes_of_the_tiny_model(mxfp4_base, case):
    train = {"activation_checkpointing": "none", **case.get("train", {})}
    recipe = recipe_for(mxfp4_base, **{**case, "train": train})
    setup = setup_of(recipe, architecture_of(str(mxfp4_base)))
    model = built(recipe, mxfp4_base).train()
    for length in (8, 24):
        actual = saved_bytes(model, length, dtype=recipe.model.dtype)
        planned = model_saved(setup).bytes(length)
        assert planned == pytest.approx(actual, rel=WITHIN), (length, planned, actual)


@pytest.fixture(scope="module")
def real_layer():
    return released_layer(recipe_for("unused").lora)


def test_resident_bytes_of_a_released_layer(real_layer):
    recipe = recipe_for("unused")
    actual = resident_bytes(real_layer)
    planned = base_bytes(RELEASED_LAYER, recipe.model)
    assert planned == pytest.approx({kind: actual[kind] for kind in planned}, rel=1e-3)
    factors = adapter_factors(RELEASED_LAYER, recipe.lora)
    assert actual["adapters"] == 4 * sum(factor.parameters for factor in factors)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_saved_bytes_of_a_released_layer(real_layer, mode):
    setup = setup_of(recipe_for("unused", train={"activation_checkpointing": mode}), RELEASED_LAYER)
    set_checkpointing(real_layer, mode)

    actual = {
        n: saved_bytes(real_layer, n, dtype="bfloat16", hidden=released_hidden) for n in (4, 12)
    }
    per_token = (actual[12] - actual[4]) / 8
    around = 2880 * 2 + 4  # the final norm
    if mode == "full":
        planned = model_saved(setup)
        assert planned.per_token == pytest.approx(per_token, rel=WITHIN)
        assert planned.bytes(12) == pytest.approx(actual[12], rel=WITHIN)
        return
    layer = layer_saved(setup, setup.factors, with_gate_up=mode == "none")
    around += 64 * 2  # cosines and sines
    assert layer.per_token + around == pytest.approx(per_token, rel=WITHIN)
    assert layer.bytes(12) + 12 * around == pytest.approx(actual[12], rel=WITHIN)


def test_the_plan_knows_the_bounds_of_the_kernels():
    """The kernels stand alone, so the plan repeats their defaults."""
    assert inspect.signature(experts).parameters["scratch_bytes"].default == SCRATCH_BYTES[0]
    chunk = inspect.signature(linear_cross_entropy).parameters["chunk_rows"]
    assert chunk.default == LOSS_CHUNK_ROWS == CHUNK_ROWS
    assert PACKED_CHUNK_ROWS == PACKED_LOSS_CHUNK_ROWS
    assert TILE_ROWS == PACKED_TILE_ROWS
