"""RMSNorm of gpt-oss: transformers' bits forward, float64 autograd backward."""

import pytest
import torch
from gptoss_kernels.rms_norm import rms_norm, rms_norm_reference
from gptoss_kernels.testing import assert_close
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

EPS = 1e-5
FP32 = 1e-6  # measured <= 2e-7
SHAPES = {"one row": (1, 24), "odd": (2, 7, 33), "a power of two": (5, 64)}


def problem(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    weight = torch.rand(shape[-1], generator=generator, dtype=torch.float64) + 0.5
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), grad.to(dtype)


def run(function, hidden, weight, grad):
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    normed = function(hidden, weight, EPS)
    return [normed.detach(), *torch.autograd.grad(normed, (hidden, weight), grad)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_output_and_gradients_equal_float64_autograd(shape):
    inputs = problem(shape, torch.float32)
    expected = run(rms_norm_reference, *(x.double() for x in inputs))
    actual = run(rms_norm, *inputs)
    for name, got, truth in zip(("output", "d_hidden", "d_weight"), actual, expected, strict=True):
        assert_close(name, got, truth, FP32)


def test_float64_is_exact():
    inputs = problem((3, 40), torch.float64)
    expected = run(rms_norm_reference, *inputs)
    for got, truth in zip(run(rms_norm, *inputs), expected, strict=True):
        assert_close("fp64", got, truth, 1e-14)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_bit_of_transformers_module_in_bf16(weight_dtype):
    hidden, weight, _ = problem((64, 96), torch.bfloat16)
    module = GptOssRMSNorm(96, eps=EPS)
    module.weight.data = weight.to(weight_dtype)
    assert torch.equal(rms_norm(hidden, module.weight, EPS), module(hidden))


def test_one_copy_in_its_own_dtype_is_kept_for_backward():
    hidden, weight, _ = problem((16, 32), torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        rms_norm(hidden.requires_grad_(), weight, EPS)
    assert sum(x.nbytes for x in saved) == hidden.nbytes + weight.nbytes + 16 * 4


def test_a_frozen_weight_costs_no_gradient():
    hidden, weight, grad = problem((4, 8), torch.float32)
    normed = rms_norm(hidden.requires_grad_(), weight, EPS)
    normed.backward(grad)
    assert hidden.grad is not None and weight.grad is None


def test_mistakes_are_named():
    hidden, weight, _ = problem((4, 8), torch.float32)
    with pytest.raises(ValueError, match=r"a weight of shape \(8,\)"):
        rms_norm(hidden, weight[1:], EPS)
