"""Attention with sinks against float64 autograd: every engine, documents and windows."""

import pytest
import torch
from gptoss_kernels.attention.attention import (
    Documents,
    attention,
    attention_reference,
    find_documents,
)
from gptoss_kernels.attention.eager import EagerEngine
from gptoss_kernels.attention.flex import FlexEngine
from gptoss_kernels.attention.triton_engine import AttentionTiles, Tile, TritonEngine
from gptoss_kernels.testing import assert_close, relative_rms

RESULTS = ("output", "d_query", "d_key", "d_value", "d_sinks")
FLOAT64 = 1e-13
FP32 = 3e-6  # measured <= 8e-7 over these cases, eager and interpreted
WINDOW = 20

# Lengths of documents in a row of 75: tiles of 32 and 16 are cut at odd places.
ROWS = {
    "one document": [75],
    "longer and shorter than the window": [7, 41, 27],
    "documents of one token": [1, 1, 30, 1, 42],
}


def positions_of(lengths):
    return torch.cat([torch.arange(length) for length in lengths])[None]


def problem(
    length=75, heads=4, groups=2, size=16, batch=2, seed=0, dtype=torch.float64, device="cpu"
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    query = draw(batch, length, heads, size).transpose(1, 2)  # strided, as after a projection
    key, value = draw(batch, groups, length, size), draw(batch, groups, length, size)
    return [query, key, value, draw(heads)], draw(batch, length, heads, size)


def run(function, leaves, grad, **settings):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = function(*leaves, scaling=0.3, **settings)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def compare(actual, expected, tolerance):
    for name, got, truth in zip(RESULTS, actual, expected, strict=True):
        assert_close(name, got, truth, tolerance)


@pytest.mark.parametrize("window", [None, 1, WINDOW, 200], ids=lambda w: f"window {w}")
@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS.keys())
def test_the_exact_engine_equals_float64_autograd(lengths, window):
    leaves, grad = problem()
    documents = find_documents(2, 75, torch.device("cpu"), position_ids=positions_of(lengths))
    settings = {"window": window, "documents": documents}
    expected = run(attention_reference, leaves, grad, **settings)
    # 16 rows at a time: pieces end inside documents and inside the window.
    compare(run(attention, leaves, grad, engine=EagerEngine(16), **settings), expected, FLOAT64)


TILES = {
    "more queries than keys": Tile(32, 16, 4, 1),
    "more keys than queries": Tile(16, 32, 4, 1),
}
TRITON_CASES = [
    ("one document", None, "more queries than keys"),
    ("one document", WINDOW, "more keys than queries"),
    ("longer and shorter than the window", None, "more keys than queries"),
    ("longer and shorter than the window", WINDOW, "more queries than keys"),
    ("documents of one token", WINDOW, "more keys than queries"),
    ("documents of one token", 1, "more queries than keys"),
]


@pytest.mark.triton
@pytest.mark.parametrize(("row", "window", "tile"), TRITON_CASES)
def test_the_triton_engine_equals_float64_autograd(row, window, tile, device, poisoned_empty):
    leaves, grad = problem(batch=1, dtype=torch.float32, device=device)
    positions = positions_of(ROWS[row]).to(device)
    documents = find_documents(1, 75, device, position_ids=positions)
    settings = {"window": window, "documents": documents}
    expected = run(attention_reference, [x.double() for x in leaves], grad, **settings)
    engine = TritonEngine(AttentionTiles(TILES[tile], TILES[tile], TILES[tile]))
    compare(run(attention, leaves, grad, engine=engine, **settings), expected, FP32)


# Rows of 7, 41 and 27 tokens, cut: first query, end, first key, with a window or without. Keys are
# cut at the window too, or in the middle of what it hides.
PARTS = {
    "a whole document before": (30, 75, 7, None),
    "from the window on": (40, 60, 21, WINDOW),
    "more keys than the window": (44, 75, 9, WINDOW),
    "one query": (47, 48, 7, None),
    "more keys than two tiles, few queries": (46, 52, 7, WINDOW),
    "nothing before": (48, 75, 48, None),
}


