"""A whole model whose experts see tiles of tokens: what it learns is what it learns without."""

import pytest
import torch

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.experts import ExpertSettings, set_expert_settings
from gptoss_tune.model.norms import set_norms

FLOAT64 = 1e-12
"""Relative; sums in another order, and BLAS kernels chosen by the number of rows."""
TILE = 8


@pytest.fixture(scope="module")
def packed_batch():
    """Two rows of 21 tokens, of which the first holds two documents."""
    tokens = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(4))
    positions = torch.arange(21).repeat(2, 1)
    positions[0, 13:] -= 13
    weights = torch.linspace(0, 1, 42).view(2, 21)
    return {
        "input_ids": tokens,
        "position_ids": positions,
        "shift_labels": tokens,
        "loss_weights": weights,
    }


def learnt(model, batch):
    model.zero_grad()
    out = model(**batch, use_cache=False)
    out.loss_sum.backward()
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"losses": out.token_losses.detach(), **named}


@pytest.mark.parametrize("merge_aware", [False, True], ids=["split", "merge-aware"])
@pytest.mark.parametrize("mode", ["none", "selective", "full", "offload"])
def test_a_packed_batch_in_tiles(small_model, randomise_adapters, packed_batch, mode, merge_aware):
    model = small_model(dtype=torch.float64).double()
    randomise_adapters(model)
    set_attention(model)
    set_norms(model)
    found = []
    for tile in (None, TILE):
        set_expert_settings(model, ExpertSettings(merge_aware=merge_aware, tile_tokens=tile))
        set_checkpointing(model.train(), mode)
        found.append(learnt(model, packed_batch))
    whole, tiles = found
    assert whole.keys() == tiles.keys() and len(whole) == 1 + 2 * (4 + 2) * 2
    for name, expected in whole.items():
        error = (tiles[name] - expected).norm() / expected.norm()
        assert error <= FLOAT64, f"{name}: {error:.2e}"


def test_the_token_at_the_edge_of_a_tile_counts(small_model, randomise_adapters, packed_batch):
    """What the tests above would see if a tile lost its last token."""
    model = small_model(dtype=torch.float64).double()
    randomise_adapters(model)
    set_attention(model)
    set_norms(model)
    set_expert_settings(model, ExpertSettings(tile_tokens=TILE))
    expected = learnt(model, packed_batch)
    without = dict(packed_batch, loss_weights=packed_batch["loss_weights"].clone())
    without["loss_weights"].view(-1)[TILE - 1] = 0
    other = learnt(model, without)
    factors = [name for name in expected if "experts" in name]
    assert all((other[n] - expected[n]).norm() > 1e-3 * expected[n].norm() for n in factors)


def test_an_evaluation_runs_in_tiles_as_well(small_model, packed_batch):
    model = small_model().eval()
    set_attention(model)
    logits = []
    for tile in (None, TILE):
        set_expert_settings(model, ExpertSettings(tile_tokens=tile))
        with torch.no_grad():
            logits.append(model(input_ids=packed_batch["input_ids"], use_cache=False).logits)
    assert torch.allclose(*logits, rtol=0, atol=1e-5)
