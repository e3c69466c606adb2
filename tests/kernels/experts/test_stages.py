"""Swiglu, combine, grouped products and ragged reductions against float64 autograd."""

import pytest
import torch
from gptoss_kernels import (
    LowRankTerm,
    combine,
    combine_reference,
    grouped_matmul,
    grouped_matmul_reference,
    ragged_outer,
    ragged_outer_reference,
    route,
    swiglu,
    swiglu_reference,
)
from gptoss_kernels.experts.grouped_mm import grouped_matmul_at_once
from gptoss_kernels.swiglu import launch_gated_swiglu_backward, swiglu_backward_reference
from gptoss_kernels.testing import assert_close, make_routing

BACKENDS = ["torch", "triton"]
FLOAT32 = 1e-6
"""Relative RMS of float32 against float64; measured below 4e-7 on these shapes."""
pytestmark = pytest.mark.usefixtures("poisoned_empty")


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def leaf(tensor, device=None, dtype=None):
    return tensor.detach().to(device, dtype).clone().requires_grad_()


def compare(actual_inputs, actual, expected_inputs, expected, tolerance=FLOAT32):
    """Compare outputs and the gradients of one random functional of them."""
    assert_close("out", actual.cpu(), expected, tolerance)
    probe = draw(*expected.shape, seed=77)
    grads = torch.autograd.grad((expected * probe).sum(), list(expected_inputs.values()))
    probe = probe.to(actual.device, actual.dtype)
    ours = torch.autograd.grad((actual * probe).sum(), list(actual_inputs.values()))
    for name, mine, theirs in zip(expected_inputs, ours, grads, strict=True):
        assert_close(f"d {name}", mine.cpu(), theirs, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 10), (2, 5, 64), (1, 4100)], ids=["odd", "3d", "two-blocks"])
def test_swiglu(backend, shape, device):
    # Scale 6: about a quarter of the values lie beyond a bound of 7.
    x = leaf(draw(*shape, scale=6.0))
    gate, up = x[..., 0::2].clamp(max=7.0), x[..., 1::2].clamp(-7.0, 7.0)
    expected = (up + 1) * (gate * torch.sigmoid(1.702 * gate))
    ours = leaf(x, device, torch.float32)
    compare({"x": ours}, swiglu(ours, backend=backend), {"x": x}, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_swiglu_clamps_like_torch_on_the_bound(backend, device):
    """The gate passes its gradient below -limit; nothing passes above; the bound itself does."""
    pairs = [(-9.0, 1.0), (7.0, 1.0), (7.5, 1.0), (1.0, 7.0), (1.0, 7.5), (1.0, -7.0), (1.0, -7.5)]
    x = torch.tensor(pairs, device=device).flatten().requires_grad_()
    swiglu(x, backend=backend).sum().backward()
    nonzero = (x.grad.view(-1, 2) != 0).tolist()
    assert nonzero == [
        [True, True],
        [True, True],
        [False, True],
        [True, True],
        [True, False],
        [True, True],
        [True, False],
    ]


@pytest.mark.triton
def test_gated_swiglu_backward(device):
    rows, used = 9, 7
    z = draw(rows, 2 * 1100, scale=4.0).to(device, torch.float32)
    d_activation = draw(rows, 1100, seed=1).to(device, torch.float32)
    gates = draw(rows, seed=2).to(device, torch.float32)
    count = torch.tensor([used], dtype=torch.int32, device=device)
    gated = launch_gated_swiglu_backward(z, d_activation.clone(), gates, count, 1.702, 7.0)
    h = swiglu_reference(z.double())
    expected = swiglu_backward_reference(
        z.double(), d_activation.double() * gates[:, None].double()
    )
    assert_close("dZ", gated.gate_up[:used], expected[:used], FLOAT32)
    assert_close("H", gated.activation[:used], h[:used], FLOAT32)
    share = (h * d_activation.double()).sum(-1)
    assert_close("share", gated.share[:used], share[:used], FLOAT32)
    assert gated.gate_up[used:].isnan().all()  # past the rows in use nothing is written
    over = launch_gated_swiglu_backward(
        z, d_activation.clone(), gates, count, 1.702, 7.0, overwrite=True
    )
    assert over.gate_up is z and torch.equal(z[:used], gated.gate_up[:used])
    assert torch.equal(over.activation[:used], gated.activation[:used])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "sum"])
