"""Experts that were chosen elsewhere: gradients, modes of checkpointing, padding, ties."""

import numpy as np
import pytest
import torch
from gptoss_kernels.testing import relative_rms
from torch.nn import functional

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.routing import NO_CHOICE, recording, replaying
from gptoss_tune.rollout.own import OwnSampler

MODES = ["none", "selective", "full", "offload"]
ROWS, LENGTH, LAYERS, EXPERTS, CHOSEN = 2, 21, 2, 6, 2


@pytest.fixture
def ready(small_model, randomise_adapters):
    """Return a function that makes the small model in a precision and a mode."""

    def make(mode="none", dtype=torch.float32):
        model = small_model(dtype=dtype)
        randomise_adapters(model, scale=0.2)
        set_attention(model)
        set_checkpointing(model, mode)
        return model.train()

    return make


@pytest.fixture
def batch():
    """Two rows of two packed documents each."""
    tokens = torch.randint(0, 97, (ROWS, LENGTH), generator=torch.Generator().manual_seed(4))
    positions = torch.cat((torch.arange(9), torch.arange(LENGTH - 9)))[None].expand(ROWS, -1)
    weights = torch.linspace(-0.5, 1.5, ROWS * LENGTH).view(ROWS, LENGTH)
    return {
        "input_ids": tokens,
        "position_ids": positions,
        "shift_labels": tokens.roll(-1, 1),
        "loss_weights": weights,
    }


def random_choices(seed=1):
    """Return experts that no router of these models would choose by itself everywhere."""
    draws = torch.Generator().manual_seed(seed)
    scores = torch.rand(ROWS, LENGTH, LAYERS, EXPERTS, generator=draws)
    return scores.topk(CHOSEN).indices.to(torch.uint8)


def gradients(model, batch, **more):
    model.zero_grad()
    out = model(**batch, **more, use_cache=False)
    out.loss_sum.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == 2 * (4 + 2) * LAYERS, "every adapter has a gradient"
    return [out.loss_sum.detach(), *found]


def routers(model):
    return [m for m in model.modules() if type(m).__name__ == "GptOssTopKRouter"]


def fixed(router, chosen):
    """Let a router be the written formula: a softmax over the chosen experts alone."""

    def forward(hidden):
        logits = functional.linear(hidden, router.weight, router.bias)
        open_ = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, chosen, True)
        shares = logits.masked_fill(~open_, float("-inf")).softmax(-1)
        return logits, shares.gather(1, chosen), chosen

    router.forward = forward


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_fixed_experts_in_float64(ready, batch, mode):
    choices = random_choices()
    exact = ready(dtype=torch.float64)
    for layer, router in enumerate(routers(exact)):
        fixed(router, choices[:, :, layer].flatten(0, 1).long())
    expected = gradients(exact, batch)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        found = gradients(ready(mode, dtype), batch, choices=choices)
        flat = [torch.cat([g.flatten() for g in part[1:]]) for part in (found, expected)]
        assert relative_rms(found[0], expected[0]) < bound
        assert relative_rms(*flat) < bound
    own = gradients(ready(mode), batch)
    assert relative_rms(own[0], expected[0]) > 1e-3, "the choices are others than the model's own"


@pytest.mark.parametrize("mode", MODES)
def test_a_choice_that_the_model_would_make_changes_no_bit(ready, batch, mode):
    model = ready(mode)
    with recording(model) as recorded:
        expected = gradients(model, batch)
        passes = recorded.take()
    # A layer that is run again chooses again: the record has both passes, which are the same.
    own = passes[: ROWS * LENGTH].view(ROWS, LENGTH, LAYERS, CHOSEN)
    assert passes.shape[0] == ROWS * LENGTH * (2 if mode in ("full", "offload") else 1)
    found = gradients(model, batch, choices=own)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    nothing = torch.full_like(own, NO_CHOICE)
    found = gradients(model, batch, choices=nothing)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("mode", ["none", "full"])
def test_tokens_without_a_choice_choose_for_themselves(ready, batch, mode):
    model, given = ready(mode), random_choices()
    without = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    without[0, 5:9] = without[1, 15:] = True
    given[without] = NO_CHOICE
    with recording(model) as recorded:
        gradients(model, batch, choices=given)
        passes = recorded.take()
        again = len(passes) // (ROWS * LENGTH)
        used = passes.view(again, ROWS, LENGTH, LAYERS, CHOSEN)
    assert all(torch.equal(part[~without], given[~without]) for part in used)
    assert (used < EXPERTS).all() and torch.equal(used[0], used[-1])
    assert all(router.given is None for router in routers(model)), "nothing stays"


