"""Weights that depend on a row's loss, entropies and temperature: float64 autograd and counting."""

import math

import pytest
import torch
from gptoss_kernels.cross_entropy_rows import row_losses_
from gptoss_kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from gptoss_kernels.packed_linear import INT8_BLOCK, TILE_ROWS, Int8Weight, quantize_int8
from gptoss_kernels.testing import relative_rms
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = ["torch", "triton"]
FP32_TOLERANCE = 3e-6  # relative RMS; measured <= 6e-7 over these cases on a CPU
CASES = {
    "one token": {"n": 1, "h": 8, "v": 11, "chunk": 4},
    "odd sizes, last chunk of one row": {"n": 29, "h": 24, "v": 101, "chunk": 4},
    "vocabulary a power of two": {"n": 16, "h": 16, "v": 128, "chunk": 8},
}


def problem(n, h, v, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, h, generator=generator, dtype=torch.float64) * 0.5
    labels = torch.randint(0, v, (n,), generator=generator)
    weights = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    if n > 4:  # rows without loss: by weight, by label, by both
        weights[1] = weights[n // 2] = 0
        labels[2] = labels[n // 2] = -100
    return hidden.to(dtype), weight.to(dtype), labels, weights.float()


def objective(losses, rows):
    """Return a bent function of each row's loss, another one for each row; autograd bends it."""
    slant = 1.0 + rows.to(losses) / 40
    return torch.sin(losses * slant) + torch.minimum(losses, slant)


def slopes(losses, rows):
    """Return its derivative, worked by hand."""
    slant = 1.0 + rows.to(losses) / 40
    return slant * torch.cos(losses * slant) + (losses < slant).to(losses)


def truth(hidden, weight, labels, weights, temperature):
    """Return value, entropies and gradients of the weighted sum of ``objective``."""
    hidden = hidden.detach().clone().double().requires_grad_()
    weight = weight.detach().clone().double().requires_grad_()
    log_p = (hidden @ weight.T / temperature).log_softmax(-1)
    counted = (labels != -100) & (weights != 0)
    losses = -log_p.gather(1, labels.where(counted, 0)[:, None])[:, 0]
    each = objective(losses, torch.arange(len(losses))) * weights.double()
    total = each[counted].sum()
    total.backward()
    entropies = (-(log_p.exp() * log_p).sum(1)).detach().where(counted, 0.0)
    losses = losses.detach().where(counted, 0.0)
    return losses, entropies, hidden.grad, weight.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_any_function_of_the_own_loss_has_its_gradient_in_one_pass(
    case, temperature, backend, device, poisoned_empty
):
    inputs = problem(case["n"], case["h"], case["v"])
    losses, entropies, grad_hidden, grad_weight = truth(*inputs, temperature)
    hidden, weight, labels, weights = (tensor.to(device) for tensor in inputs)
    hidden.requires_grad_()
    weight.requires_grad_()
    found = torch.empty(len(labels), device=device)
    total, actual = linear_cross_entropy(
        hidden,
        weight,
        labels,
        weights,
        chunk_rows=case["chunk"],
        temperature=temperature,
        row_weights=lambda losses, rows: weights[rows] * slopes(losses, rows),
        entropies=found,
        backend=backend,
    )
    (total * 0.25).backward()
    assert not actual.requires_grad and not found.requires_grad
    assert relative_rms(actual, losses) < FP32_TOLERANCE
    assert relative_rms(found, entropies) < FP32_TOLERANCE
    assert relative_rms(hidden.grad, grad_hidden * 0.25) < FP32_TOLERANCE
    assert relative_rms(weight.grad, grad_weight * 0.25) < FP32_TOLERANCE


def test_float64_across_vocabulary_tiles_and_the_reference_of_the_op():
    inputs = problem(7, 4, 2 * 8192 + 1, torch.float64)
    losses, entropies, grad_hidden, grad_weight = truth(*inputs, 0.7)
    for op in (linear_cross_entropy, linear_cross_entropy_reference):
        hidden, weight = (tensor.clone().requires_grad_() for tensor in inputs[:2])
        found = torch.empty(7, dtype=torch.float64)
        total, actual = op(
            hidden,
            weight,
            *inputs[2:],
            temperature=0.7,
            row_weights=lambda losses, rows: inputs[3][rows] * slopes(losses, rows),
            entropies=found,
        )
        total.backward()
        assert relative_rms(actual, losses) < 1e-14
        assert relative_rms(found, entropies) < 1e-13
        assert relative_rms(hidden.grad, grad_hidden) < 1e-13
        assert relative_rms(weight.grad, grad_weight) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocabulary", [101, TILE_ROWS + 5], ids=["one tile", "a tile and 5 rows"])
def test_a_packed_head(vocabulary, backend, device, poisoned_empty):
    hidden, weight, labels, weights = problem(19, INT8_BLOCK, vocabulary)
    packed = quantize_int8(weight * 0.5)
    decoded = packed.rows(0, vocabulary)
    losses, entropies, grad_hidden, _ = truth(hidden, decoded, labels, weights, 1.4)
    own = hidden.to(device).requires_grad_()
    weights = weights.to(device)
    found = torch.empty(19, device=device)
    total, actual = linear_cross_entropy(
        own,
        Int8Weight(packed.values.to(device), packed.scales.to(device), packed.dtype),
        labels.to(device),
        weights,
        chunk_rows=8,
        temperature=1.4,
        row_weights=lambda losses, rows: weights[rows] * slopes(losses, rows),
        entropies=found,
        backend=backend,
    )
    total.backward()
    assert relative_rms(actual, losses) < FP32_TOLERANCE
    assert relative_rms(found, entropies) < FP32_TOLERANCE
    assert relative_rms(own.grad, grad_hidden) < FP32_TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2], ids=["plain", "z-loss"])
