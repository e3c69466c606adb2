"""Fused linear cross-entropy against float64 autograd through the whole logits."""

import pytest
import torch
from gptoss_kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = ["torch", "triton"]
FP32_TOLERANCE = 2e-6  # relative RMS; measured <= 4e-7 over these cases on a CPU

CASES = {
    "one token": {"n": 1, "h": 8, "v": 11, "chunk": 4},
    "fewer rows than a chunk": {"n": 5, "h": 16, "v": 33, "chunk": 64},
    "odd sizes, last chunk of one row": {"n": 29, "h": 24, "v": 101, "chunk": 4},
    "vocabulary a power of two": {"n": 16, "h": 16, "v": 128, "chunk": 8},
}


def problem(n, h, v, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, h, generator=generator, dtype=torch.float64) * 0.5
    labels = torch.randint(0, v, (n,), generator=generator)
    weights = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    if n > 4:  # rows without loss: by weight, by label, by both
        weights[1] = weights[n // 2] = 0
        labels[2] = labels[n // 2] = -100
        labels[n - 1] = 0
    return hidden.to(dtype), weight.to(dtype), labels, weights.float()


def relative_rms(actual, expected):
    expected = expected.double()
    scale = expected.square().mean().sqrt()
    assert scale > 0, "the reference is all zero: nothing would be compared"
    return ((actual.double() - expected).square().mean().sqrt() / scale).item()


def expected_of(hidden, weight, labels, weights, z_loss=0.0):
    hidden = hidden.double().detach().requires_grad_()
    weight = weight.double().detach().requires_grad_()
    total, losses = linear_cross_entropy_reference(
        hidden, weight, labels, weights.double(), z_loss=z_loss
    )
    total.backward()
    return total.detach(), losses, hidden.grad, weight.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2], ids=["plain", "z-loss"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_float64(case, z_loss, backend, device):
    inputs = problem(case["n"], case["h"], case["v"], torch.float32)
    hidden, weight, labels, weights = (tensor.to(device) for tensor in inputs)
    total, losses, grad_hidden, grad_weight = expected_of(hidden, weight, labels, weights, z_loss)
    hidden.requires_grad_()
    weight.requires_grad_()
    actual, actual_losses = linear_cross_entropy(
        hidden,
        weight,
        labels,
        weights,
        chunk_rows=case["chunk"],
        z_loss=z_loss,
        backend=backend,
    )
    (actual * 0.25).backward()
    assert actual.dtype == torch.float32 and actual.ndim == 0
    assert not actual_losses.requires_grad
    assert relative_rms(actual, total) < FP32_TOLERANCE
    assert relative_rms(actual_losses, losses) < FP32_TOLERANCE
    assert relative_rms(hidden.grad, grad_hidden * 0.25) < FP32_TOLERANCE
    assert relative_rms(weight.grad, grad_weight * 0.25) < FP32_TOLERANCE


def test_float64_is_exact_to_its_last_digits_across_vocabulary_tiles():
    # More columns than one tile of 8,192, and a last tile of one column.
    hidden, weight, labels, weights = problem(7, 4, 2 * 8192 + 1)
    labels[3] = 2 * 8192
    total, losses, grad_hidden, grad_weight = expected_of(hidden, weight, labels, weights, 1e-3)
    hidden.requires_grad_()
    weight.requires_grad_()
    actual, actual_losses = linear_cross_entropy(
        hidden, weight, labels, weights, chunk_rows=3, z_loss=1e-3
    )
    actual.backward()
    assert actual.dtype == torch.float64
    assert relative_rms(actual, total) < 1e-14
    assert relative_rms(actual_losses, losses) < 1e-14
    assert relative_rms(hidden.grad, grad_hidden) < 1e-13
    assert relative_rms(weight.grad, grad_weight) < 1e-13


@pytest.mark.parametrize(
    ("backend", "device"),
    [("torch", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)],
)
def test_bf16_is_no_worse_than_the_unfused_loss(backend, device):
    inputs = problem(64, 64, 257, torch.bfloat16)
    hidden, weight, labels, weights = (tensor.to(device) for tensor in inputs)
    hidden[5] = weight[labels[5]] * 20  # a token the model is sure of: p - 1 must not vanish
    _, losses, grad_hidden, _ = expected_of(hidden, weight, labels, weights)

    unfused = hidden.clone().requires_grad_()
    logits = (unfused @ weight.T).float()
    eager = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (eager * weights).sum().backward()

    fused = hidden.clone().requires_grad_()
    total, actual = linear_cross_entropy(
        fused, weight, labels, weights, chunk_rows=16, backend=backend
    )
    total.backward()
    eager_losses = eager.detach().where(losses != 0, 0.0)
    assert relative_rms(actual, losses) <= 1.5 * relative_rms(eager_losses, losses)
    assert fused.grad.dtype == torch.bfloat16
    assert relative_rms(fused.grad, grad_hidden) <= 1.5 * relative_rms(unfused.grad, grad_hidden)


class Watch(TorchDispatchMode):
    """Records the largest result of an operation, and operations that make the host wait."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "unique")

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.waits = []
        self.products = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if any(wait in name for wait in self.WAITS):
            self.waits.append(name)
        if name == "mm":
            self.products.append(tuple(args[0].shape))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_logits_are_never_built_and_prompts_never_reach_the_head():
    hidden, weight, labels, weights = problem(256, 8, 1000, torch.float32)
    weights[:] = 0
    weights[100:140] = 1
    labels[100:140] = 5
    hidden.requires_grad_()
    with Watch() as watch:
        loss, _ = linear_cross_entropy(hidden, weight, labels, weights, chunk_rows=16)
        loss.backward()
    assert watch.largest <= 16 * 1000, "something larger than one chunk of logits was made"
    rows = [shape[0] for shape in watch.products]
    assert rows == [16, 16, 16, 16, 8, 8], "40 rows carry loss: three chunks, two products each"
    assert (hidden.grad[:100] == 0).all() and (hidden.grad[140:] == 0).all()


@pytest.mark.parametrize("selected_rows", [None, 6], ids=["not known", "known"])
def test_a_gpu_is_never_waited_for(selected_rows):
    # A meta tensor takes the path of a GPU, and reading a value from one raises.
    hidden = torch.empty(8, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(50, 16, device="meta", dtype=torch.bfloat16)
    labels = torch.empty(8, device="meta", dtype=torch.int64)
    weights = torch.empty(8, device="meta")
    with Watch() as watch:
        loss, losses = linear_cross_entropy(
            hidden, weight, labels, weights, chunk_rows=4, selected_rows=selected_rows
        )
        loss.backward()
    assert losses.device.type == "meta" and hidden.grad.shape == (8, 16)
    assert not watch.waits
    expected = [4, 4] if selected_rows is None else [4, 2]
    assert [shape[0] for shape in watch.products] == [rows for rows in expected for _ in "ab"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_row_without_loss_stays_there(backend, device):
    inputs = problem(12, 8, 40, torch.float32)
    hidden, weight, labels, weights = (tensor.to(device) for tensor in inputs)
    clean, _ = linear_cross_entropy(hidden, weight, labels, weights)
    hidden[1] = float("nan")
    hidden.requires_grad_()
    # More rows than carry loss, as on a GPU that is not told: the NaN row goes through the head.
    loss, losses = linear_cross_entropy(
        hidden, weight, labels, weights, selected_rows=12, backend=backend
    )
    loss.backward()
    assert torch.equal(loss, clean) or abs(loss - clean) < 1e-5
    assert torch.isfinite(losses).all() and torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_row_with_loss_is_shown(backend, device):
    inputs = problem(12, 8, 40, torch.float32)
    hidden, weight, labels, weights = (tensor.to(device) for tensor in inputs)
    hidden[3] = float("nan")
    loss, losses = linear_cross_entropy(hidden, weight, labels, weights, backend=backend)
    assert loss.isnan() and losses[3].isnan()


def test_no_row_with_loss_gives_zero_and_a_zero_gradient():
    hidden, weight, labels, weights = problem(6, 8, 40, torch.float32)
    hidden.requires_grad_()
    loss, losses = linear_cross_entropy(hidden, weight, labels, torch.zeros_like(weights))
    loss.backward()
    assert loss == 0 and (losses == 0).all() and (hidden.grad == 0).all()


def test_micro_batches_and_chunks_give_one_and_the_same_step():
    hidden, weight, labels, weights = problem(40, 16, 67)
    whole = hidden.clone().requires_grad_()
    total, losses = linear_cross_entropy(whole, weight, labels, weights)
    (total / weights.sum()).backward()
    parts = hidden.clone().requires_grad_()
    for rows in (slice(0, 7), slice(7, 8), slice(8, 40)):
        part, part_losses = linear_cross_entropy(
            parts[rows], weight, labels[rows], weights[rows], chunk_rows=5
        )
        (part / weights.sum()).backward()
        assert relative_rms(part_losses, losses[rows]) < 1e-14
    assert relative_rms(parts.grad, whole.grad) < 1e-14


def test_evaluation_makes_no_gradient():
    hidden, weight, labels, weights = problem(6, 8, 40, torch.float32)
    hidden.requires_grad_()
    with torch.no_grad(), Watch() as watch:
        loss, _ = linear_cross_entropy(hidden, weight, labels, weights)
    assert not loss.requires_grad
    assert len(watch.products) == 1


def test_autocast_does_not_change_the_result():
    hidden, weight, labels, weights = problem(6, 8, 40, torch.float32)
    plain, _ = linear_cross_entropy(hidden, weight, labels, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = linear_cross_entropy(hidden, weight, labels, weights)
    assert torch.equal(plain, inside)


def test_a_graph_is_walked_once():
    hidden, weight, labels, weights = problem(6, 8, 40, torch.float32)
    hidden.requires_grad_()
    loss, _ = linear_cross_entropy(hidden, weight, labels, weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="walking one graph twice"):
        loss.backward()


def test_mistakes_are_named():
    hidden, weight, labels, weights = problem(6, 8, 40, torch.float32)
    with pytest.raises(ValueError, match=r"hidden \[N, H\]"):
        linear_cross_entropy(hidden[None], weight, labels, weights)
    with pytest.raises(ValueError, match="one label and one weight per row"):
        linear_cross_entropy(hidden, weight, labels[1:], weights)
    with pytest.raises(ValueError, match="one floating dtype"):
        linear_cross_entropy(hidden.bfloat16(), weight, labels, weights)
    with pytest.raises(ValueError, match="labels must be int64"):
        linear_cross_entropy(hidden, weight, labels.int(), weights)
    with pytest.raises(ValueError, match="detach it"):
        linear_cross_entropy(hidden, weight, labels, weights.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"selected_rows=1, but \d rows carry loss"):
        linear_cross_entropy(hidden, weight, labels, weights, selected_rows=1)
    with pytest.raises(ValueError, match="chunk_rows must be positive"):
        linear_cross_entropy(hidden, weight, labels, weights, chunk_rows=0)
    with pytest.raises(ValueError, match="backend must be"):
        linear_cross_entropy(hidden, weight, labels, weights, backend="liger")