def part_of(documents, begin, end, first_key):
    """Two rows' runs in one object, which flash's ``cu_seqlens`` cannot say."""
    both = [documents.part(row, begin, end, first_key) for row in range(2)]
    return Documents(
        *(torch.cat([getattr(d, n) for d in both]) for n in ("first_key", "last_query"))
    )


@pytest.mark.parametrize(
    "engine", ["eager", "reference", *(pytest.param(t, marks=pytest.mark.triton) for t in TILES)]
)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_row_is_the_row_cut(part, engine, device, poisoned_empty):
    begin, end, first_key, window = PARTS[part]
    dtype = torch.float64 if engine in ("eager", "reference") else torch.float32
    leaves, grad = problem(dtype=dtype, device=device)
    positions = positions_of(ROWS["longer and shorter than the window"]).to(device)
    documents = find_documents(2, 75, device, position_ids=positions)
    only = torch.zeros_like(grad)
    only[:, begin:end] = grad[:, begin:end]
    wide = [x.double() for x in leaves]
    expected = run(attention_reference, wide, only, window=window, documents=documents)
    rows, keys = slice(begin, end), slice(first_key, end)
    for n, (dim, cut) in enumerate([(1, rows), (2, rows), (2, keys), (2, keys)]):
        expected[n] = expected[n][(slice(None),) * dim + (cut,)]
    query, key, value, sinks = leaves
    inputs = [query[:, :, rows], key[:, :, keys], value[:, :, keys], sinks]
    settings = {"window": window, "documents": part_of(documents, begin, end, first_key)}
    function = attention_reference if engine == "reference" else attention
    if engine == "eager":
        settings["engine"] = EagerEngine(16)
    elif engine != "reference":
        settings["engine"] = TritonEngine(
            AttentionTiles(TILES[engine], TILES[engine], TILES[engine])
        )
    actual = run(function, inputs, grad[:, rows], **settings)
    compare(actual, expected, FLOAT64 if dtype == torch.float64 else FP32)


@pytest.mark.triton
@pytest.mark.parametrize("heads", [1, 3], ids=["one head", "three heads on one"])
def test_the_triton_engine_takes_a_single_token_and_any_group(heads, device, poisoned_empty):
    settings = {"length": 1, "heads": heads, "groups": 1, "batch": 3}
    leaves, grad = problem(**settings, dtype=torch.float32, device=device)
    expected = run(attention_reference, [x.double() for x in leaves], grad)
    actual = run(attention, leaves, grad, engine=TritonEngine())
    # One visible key: the softmax over it and the sink is all there is; d_query is not zero.
    compare(actual, expected, FP32)


@pytest.mark.gpu
def test_bf16_triton_is_no_worse_than_bf16_eager():
    # Against what transformers' eager attention does: scores and softmax in the inputs' dtype.
    leaves, grad = problem(length=300, size=64, dtype=torch.bfloat16)
    leaves, grad = [leaf.cuda() for leaf in leaves], grad.cuda()
    expected = run(attention_reference, [x.double() for x in leaves], grad, window=128)
    plain = run(attention_reference, leaves, grad, window=128)
    ours = run(attention, leaves, grad, window=128, engine=TritonEngine())
    for name, got, other, truth in zip(RESULTS, ours, plain, expected, strict=True):
        error, bound = relative_rms(got, truth), 1.5 * relative_rms(other, truth)
        assert error <= bound, f"{name}: {error:.2e} is above {bound:.2e}"


@pytest.mark.parametrize("window", [None, WINDOW], ids=lambda w: f"window {w}")
def test_the_flex_engine_computes_the_same_output(window):
    # Forward only: flex has no backward on a CPU. Its gradients are proven where it is chosen.
    leaves, _ = problem(dtype=torch.float32)
    lengths = ROWS["longer and shorter than the window"]
    documents = find_documents(2, 75, torch.device("cpu"), position_ids=positions_of(lengths))
    settings = {"scaling": 0.3, "window": window, "documents": documents}
    expected = attention_reference(*(x.double() for x in leaves), **settings)
    actual = attention(*leaves, engine=FlexEngine(compiled=False), **settings)
    assert_close("output", actual, expected, FP32)


