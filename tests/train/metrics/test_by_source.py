"""The sums of an evaluation by source."""

import math

import pytest
import torch

from gptoss_tune.train.metrics.by_source import SourceFigures


def test_the_loss_over_all_is_the_sources_by_their_weights():
    draw = torch.Generator().manual_seed(1)
    losses, weights = torch.rand(3, 9, generator=draw), torch.rand(3, 9, generator=draw)
    sources = torch.randint(0, 3, (3, 9), generator=draw)
    figures = SourceFigures(["a", "b", "c"], torch.device("cpu"))
    for row in range(3):  # batch by batch
        figures.add(losses[row], weights[row], sources[row])
    found = figures.read(figures.sums)
    for number, name in enumerate("abc"):
        own = sources == number
        mean = (losses.double() * weights.double())[own].sum() / weights.double()[own].sum()
        assert found[f"loss_{name}"] == pytest.approx(float(mean), rel=1e-12)
    whole = (losses.double() * weights.double()).sum() / weights.double().sum()
    parts = sum(found[f"loss_{n}"] * found[f"weight_{n}"] for n in "abc")
    assert parts / sum(found[f"weight_{n}"] for n in "abc") == pytest.approx(float(whole))
    figures.reset()
    assert figures.read(figures.sums) == {}


def test_a_nan_of_one_source_stays_in_it_and_one_without_weight_is_nowhere():
    figures = SourceFigures(["a", "b", "empty"], torch.device("cpu"))
    losses = torch.tensor([[1.0, math.nan, math.nan, 3.0]])
    weights = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    figures.add(losses, weights, torch.tensor([[0, 0, 1, 0]]))
    found = figures.read(figures.sums)
    assert found["loss_a"] == 2.0 and math.isnan(found["loss_b"])
    assert "loss_empty" not in found


def test_pairs_are_won_by_source():
    figures = SourceFigures(["a", "b"], torch.device("cpu"))
    figures.add_won(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]))
    found = figures.read(figures.sums)
    assert found == {"reward_accuracy_a": 0.5, "reward_accuracy_b": 1.0}