def test_a_function_that_returns_the_weights_changes_no_bit(z_loss, backend, device):
    inputs = problem(29, 24, 101)
    hidden, weight, labels, weights = (tensor.to(device) for tensor in inputs)
    results = []
    for options in (
        {},
        {"row_weights": lambda losses, rows: weights[rows]},
        {"entropies": torch.empty(29, device=device)},
    ):
        own = hidden.clone().requires_grad_()
        total, losses = linear_cross_entropy(
            own, weight, labels, weights, chunk_rows=8, z_loss=z_loss, backend=backend, **options
        )
        total.backward()
        results.append((total.detach(), losses, own.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class Products(TorchDispatchMode):
    """Records the rows of each matrix product."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "mm":
            self.rows.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [True, False], ids=["training", "evaluation"])
def test_neither_a_function_nor_entropies_cost_a_product_with_the_head(grad):
    hidden, weight, labels, weights = problem(20, 8, 50)
    hidden.requires_grad_(grad)
    asked = []

    def row_weights(losses, rows):
        assert not torch.is_grad_enabled()
        asked.append(rows)
        return losses

    with Products() as products:
        total, losses = linear_cross_entropy(
            hidden,
            weight,
            labels,
            weights,
            chunk_rows=8,
            row_weights=row_weights,
            entropies=torch.empty(20),
        )
    assert products.rows == ([8, 8, 8, 8, 1, 1] if grad else [8, 8, 1])
    assert [len(rows) for rows in asked] == [8, 8, 1]
    counted = (labels != -100) & (weights != 0)
    assert torch.equal(torch.cat(asked), counted.nonzero().flatten())
    assert relative_rms(total.detach(), losses.double().square().sum()) < FP32_TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_loss_stay_out_whatever_the_function_says(backend, device):
    inputs = problem(12, 8, 40)
    hidden, weight, labels, weights = (tensor.to(device) for tensor in inputs)
    dead = ((labels == -100) | (weights == 0)).cpu()
    hidden[1] = float("nan")
    hidden.requires_grad_()
    found = torch.empty(12, device=device)

    def row_weights(losses, rows):
        # Nothing for row 3, which has a loss, and nonsense for those that have none.
        nonsense = torch.where(losses == 0, float("nan"), 1.0)
        return torch.where(rows == 3, 0.0, nonsense)

    # More rows than carry loss, as on a GPU that is not told: the dead ones go through the head.
    total, losses = linear_cross_entropy(
        hidden,
        weight,
        labels,
        weights,
        row_weights=row_weights,
        entropies=found,
        selected_rows=12,
        backend=backend,
    )
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(hidden.grad).all()
    assert (hidden.grad[dead] == 0).all() and (found[dead] == 0).all()
    assert (hidden.grad[3] == 0).all() and losses[3] > 0 and found[3] > 0
    alive = ~dead & (torch.arange(12) != 3)
    assert (hidden.grad[alive] != 0).any(1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_of_the_gather_stays_zero_whatever_the_function_says(backend, device):
    """A GPU that is not told how many rows carry loss has others in its chunks; a CPU never has."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 40, generator=generator).to(device)
    logits[4] = float("nan")
    scales = torch.tensor([0.5, 1.0, 2.0, 1.0, 0.0, 0.0], device=device)
    found, weights = row_losses_(
        logits,
        torch.arange(6, device=device),
        scales,
        torch.arange(6, device=device),
        lambda losses, rows: torch.where(losses == 0, float("nan"), losses),
        temperature=0.7,
        z_loss=0.0,
        with_entropies=True,
        with_grad=True,
        backend=backend,
    )
    assert torch.equal(weights[:4], found.losses[:4]) and (found.losses[:4] > 0).all()
    for values in (weights, found.losses, found.lse, found.entropies, logits):
        assert (values[4:] == 0).all() and (values[:4] != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropy_of_distributions_that_are_known(backend, device):
    # No difference, one certain word, two of four left by logits of -inf.
    inf = float("inf")
    logits = torch.tensor([[3.0] * 4, [200.0, 0, 0, 0], [1.0, 1.0, -inf, -inf]], device=device)
    found = torch.empty(3, device=device)
    for row in range(3):  # a head each: a product of zero and infinity is NaN
        one = torch.empty(1, device=device)
        linear_cross_entropy(
            torch.ones(1, 1, device=device),
            logits[row][:, None].contiguous(),
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.ones(1, device=device),
            entropies=one,
            backend=backend,
        )
        found[row] = one[0]
    expected = torch.tensor([math.log(4), 0.0, math.log(2)], device=device)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("selected_rows", [None, 6], ids=["not known", "known"])
def test_a_gpu_is_never_waited_for(selected_rows):
    # A meta tensor takes the path of a GPU, and reading a value from one raises.
    hidden = torch.empty(8, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    total, losses = linear_cross_entropy(
        hidden,
        torch.empty(50, 16, device="meta", dtype=torch.bfloat16),
        torch.empty(8, device="meta", dtype=torch.int64),
        torch.empty(8, device="meta"),
        chunk_rows=4,
        temperature=0.5,
        row_weights=lambda losses, rows: losses.exp(),
        entropies=torch.empty(8, device="meta"),
        selected_rows=selected_rows,
    )
    total.backward()
    assert losses.device.type == "meta" and hidden.grad.shape == (8, 16)


def test_mistakes_are_named():
    inputs = problem(6, 8, 40)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        linear_cross_entropy(*inputs, temperature=0.0)
    with pytest.raises(ValueError, match=r"entropies must be \(6,\) of torch.float32"):
        linear_cross_entropy(*inputs, entropies=torch.empty(5))
    with pytest.raises(ValueError, match=r"got \(6,\) of torch.float64"):
        linear_cross_entropy(*inputs, entropies=torch.empty(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="asks for none"):
        linear_cross_entropy(*inputs, entropies=torch.empty(6, requires_grad=True))
