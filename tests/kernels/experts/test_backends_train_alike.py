"""The tiny model trains on Triton (interpreted on a CPU) as it trains on torch."""

import pytest
import torch

from gptoss_tune.model.experts import ExpertSettings, set_expert_settings
from gptoss_tune.model.load import load_base
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.recipe import LoraSection, ModelSection
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint

TOLERANCE = 1e-5
"""Relative difference of losses; both runs are fp32 and differ in the order of sums."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "base"
    return tiny_checkpoint(folder, seed=1, layers=1, experts=4, hidden=64, intermediate=32)


def three_steps(base, backend, merge_aware, device):
    torch.manual_seed(0)
    section = ModelSection(name_or_path=str(base), dtype="float32")
    loaded = load_base(open_checkpoint(str(base)), section, device=device)
    model = add_adapters(loaded, LoraSection(rank=4))
    set_expert_settings(model, ExpertSettings(backend=backend, merge_aware=merge_aware))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(0, 199_998, (1, 12), generator=generator).to(device)
    losses = []
    for _ in range(3):
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize(
    "merge_aware", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["split", "merge-aware"]
)
def test_three_steps_give_the_same_losses(base, merge_aware, device):
    expected = three_steps(base, "torch", merge_aware, device)
    actual = three_steps(base, "triton", merge_aware, device)
    assert actual == pytest.approx(expected, rel=TOLERANCE)
    # The steps did something: the loss falls, by far more than the tolerance.
    assert expected[2] < 0.99 * expected[0]