def test_choices_hold_for_logits_and_states_as_for_losses(ready, batch):
    model, choices = ready().eval(), random_choices()
    places = torch.arange(ROWS * LENGTH)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        states = model(**inputs, states_at=places, choices=choices, use_cache=False)
        logits = model(**inputs, choices=choices, use_cache=False).logits
        with replaying(model, choices):
            same = model(**inputs, use_cache=False).logits
        own = model(**inputs, use_cache=False).logits
        losses = model(**batch, choices=choices, use_cache=False).token_losses
    head = model.get_base_model().lm_head.weight
    assert torch.equal(logits, same) and not torch.allclose(logits, own, atol=1e-3)
    assert torch.allclose(states @ head.T, logits.flatten(0, 1), atol=1e-5)
    picked = logits.log_softmax(-1).gather(-1, batch["shift_labels"][..., None])[..., 0]
    assert torch.allclose(-picked, losses, atol=1e-5)


def test_what_does_not_fit_is_refused(ready, batch):
    model, choices = ready(), random_choices()
    for wrong in (choices[:, :, :1], choices.long(), choices[0]):
        with pytest.raises(ValueError, match="choices needs uint8"):
            model(**batch, choices=wrong)
    with pytest.raises(ValueError, match=r"choices are for 40 tokens, and 42 went through"):
        model(**batch, choices=choices[:, :-1])
    with (
        pytest.raises(ValueError, match="holds no GptOssTopKRouter"),
        recording(torch.nn.Linear(1, 1)),
    ):
        pass
    with recording(model) as recorded, pytest.raises(ValueError, match="ran"):
        recorded.take()


def replayed(model, request, found, **more):
    """Return the trainer's log-probabilities of an answer, in a packed row with padding."""
    ids = torch.tensor([[*request.prompt, *found.token_ids]])
    length, pad = ids.shape[1], 5
    start = len(request.prompt) - 1
    weights = torch.zeros(1, length + pad)
    weights[0, start : length - 1] = 1
    positions = torch.cat((torch.arange(length), torch.arange(pad)))[None]
    labels = functional.pad(ids.roll(-1, 1), (0, pad))
    if more.pop("replay", True):
        last = found.choices[-1:]
        seen = np.concatenate((found.choices, last))
        padding = np.full((pad, *seen.shape[1:]), NO_CHOICE, np.uint8)
        more["choices"] = torch.from_numpy(np.concatenate((seen, padding)))[None]
    out = model(
        functional.pad(ids, (0, pad)),
        position_ids=positions,
        shift_labels=labels,
        loss_weights=weights,
        use_cache=False,
        **more,
    )
    return -out.token_losses[0, start : length - 1].numpy()


@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_tie_of_the_router_needs_the_replay(make_tuned, requests_of, mode):
    """Two experts tie for the last place; the trainer's rounding decides otherwise than before."""
    model = make_tuned(f"train.activation_checkpointing={mode}")
    (router, *_) = routers(model)
    bias = torch.tensor([0.6, 0.6, 0.6, 0.0, 0.0, -0.6, -0.6, -0.6])
    with torch.no_grad():
        router.bias.copy_(bias)
        router.weight.mul_(0.02)
        router.weight[4] = router.weight[3]
        router.bias[3] += 1e-5  # the sampler's rounding
    requests = requests_of()
    answers = OwnSampler(model, batch=4).sample(requests, 1.0)
    with torch.no_grad():
        router.bias[3:5] = router.bias[3:5].flip(0)  # the trainer's
    apart, together = 0.0, 0.0
    for request, found in zip(requests, answers, strict=True):
        assert (found.choices[:, 0] == 3).any(-1).all() and (found.choices[:, 0] != 4).all()
        alone = replayed(model, request, found, replay=False)
        apart = max(apart, np.abs(alone - found.logps).max())
        together = max(together, np.abs(replayed(model, request, found) - found.logps).max())
    assert apart > 0.05
    assert together < 1e-5
