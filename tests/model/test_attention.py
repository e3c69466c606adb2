"""Our attention inside transformers' gpt-oss: the same numbers, with padding, cache and packing."""

import pytest
import torch
from gptoss_kernels.testing import relative_rms

from gptoss_tune.model.attention import ATTENTION_IMPLEMENTATION, set_attention

FP32 = 1e-6  # measured 2e-7: the order of summation differs


@pytest.fixture
def model(small_model):
    return small_model(adapted=False).eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(4))


def masks(side):
    mask = torch.ones(2, 33, dtype=torch.long)
    if side == "right":
        mask[1, 20:] = 0
    elif side == "left":
        mask[1, :13] = 0
    return mask


def logits_with(model, implementation, **inputs):
    if implementation == ATTENTION_IMPLEMENTATION:
        set_attention(model)
    else:
        model.set_attn_implementation(implementation)
    return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_logits_equal_transformers_eager_attention(model, tokens, side):
    mask = masks(side)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if side == "left":
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = logits_with(model, "eager", **inputs)
    actual = logits_with(model, ATTENTION_IMPLEMENTATION, **inputs)
    assert torch.isfinite(actual).all(), "padding must not make NaN"
    assert relative_rms(actual[mask.bool()], expected[mask.bool()]) < FP32


def test_gradients_of_sinks_and_projections_equal_eager(model, tokens):
    def gradients(implementation):
        model.zero_grad()
        for layer in model.model.layers:
            layer.self_attn.requires_grad_(True)
        logits = logits_with(model, implementation, input_ids=tokens)
        logits.logsumexp(-1).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected, actual = gradients("eager"), gradients(ATTENTION_IMPLEMENTATION)
    assert {"model.layers.0.self_attn.sinks", "model.layers.1.self_attn.sinks"} <= set(actual)
    for name, gradient in expected.items():
        assert relative_rms(actual[name], gradient) < 5e-6, name


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["none", "left"])
def test_generation_with_a_cache_gives_eager_tokens(model, tokens, cache, side):
    settings = {"attention_mask": masks(side), "max_new_tokens": 12, "do_sample": False}
    if cache == "static":
        settings["cache_implementation"] = "static"
    model.set_attn_implementation("eager")
    expected = model.generate(tokens, **settings)
    set_attention(model)
    assert torch.equal(model.generate(tokens, **settings), expected)


def test_documents_are_found_once_per_forward_pass(model, tokens, monkeypatch):
    from gptoss_tune.model import attention

    calls = []
    original = attention.find_documents
    monkeypatch.setattr(
        attention, "find_documents", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    set_attention(model)
    set_attention(model)  # twice does not mean two hooks
    with_hook = model(tokens, use_cache=False).logits
    assert len(calls) == 1
    model.model.attention_handle.remove()
    without = model(tokens, use_cache=False).logits
    assert len(calls) == 3, "without the hook every layer finds them itself"
    assert torch.equal(with_hook, without)


def test_the_choice_is_said_and_stands_on_the_layers(small_model):
    model = small_model()
    choice = set_attention(model, "auto")
    assert choice.reason == "eager"
    layers = model.get_base_model().model.layers
    assert all(layer.self_attn.attention_engine is choice.engine for layer in layers)
    assert model.config._attn_implementation == ATTENTION_IMPLEMENTATION


def test_a_mask_is_made_only_where_keys_and_queries_differ():
    from transformers.masking_utils import causal_mask_function

    from gptoss_tune.model.attention import attention_mask

    settings = {"batch_size": 1, "mask_function": causal_mask_function, "device": "cpu"}
    padding = torch.tensor([[1, 1, 1, 0]])
    assert attention_mask(q_length=4, kv_length=4, attention_mask=padding, **settings) is padding
    for lengths in (
        {"q_length": 2, "kv_length": 6},
        {"q_length": 2, "kv_length": 2, "q_offset": 4},
    ):
        assert attention_mask(**lengths, **settings).ndim == 4


def test_mistakes_are_named(model, tokens):
    with pytest.raises(ValueError, match="attention torch_flash cannot be used: it needs a GPU"):
        set_attention(model, "torch_flash")
    with pytest.raises(ValueError, match="holds no GptOssModel"):
        set_attention(torch.nn.Linear(2, 2))
    set_attention(model)
    with pytest.raises(ValueError, match="output_attentions needs S x S weights"):
        model(tokens, output_attentions=True)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention_dropout is 0\.1"):
        model(tokens)