@pytest.mark.parametrize(
    ("tokens", "top_k", "hidden"), [(5, 4, 40), (2, 1, 1030), (9, 8, 32)], ids=str
)
def test_combine(backend, weighted, tokens, top_k, hidden, device):
    indices = make_routing(tokens, top_k, 2 * top_k)
    indices[0, 0] = 99  # an expert of another rank
    row_indices = route(indices, 2 * top_k).row_indices
    rows = leaf(draw(tokens * top_k, hidden))
    weights = leaf(draw(tokens, top_k, seed=1)) if weighted else None
    expected = combine_reference(rows, row_indices, weights)
    ours = leaf(rows, device, torch.float32)
    with torch.no_grad():
        ours[-1] = float("nan")  # the absent row sorts last and belongs to no token
    our_weights = None if weights is None else leaf(weights, device, torch.float32)
    actual = combine(ours, row_indices.to(device), our_weights, backend=backend)
    given = {"rows": rows} | ({"weights": weights} if weighted else {})
    mine = {"rows": ours} | ({"weights": our_weights} if weighted else {})
    compare(mine, actual, given, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_combine_by_hand(backend, device):
    rows = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], device=device)
    row_indices = torch.tensor([[2, 0], [1, -1]], dtype=torch.int32, device=device)
    weights = torch.tensor([[0.5, 2.0], [3.0, 7.0]], device=device)
    out = combine(rows, row_indices, weights, backend=backend)
    assert out.tolist() == [[52.0, 104.0], [30.0, 60.0]]


