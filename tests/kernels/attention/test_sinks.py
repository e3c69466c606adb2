"""O' and LSE' from a kernel without sinks, and rowsum(dO * O'), against float64."""

import pytest
import torch
from gptoss_kernels.attention.sinks import (
    add_sinks,
    add_sinks_reference,
    row_sums,
    row_sums_reference,
)
from gptoss_kernels.testing import assert_close

BACKENDS = ["torch", "triton"]
FP32 = 1e-6  # relative RMS; measured <= 9e-8 over these cases, both backends, on a CPU
BF16 = 2.0**-8  # half a unit in the last place, at worst: what one rounding costs

# Tiles have 64 tokens.
SHAPES = {
    "one token": (1, 1, 1, 16),
    "one less than a tile, odd heads": (2, 63, 3, 64),
    "one more than two tiles": (1, 129, 4, 64),
    "no token": (1, 0, 2, 64),
}


def draw(shape, seed=0):
    batch, length, heads, _ = shape
    generator = torch.Generator().manual_seed(seed)
    out, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "ab")
    lse = 6 * torch.randn(batch, heads, length, generator=generator, dtype=torch.float64)
    return out, grad, lse, torch.linspace(-4, 9, heads, dtype=torch.float64)


def as_flash_gives(out, lse):
    """O as rows of tokens, LSE as ``[H, T]``: a transposed view where there are several rows."""
    batch, length, heads, size = out.shape
    rows = out.reshape(batch * length, heads, size).view(batch, length, heads, size)
    flat = lse.transpose(0, 1).reshape(heads, batch * length)
    return rows, flat.view(heads, batch, length).transpose(0, 1)


def as_cudnn_gives(out, lse):
    """O with heads outside tokens, LSE with a last dimension of 1."""
    return out.transpose(1, 2).contiguous().transpose(1, 2), lse.unsqueeze(-1)[..., 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [as_flash_gives, as_cudnn_gives])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sinks_equal_float64(shape, layout, backend, device, poisoned_empty):
    out, _, lse, sinks = (tensor.to(device) for tensor in draw(shape))
    expected = add_sinks_reference(out, lse, sinks)
    out, lse = layout(out.float(), lse.float())
    lse_before = lse.clone()
    scaled, with_sink = add_sinks(out, lse, sinks.float(), backend=backend)
    assert scaled.is_contiguous() and with_sink.is_contiguous()
    assert with_sink.dtype == torch.float32 and torch.equal(lse, lse_before)
    assert_close("O'", scaled, expected[0], FP32)
    assert_close("LSE'", with_sink, expected[1], FP32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_contiguous_output_is_scaled_in_its_place(backend, device):
    out, _, lse, sinks = (tensor.float().to(device) for tensor in draw((2, 65, 2, 32)))
    scaled, _ = add_sinks(out, lse, sinks, backend=backend)
    assert scaled.data_ptr() == out.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_are_right_where_the_exponentials_overflow(backend, device):
    out = torch.ones(1, 4, 2, 16, device=device)
    lse = torch.tensor([[[500.0, -500.0, float("-inf"), 0.0]] * 2], device=device)
    sinks = torch.tensor([0.0, 200.0], device=device)
    scaled, with_sink = add_sinks(out, lse, sinks, backend=backend)
    # A row that sees nothing, or is far below its sink, gives its whole weight to the sink.
    assert scaled[0, :, :, 0].T.tolist() == [[1.0, 0.0, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0]]
    assert with_sink[0, 1].tolist() == [500.0, 200.0, 200.0, 200.0]
    assert with_sink[0, 0, :3].tolist() == [500.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("backend", "where"),
    [("torch", "cpu"), pytest.param("triton", "cuda", marks=pytest.mark.gpu)],
)
def test_bf16_is_rounded_once(backend, where):
    out, grad, lse, sinks = (tensor.to(where) for tensor in draw((1, 200, 4, 64)))
    out, grad, lse = out.bfloat16(), grad.bfloat16(), lse.float()
    sinks = sinks.bfloat16()
    expected, _ = add_sinks_reference(out.double(), lse.double(), sinks)
    scaled, _ = add_sinks(out.clone(), lse, sinks, backend=backend)
    error = (scaled.double() - expected).abs() / expected.abs()
    assert scaled.dtype == torch.bfloat16 and error.max() <= 1.001 * BF16
    # The products of the sums are not rounded.
    sums = row_sums(grad, out, backend=backend)
    assert_close("rowsum", sums, row_sums_reference(grad.double(), out.double()), FP32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_row_sums_equal_float64(shape, backend, device, poisoned_empty):
    out, grad, *_ = (tensor.to(device) for tensor in draw(shape))
    expected = row_sums_reference(grad, out)
    # As a projection's backward gives it: heads outside tokens.
    strided = grad.float().transpose(1, 2).contiguous().transpose(1, 2)
    sums = row_sums(strided, out.float(), backend=backend)
    assert sums.is_contiguous() and sums.dtype == torch.float32
    assert_close("rowsum", sums, expected, FP32)


def test_row_sums_in_torch_keep_float64_and_take_long_rows_in_pieces():
    generator = torch.Generator().manual_seed(1)
    grad, out = (torch.randn(1, 9000, 1, 2, generator=generator).double() for _ in "ab")
    sums = row_sums(grad, out, backend="torch")
    assert torch.equal(sums, row_sums_reference(grad, out))


def test_mistakes_are_named():
    out, grad, lse, sinks = (tensor.float() for tensor in draw((1, 5, 2, 24)))
    with pytest.raises(ValueError, match=r"lse \[B, Hq, S\]"):
        add_sinks(out, lse.mT, sinks, backend="torch")
    with pytest.raises(ValueError, match="sinks need shape"):
        add_sinks(out, lse, sinks[:1], backend="torch")
    with pytest.raises(ValueError, match="fp32 lse"):
        add_sinks(out, lse.double(), sinks, backend="torch")
    with pytest.raises(ValueError, match="backend must be"):
        add_sinks(out, lse, sinks, backend="liger")
    with pytest.raises(ValueError, match="two tensors"):
        row_sums(grad[:, :2], out, backend="torch")


@pytest.mark.triton
def test_a_head_size_without_a_kernel_is_named(device):
    out, grad, lse, sinks = (tensor.float().to(device) for tensor in draw((1, 5, 2, 24)))
    for call in (
        lambda: add_sinks(out, lse, sinks, backend="triton"),
        lambda: row_sums(grad, out, backend="triton"),
    ):
        with pytest.raises(ValueError, match='use backend "torch"'):
            call()
