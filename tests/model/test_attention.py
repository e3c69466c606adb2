"""Our attention inside transformers' gpt-oss: the same numbers, with padding, cache and packing."""

import pytest
import torch
from gptoss_kernels.testing import relative_rms
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_tune.model.attention import ATTENTION_IMPLEMENTATION, masked_attention, set_attention

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


@pytest.mark.parametrize("kept", ["in order", "gathered"])
def test_decoding_copies_keys_and_values_once_at_most(kept):
    """Four rows of eight heads a group: a copy for each head would be eight times the keys."""
    draws = torch.Generator().manual_seed(3)
    query = torch.randn(4, 16, 1, 8, generator=draws)
    shape = (4, 2, 64, 8) if kept == "in order" else (2, 4, 64, 8)
    key, value = (torch.randn(shape, generator=draws) for _ in range(2))
    if kept == "gathered":  # as from pages: heads first
        key, value = key.transpose(0, 1), value.transpose(0, 1)
    visible = (
        torch.arange(64).expand(4, 1, 1, 64) < torch.tensor([64, 9, 31, 1])[:, None, None, None]
    )
    sinks = torch.randn(16, generator=draws)
    made = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not out._is_view():
                made.append(out.numel())
            return out

    with Noting():
        found = masked_attention(query, key, value, sinks, visible, 0.25)
    assert made and max(made) < 2 * key.numel()
    wide = [each.repeat_interleave(8, 1) for each in (key, value)]
    scores = (query @ wide[0].mT * 0.25).masked_fill(~visible, float("-inf"))
    scores = torch.cat((scores, sinks.view(1, 16, 1, 1).expand(4, 16, 1, 1)), -1).softmax(-1)
    assert relative_rms(found.transpose(1, 2), scores[..., :-1] @ wide[1]) < FP32


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
