"""A drawn token is the one at its request's own number in the cumulative distribution."""

import numpy as np
import pytest
import torch

from gptoss_tune.rollout.draws import _draw, choose, generator

SIZES = [97, 128, 1000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_token_is_where_its_number_falls(size, temperature):
    logits = 3 * torch.randn(40, size, generator=torch.Generator().manual_seed(size))
    logits[:, ::3] = float("-inf")
    logits[0, 1:] = float("-inf")
    logits[0, 0] = 1.0
    seeds = [2**63 + n for n in range(40)]
    tokens, logps = choose(logits, temperature, [generator(seed) for seed in seeds])
    exact = (logits.double() / temperature).log_softmax(-1)
    assert torch.allclose(logps.double(), exact.gather(1, tokens[:, None])[:, 0], atol=1e-5)
    for row, seed in enumerate(seeds):
        number = torch.rand((), generator=generator(seed), dtype=torch.float64).item()
        ends = exact[row].exp().cumsum(-1).numpy()
        assert tokens[row] == np.searchsorted(ends, number * ends[-1], side="right")
    assert tokens[0] == 0 and logps[0] == 0


def test_draws_follow_the_distribution_and_the_rows_own_generator():
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(3000, 4)
    tokens, _ = choose(logits, 1.0, [generator(n) for n in range(3000)])
    shares = torch.bincount(tokens, minlength=4) / 3000
    assert (shares - torch.tensor([0.5, 0.3, 0.2, 0.0])).abs().max() < 0.03
    alone, _ = choose(logits[:1], 1.0, [generator(7)])
    assert alone[0] == tokens[7]
    assert choose(logits[:0], 1.0, [])[0].shape == (0,)


def test_greedy_takes_no_number_and_what_is_not_finite_stops_nothing():
    logits = torch.tensor([[1.0, 3.0, 2.0], [float("nan"), 0.0, 1.0], [0.0, float("inf"), 1.0]])
    one = generator(1)
    before = one.get_state()
    tokens, logps = choose(logits[:1], 0.0, [one])
    assert tokens[0] == 1 and torch.equal(one.get_state(), before)
    assert logps[0] == pytest.approx(logits[0].log_softmax(-1)[1].item())
    tokens, logps = choose(logits, 1.0, [generator(n) for n in range(3)])
    assert 0 <= tokens[0] < 3 and torch.isnan(logps[1:]).all() and not torch.isnan(logps[0])


def test_no_number_falls_on_a_token_of_probability_0():
    shares = torch.tensor([0.0, 0.5, 0.5, 0.0]).expand(4, 4)
    numbers = torch.tensor([0.0, 0.5, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert _draw(shares, numbers).tolist() == [1, 2, 1, 2]
