import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from gptoss_tune.errors import RecipeError
from gptoss_tune.model.load import load_base
from gptoss_tune.model.lora import add_adapters, lora_config
from gptoss_tune.recipe import LoraSection, ModelSection

# fp32 on both sides; measured 3e-7 for logits and 2e-6 for gradients.
LOGITS_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 2e-5


def relative(actual, expected):
    assert expected.norm() > 0
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture
def base(mxfp4_base, opened):
    return load_base(opened, ModelSection(name_or_path=str(mxfp4_base), dtype="float32"))


def adapter_gradients(model, input_ids, weights):
    model.zero_grad()
    logits = model(input_ids).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none"
    )
    (losses * weights.flatten()).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_every_layer_gets_adapters_on_attention_and_experts(base):
    model = add_adapters(base, LoraSection(rank=4, expert_rank=2))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}"
        experts = f"{prefix}.mlp.experts"
        assert shapes[f"{experts}.base_layer.lora_A.default.weight"] == (6 * 2, 64)
        assert shapes[f"{experts}.base_layer.lora_B.default.weight"] == (2 * 96, 6 * 2)
        assert shapes[f"{experts}.lora_A.default.weight"] == (6 * 2, 96)
        assert shapes[f"{experts}.lora_B.default.weight"] == (64, 6 * 2)
        assert shapes[f"{prefix}.self_attn.q_proj.lora_A.default.weight"] == (4, 64)
    assert len(shapes) == 2 * (4 + 2) * 2
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_expert_rank_keeps_the_scaling(base):
    model = add_adapters(base, LoraSection(rank=8, alpha=16, expert_rank=2))
    scalings = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
    assert scalings == {2.0}


def test_layers_restrict_attention_and_experts_alike(base):
    model = add_adapters(base, LoraSection(rank=4, layers=[1]))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == (4 + 2) * 2
    assert all(".layers.1." in name for name in trained)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(RecipeError, match=r"lora\.layers: got \[2\], but the base has 2 layers"):
        lora_config(LoraSection(layers=[0, 2]), num_layers=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4},
        {"rank": 4, "expert_rank": 2, "alpha": 12.0},
        {"rank": 2, "expert_rank": 5, "expert_alpha": 3.0},
        {"rank": 4, "layers": [1]},
        {"rank": 4, "target_parameters": ["down_proj"]},
        {"rank": 4, "target_modules": []},
    ],
    ids=str,
)
def test_saved_adapter_is_the_same_model_in_plain_peft(
    base, plain_model, input_ids, tmp_path, settings, randomise_adapters
):
    model = add_adapters(base, LoraSection(**settings))
    randomise_adapters(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"]
        == (settings["rank"])
    )
    with torch.no_grad():
        untuned = plain_model(input_ids).logits
        plain = PeftModel.from_pretrained(plain_model, tmp_path / "adapter")
        theirs = plain(input_ids).logits
        ours = model(input_ids).logits
    assert relative(untuned, theirs) > 0.05  # the adapter does something
    assert relative(ours, theirs) < LOGITS_TOLERANCE


def test_gradients_are_those_of_plain_peft(base, plain_model, input_ids, randomise_adapters):
    config = lora_config(LoraSection(rank=4, expert_rank=3), num_layers=2)
    theirs = get_peft_model(plain_model, copy.deepcopy(config))
    ours = add_adapters(base, LoraSection(rank=4, expert_rank=3))
    randomise_adapters(theirs)
    ours.load_state_dict(
        {n: p for n, p in theirs.state_dict().items() if "lora_" in n}, strict=False
    )
    weights = torch.rand(2, 18)
    expected = adapter_gradients(theirs, input_ids, weights)
    actual = adapter_gradients(ours, input_ids, weights)
    assert actual.keys() == expected.keys() and len(actual) == 24
    worst = {name: relative(actual[name], expected[name]) for name in expected}
    assert max(worst.values()) < GRADIENT_TOLERANCE, worst


def test_two_active_adapters_raise_instead_of_expanding(base, input_ids):
    model = add_adapters(base, LoraSection(rank=2))
    model.add_adapter("second", lora_config(LoraSection(rank=2), num_layers=2))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(NotImplementedError, match="would expand"):
        model(input_ids)
