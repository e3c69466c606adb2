"""Routing against its definition, row by row."""

from itertools import pairwise

import pytest
import torch
from gptoss_kernels import route
from gptoss_kernels.routing import make_tile_map
from gptoss_kernels.testing import make_routing
from hypothesis import given, settings
from hypothesis import strategies as st

BACKENDS = ["torch", "triton"]


def rows_by_definition(router_indices, num_experts):
    """List (expert, slot) sorted by expert, then by slot; absent experts last."""
    wanted = enumerate(router_indices.flatten().tolist())
    return sorted((min(expert, num_experts), slot) for slot, expert in wanted)


def check(router_indices, num_experts, routing):
    top_k = router_indices.shape[1]
    expected = rows_by_definition(router_indices, num_experts)
    assert routing.slot_indices.tolist() == [slot for _, slot in expected]
    assert routing.token_indices.tolist() == [slot // top_k for _, slot in expected]
    offsets = [sum(e < bound for e, _ in expected) for bound in range(num_experts + 1)]
    assert routing.expert_offsets.tolist() == offsets
    back = routing.row_indices.flatten().tolist()
    for row, (expert, slot) in enumerate(expected):
        assert back[slot] == (row if expert < num_experts else -1)
    for tensor in (routing.slot_indices, routing.token_indices, routing.row_indices):
        assert tensor.dtype == torch.int32


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example_of_the_docstring(backend, device, poisoned_empty):
    indices = torch.tensor([[2, 0], [0, 3], [2, 0]], device=device)
    routing = route(indices, 4, backend=backend)
    assert routing.token_indices.tolist() == [0, 1, 2, 0, 2, 1]
    assert routing.slot_indices.tolist() == [1, 2, 5, 0, 4, 3]
    assert routing.row_indices.tolist() == [[3, 0], [1, 5], [4, 2]]
    assert routing.expert_offsets.tolist() == [0, 3, 3, 5, 6]
    assert routing.tokens_per_expert.tolist() == [3, 0, 2, 1]
    assert (routing.num_experts, routing.num_rows) == (4, 6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts", "kind"),
    [
        pytest.param(200, 4, 32, "random", id="several-blocks-20b"),
        pytest.param(70, 4, 128, "random", id="120b"),
        pytest.param(64, 1, 3, "last", id="all-on-the-last-expert"),
        pytest.param(65, 2, 7, "ends", id="middle-empty-one-over-a-block"),
        pytest.param(1, 1, 1, "random", id="one-row"),
    ],
)
def test_sorted_stably(tokens, top_k, num_experts, kind, backend, device, poisoned_empty):
    indices = make_routing(tokens, top_k, num_experts, kind=kind).to(device)
    check(indices, num_experts, route(indices, num_experts, backend=backend))
    check(indices, num_experts, route(indices.int(), num_experts, backend=backend))


@pytest.mark.triton
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_routing_even_with_ties_and_absent_experts(device, data):
    num_experts = data.draw(st.integers(1, 9), label="experts")
    tokens, top_k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    values = st.integers(0, num_experts + 2)
    flat = data.draw(st.lists(values, min_size=tokens * top_k, max_size=tokens * top_k))
    indices = torch.tensor(flat).view(tokens, top_k).to(device)
    for backend in BACKENDS:
        check(indices, num_experts, route(indices, num_experts, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens(backend, device):
    routing = route(torch.empty((0, 4), dtype=torch.int64, device=device), 8, backend=backend)
    assert routing.num_rows == 0
    assert routing.expert_offsets.tolist() == [0] * 9


@pytest.mark.triton
@pytest.mark.parametrize(
    "offsets",
    [[0, 3, 3, 5, 6], [0, 0, 0], [0, 128], [0, 0, 1, 130, 130], [4, 20, 20, 52]],
    ids=["docstring", "empty", "one-expert", "ends-empty", "a-group-in-the-middle"],
)
@pytest.mark.parametrize("block_m", [2, 16])
def test_tile_map_covers_every_row_once(offsets, block_m, device, poisoned_empty):
    tile_map = make_tile_map(
        torch.tensor(offsets, dtype=torch.int32, device=device), block_m, offsets[-1]
    )
    expected = [
        (expert, start, stop)
        for expert, (first, stop) in enumerate(pairwise(offsets))
        for start in range(first, stop, block_m)
    ]
    count = int(tile_map.count)
    assert count == len(expected)
    columns = (tile_map.expert, tile_map.start, tile_map.stop)
    assert list(zip(*(c[:count].tolist() for c in columns), strict=True)) == expected


def test_mistakes_are_named(device):
    good = torch.zeros((4, 2), dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"int32 or int64 \[T, K\], got torch.float32"):
        route(good.float(), 8)
    with pytest.raises(ValueError, match=r"\[T, K\], got torch.int64 \(8,\)"):
        route(good.flatten(), 8)
    with pytest.raises(ValueError, match="contiguous"):
        route(good.T, 8)
    with pytest.raises(ValueError, match="at least one expert"):
        route(good, 0)
    with pytest.raises(ValueError, match='must be "torch" or "triton", got \'cuda\''):
        route(good, 8, backend="cuda")
