"""The reference of grpo: the same model with other adapters, or none, and nothing of it changed."""

import pytest
import torch

from gptoss_tune.evaluate.generate import without_adapters
from gptoss_tune.model.attention import set_attention
from gptoss_tune.train.grpo.reference import (
    StartAdapter,
    log_probabilities,
    reference_log_probabilities,
)


@pytest.fixture
def batch():
    """Return two rows of 13 tokens, of which the last 8 count."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 97, (2, 13), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    weights = torch.zeros(2, 13)
    weights[:, 4:-1] = 1 / 16
    return {
        "input_ids": ids,
        "shift_labels": labels,
        "loss_weights": weights,
        "advantages": torch.ones(2, 13),
        "channels": torch.zeros_like(ids),
    }


@pytest.mark.parametrize("of", ["base", "init_adapter"])
def test_the_reference_is_the_model_as_it_was(small_model, randomise_adapters, batch, of):
    model = small_model().train()
    randomise_adapters(model, scale=0.2)
    set_attention(model)
    if of == "base":
        start = None
        with without_adapters(model):
            expected = log_probabilities(model, batch, temperature=0.8)
    else:
        start = StartAdapter(model)
        expected = log_probabilities(model, batch, temperature=0.8)
    randomise_adapters(model, seed=8, scale=0.3)
    trained = [p for p in model.parameters() if p.requires_grad]
    own = [p.detach().clone() for p in trained]
    found = reference_log_probabilities(model, batch, temperature=0.8, start=start)
    assert torch.equal(found, expected)
    assert ((found < 0) == (batch["loss_weights"] != 0)).all()
    assert not torch.equal(found, log_probabilities(model, batch, temperature=0.8))
    assert model.training and all(torch.equal(a, b) for a, b in zip(own, trained, strict=True))