PRODUCTS = [
    # rows, experts, columns, inner, rank, kind
    pytest.param(33, 4, 70, 40, 5, "random", id="odd-sizes"),
    pytest.param(40, 5, 130, 96, 0, "first", id="no-rank-empty-last-experts"),
    pytest.param(18, 3, 3, 64, 2, "last", id="skinny"),
    pytest.param(2, 2, 64, 32, 16, "random", id="one-row-each"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["k-contiguous", "n-contiguous"])
@pytest.mark.parametrize(("tokens", "num_experts", "columns", "inner", "rank", "kind"), PRODUCTS)
def test_grouped_matmul(
    backend, transposed, tokens, num_experts, columns, inner, rank, kind, device
):
    routing = route(make_routing(tokens, 2, num_experts, kind=kind), num_experts)
    offsets, tokens_of_rows = routing.expert_offsets, routing.token_indices
    x = leaf(draw(tokens, inner))
    w, bias = draw(num_experts, columns, inner, seed=1), draw(num_experts, columns, seed=2)
    low, factor = leaf(draw(2 * tokens, max(rank, 1), seed=3)), None
    inputs, ours = {"x": x}, {"x": leaf(x, device, torch.float32)}
    experts_of_rows = torch.arange(num_experts).repeat_interleave(offsets.diff())
    expected = torch.einsum("mk,mnk->mn", x[tokens_of_rows], w[experts_of_rows])
    expected = expected + bias[experts_of_rows]
    low_rank = None
    if rank:
        factor = leaf(draw(num_experts, columns, rank, seed=4))
        expected = expected + 1.5 * torch.einsum("mr,mnr->mn", low, factor[experts_of_rows])
        inputs |= {"low": low, "factor": factor}
        ours |= {n: leaf(t, device, torch.float32) for n, t in (("low", low), ("factor", factor))}
        low_rank = LowRankTerm(ours["low"], ours["factor"], 1.5)
    w = w.to(device, torch.float32)
    actual = grouped_matmul(
        ours["x"],
        w.mT.contiguous().mT if transposed else w,
        offsets.to(device),
        token_indices=tokens_of_rows.to(device),
        bias=bias.to(device, torch.float32),
        low_rank=low_rank,
        backend=backend,
    )
    compare(ours, actual, inputs, expected)


@pytest.mark.parametrize(
    ("tokens", "num_experts", "columns", "inner", "rank", "kind"),
    [(33, 4, 64, 32, 5, "random"), (40, 5, 96, 64, 0, "first"), (18, 3, 32, 96, 16, "ends")],
    ids=str,
)
def test_all_experts_at_once(tokens, num_experts, columns, inner, rank, kind):
    """torch's grouped product with its glue, as backend "torch" runs it on a GPU."""
    indices = make_routing(tokens, 2, num_experts, kind=kind)
    indices[0, 0] = 99  # an expert of another rank: its row is zero
    routing = route(indices, num_experts)
    x, w = draw(tokens, inner).float(), draw(num_experts, columns, inner, seed=1).float()
    options = {"token_indices": routing.token_indices, "bias": draw(num_experts, columns).float()}
    if rank:
        low, factor = draw(2 * tokens, rank, seed=3), draw(num_experts, columns, rank, seed=4)
        options["low_rank"] = LowRankTerm(low.float(), factor.float(), 1.5)
    expected = grouped_matmul_reference(x, w, routing.expert_offsets, **options)
    assert not expected[-1].any()
    for matrices in (w, w.mT.contiguous().mT):
        actual = grouped_matmul_at_once(x, matrices, routing.expert_offsets, **options)
        assert_close("out", actual, expected, FLOAT32)
        assert not actual[-1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_past_the_last_expert_are_zero(backend, device):
    offsets = torch.tensor([0, 2, 3], dtype=torch.int32, device=device)
    rows, w = torch.ones((5, 32), device=device), torch.ones((2, 40, 32), device=device)
    out = grouped_matmul(rows, w, offsets, backend=backend)
    assert (out[:3] == 32).all()
    assert not out[3:].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["A", "B"])
@pytest.mark.parametrize(("rank", "columns"), [(3, 70), (16, 32), (80, 40)], ids=str)
def test_ragged_outer(backend, transposed, rank, columns, device):
    routing = route(make_routing(50, 2, 6, kind="ends"), 6)
    skinny, wide = draw(100, rank), draw(50, columns, seed=1)
    gates = draw(100, seed=2)
    expected = 0.7 * ragged_outer_reference(
        skinny * gates[:, None],
        wide,
        routing.expert_offsets,
        right_indices=routing.token_indices,
    )
    by_hand = torch.zeros_like(expected)
    for row, token in enumerate(routing.token_indices.tolist()):
        expert = int((routing.expert_offsets[1:] <= row).sum())
        by_hand[expert] += 0.7 * gates[row] * torch.outer(skinny[row], wide[token])
    assert_close("reference", expected, by_hand, 1e-12)
    actual = ragged_outer(
        skinny.to(device, torch.float32),
        wide.to(device, torch.float32),
        routing.expert_offsets.to(device),
        wide_indices=routing.token_indices.to(device),
        gates=gates.to(device, torch.float32),
        scaling=0.7,
        transposed=transposed,
        backend=backend,
    )
    assert_close("outer", actual.cpu(), expected.mT if transposed else expected, FLOAT32)
    assert not actual[2:4].any()  # experts without rows


@pytest.mark.triton
def test_mistakes_are_named(device):
    x = torch.zeros((4, 32), device=device)
    w = torch.zeros((2, 8, 32), device=device)
    offsets = torch.tensor([0, 2, 4], dtype=torch.int32, device=device)
    cases = [
        (lambda: swiglu(x[:, :3].contiguous()), "gate and up interleaved"),
        (lambda: swiglu(x.T), "contiguous"),
        (lambda: combine(x, torch.zeros((4, 1), device=device)), "int32 row_indices"),
        (lambda: combine(x.T, torch.zeros((4, 1), dtype=torch.int32, device=device)), "contiguous"),
        (lambda: grouped_matmul(x[:, :16], w, offsets), "rows needs shape"),
        (lambda: grouped_matmul(x.bfloat16(), w, offsets), "matrices needs .* torch.bfloat16"),
        (lambda: grouped_matmul(x, w.clone().requires_grad_(), offsets), "frozen"),
        (lambda: grouped_matmul(x, w, offsets.long()), "expert_offsets needs .* torch.int32"),
        (lambda: grouped_matmul(x, w, offsets[:2]), "expert_offsets needs shape"),
        (lambda: ragged_outer(x, x.bfloat16(), offsets), "one dtype"),
        (lambda: ragged_outer(x, torch.zeros((32, 4), device=device).T, offsets), "contiguous"),
        (
            lambda: ragged_outer(x[:, :1].repeat(1, 300), x, offsets, backend="triton"),
            "at most 256",
        ),
        (lambda: swiglu(x, backend="cuda"), "must be"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    for wrong in ([1, 2, 4], [0, 3, 2], [0, 2, 9]):
        with pytest.raises(ValueError, match="start at 0, never fall and end at 4"):
            grouped_matmul(x.cpu(), w.cpu(), torch.tensor(wrong, dtype=torch.int32))
    if device.type == "cpu":
        with pytest.raises(ValueError, match="interpreter is wrong in"):
            swiglu(x.bfloat16(), backend="triton")
    with pytest.raises(ValueError, match="bfloat16, float16 or float32, got"):
        swiglu(x.double(), backend="triton")


def test_reference_of_grouped_matmul_is_the_plain_sum():
    offsets = torch.tensor([0, 1, 1, 3], dtype=torch.int32)
    rows, w = draw(3, 4), draw(3, 2, 4, seed=1)
    expected = torch.stack((w[0] @ rows[0], w[2] @ rows[1], w[2] @ rows[2]))
    assert_close("out", grouped_matmul_reference(rows, w, offsets), expected, 1e-12)