def test_a_stock_backward_is_exact_with_lse_prime():
    """The identity all flash engines rest on: feed O' and LSE' to a backward without sinks."""
    leaves, grad = problem(length=40, batch=1)
    query, key, value, sinks = leaves
    expected = run(attention_reference, leaves, grad, window=WINDOW)

    rows, columns = torch.arange(40)[:, None], torch.arange(40)
    hidden = (columns > rows) | (columns <= rows - WINDOW)
    wide_key, wide_value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    scores = (query @ wide_key.mT * 0.3).masked_fill(hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    out = scores.softmax(-1) @ wide_value
    lse_prime = torch.logaddexp(lse, sinks[:, None])
    out_prime = out * torch.exp(lse - lse_prime).unsqueeze(-1)
    # What a stock backward does with whatever (O, LSE) it is given:
    grads = grad.transpose(1, 2)
    weights = torch.exp(scores - lse_prime.unsqueeze(-1))
    delta = (grads * out_prime).sum(-1, keepdim=True)
    grad_scores = weights * (grads @ wide_value.mT - delta) * 0.3
    actual = [
        out_prime.transpose(1, 2),
        grad_scores @ wide_key,
        (grad_scores.mT @ query).unflatten(1, (2, 2)).sum(2),
        (weights.mT @ grads).unflatten(1, (2, 2)).sum(2),
        -(torch.exp(sinks[:, None] - lse_prime) * delta.squeeze(-1)).sum((0, 2)),
    ]
    compare(actual, expected, 1e-14)


def test_frozen_sinks_cost_no_gradient_and_trainable_ones_keep_their_dtype():
    leaves, grad = problem(length=9, dtype=torch.bfloat16)
    query, key, value, sinks = (leaf.requires_grad_() for leaf in leaves)
    attention(query, key, value, sinks.detach(), scaling=0.3).backward(grad)
    assert sinks.grad is None and query.grad is not None
    attention(query, key, value, sinks, scaling=0.3).backward(grad)
    assert sinks.grad.dtype == torch.bfloat16


def test_autocast_does_not_round_the_scores():
    leaves, grad = problem(length=33, dtype=torch.float32)
    plain = run(attention, leaves, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(attention, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_memory_grows_with_the_length_and_not_with_its_square():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor):
                    Largest.numel = max(Largest.numel, tensor.numel())
            return result

    leaves, grad = problem(length=2048, heads=2, groups=1, batch=1, dtype=torch.float32)
    with Largest():
        run(attention, leaves, grad, window=128)
    assert Largest.numel <= 2 * 256 * (256 + 128), "scores of a window layer outgrew the window"


def test_mistakes_are_named():
    (query, key, value, sinks), _ = problem(length=6)
    settings = {"scaling": 1.0}
    with pytest.raises(ValueError, match=r"query \[B, Hq, S, D\]"):
        attention(query[0], key, value, sinks, **settings)
    with pytest.raises(ValueError, match="Hq a multiple of Hkv"):
        attention(query[:, :3], key, value, sinks[:3], **settings)
    with pytest.raises(ValueError, match="decoding with a cache"):
        attention(query[:, :, :1], key, value, sinks, **settings)
    with pytest.raises(ValueError, match="one per head"):
        attention(query, key, value, sinks[:2], **settings)
    with pytest.raises(ValueError, match="one floating dtype"):
        attention(query, key.float(), value.float(), sinks, **settings)
    with pytest.raises(ValueError, match="at least 1"):
        attention(query, key, value, sinks, window=0, **settings)
    documents = find_documents(2, 5, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"documents are for \(2, 5\)"):
        attention(query, key, value, sinks, documents=documents, **settings)


@pytest.mark.triton
def test_a_head_size_that_triton_lacks_is_named(device):
    leaves, _ = problem(size=24, dtype=torch.float32, device=device)
    with pytest.raises(ValueError, match="needs a head size"):
        attention(*leaves, engine=TritonEngine(), scaling=1.0)
