"""The sampler `own`: draws of the request alone, log-probabilities and experts of training."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.generate import Generation, Stopped, answer, evaluating
from gptoss_tune.harmony.vocabulary import ENDOFTEXT
from gptoss_tune.model.routing import NO_CHOICE
from gptoss_tune.rollout.batched.sampler import BatchedSampler
from gptoss_tune.rollout.own import OwnSampler


def tokens(found):
    return [one.token_ids for one in found]


def trained_logps(model, request, found, **more):
    """Return the log-probabilities of the answer by the training forward, a row of its own."""
    ids = torch.tensor([[*request.prompt, *found.token_ids]])
    weights = torch.zeros(ids.shape)
    weights[0, len(request.prompt) - 1 : -1] = 1
    last = found.choices[-1:]
    out = model(
        ids,
        shift_labels=ids.roll(-1, 1),
        loss_weights=weights,
        choices=torch.from_numpy(np.concatenate((found.choices, last)))[None],
        use_cache=False,
        **more,
    )
    return -out.token_losses[0, len(request.prompt) - 1 : -1].detach().numpy()


def stepwise_logps(model, requests, answers, temperature):
    """Return what the training forward says in the sampler's own shapes, a token at a time."""
    prompts = [torch.tensor(r.prompt) for r in requests]
    longest, tokens = max(map(len, prompts)), torch.tensor([a.token_ids for a in answers])
    ids = torch.stack([functional.pad(p, (longest - len(p), 0), value=ENDOFTEXT) for p in prompts])
    seen = [functional.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts]
    mask = torch.stack(seen)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    choices = torch.full((len(requests), longest, 4, 4), NO_CHOICE, dtype=torch.uint8)
    for row, said in enumerate(answers):
        length = len(prompts[row])
        choices[row, longest - length :] = torch.from_numpy(said.choices[:length])
    cache, found = DynamicCache(config=model.get_base_model().config), []
    for step in range(tokens.shape[1]):
        targets = torch.zeros_like(ids)
        targets[:, -1] = tokens[:, step]
        weights = torch.zeros(ids.shape)
        weights[:, -1] = 1
        out = model(
            ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            shift_labels=targets,
            loss_weights=weights,
            temperature=temperature,
            choices=choices,
        )
        found.append(-out.token_losses[:, -1].detach())
        ids, positions = tokens[:, step : step + 1], positions[:, -1:] + 1
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
        later = [a.choices[len(p) + step :][:1] for p, a in zip(prompts, answers, strict=True)]
        choices = torch.from_numpy(np.stack(later))
    return torch.stack(found, dim=1).numpy()


def test_greedy_answers_are_the_evaluators(tuned, requests_of):
    requests = requests_of()
    with evaluating(tuned):
        expected = answer(tuned, [r.prompt for r in requests], Generation(8), Ranks())
    found = OwnSampler(tuned, batch=3).sample(requests, 0.0)
    assert [list(ids) for ids in tokens(found)] == expected
    assert tuned.training, "the mode comes back"


@pytest.mark.parametrize("temperature", [0.0, 1.7])
def test_answers_do_not_depend_on_the_batch(tuned, requests_of, temperature):
    requests = requests_of()
    alone = OwnSampler(tuned, batch=1).sample(requests, temperature)
    together = OwnSampler(tuned, batch=4).sample(requests, temperature)
    turned = OwnSampler(tuned, batch=3).sample(requests[::-1], temperature)[::-1]
    assert tokens(alone) == tokens(together) == tokens(turned)
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.logps - other.logps).max() < 1e-5
        assert one.choices.shape == other.choices.shape == (len(one.choices), 4, 4)
    again = OwnSampler(tuned, batch=4).sample(requests, temperature)
    assert all(np.array_equal(a.logps, b.logps) for a, b in zip(together, again, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.7])
def test_in_the_same_shapes_log_probabilities_are_the_trainers_to_the_bit(
    tuned, requests_of, temperature
):
    requests = requests_of(max_new_tokens=8)
    answers = OwnSampler(tuned, batch=4).sample(requests, temperature)
    assert tuned.training and {len(a.token_ids) for a in answers} == {8}
    found = stepwise_logps(tuned, requests, answers, temperature or 1.0)
    assert np.array_equal(found, np.stack([a.logps for a in answers]))


@pytest.mark.parametrize("temperature", [0.0, 1.7])
def test_in_other_shapes_they_are_the_trainers_to_rounding(tuned, requests_of, temperature):
    for request in requests_of():
        (found,) = OwnSampler(tuned, batch=1).sample([request], temperature)
        trained = trained_logps(tuned, request, found, temperature=temperature or 1.0)
        assert np.abs(trained - found.logps).max() < 1e-5


def test_a_stop_and_bad_requests(tuned, requests_of):
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        OwnSampler(tuned, batch=4).sample(requests_of(), 1.0, lambda: next(asked))
    assert next(asked, None) is None


@pytest.mark.usefixtures("planner")
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_merge_aware_adapters_and_bf16_sample_as_they_train(make_tuned, requests_of, dtype, bound):
    """In bf16 a product of another shape may round otherwise; on a CPU the difference was 0."""
    model = make_tuned("lora.merge_aware=true", f"model.dtype={dtype}")
    requests = requests_of()[1:3]
    for sampler in (OwnSampler(model, batch=2), BatchedSampler(model, batch=2)):
        for request, found in zip(requests, sampler.sample(requests, 1.0), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                trained = trained_logps(model, request, found)
            assert np.abs(trained - found.logps).max() < bound
