"""The sampler `own`: draws of the request alone, log-probabilities and experts of training."""

import numpy as np
import pytest
import torch

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.generate import Generation, Stopped, answer, evaluating
from gptoss_tune.rollout.own import OwnSampler


def tokens(found):
    return [one.token_ids for one in found]


def trained_logps(model, request, found, *, replay, temperature=1.0):
    """Return the log-probabilities of the answer by the training forward, a row of its own."""
    ids = torch.tensor([[*request.prompt, *found.token_ids]])
    weights = torch.zeros(ids.shape)
    weights[0, len(request.prompt) - 1 : -1] = 1
    choices = None
    if replay:
        last = found.choices[-1:]
        choices = torch.from_numpy(np.concatenate((found.choices, last)))[None]
    out = model(
        ids,
        shift_labels=ids.roll(-1, 1),
        loss_weights=weights,
        choices=choices,
        use_cache=False,
    )
    return -out.token_losses[0, len(request.prompt) - 1 : -1].numpy()


def test_greedy_answers_are_the_evaluators(tuned, requests_of):
    requests = requests_of()
    with evaluating(tuned):
        expected = answer(tuned, [r.prompt for r in requests], Generation(12), Ranks())
    found = OwnSampler(tuned, batch=3).sample(requests, 0.0)
    assert [list(ids) for ids in tokens(found)] == expected
    assert tuned.training, "the mode comes back"


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
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


def test_log_probabilities_are_the_trainers(tuned, requests_of):
    for temperature in (0.0, 1.0):
        requests = requests_of()
        for request, found in zip(
            requests, OwnSampler(tuned, batch=4).sample(requests, temperature), strict=True
        ):
            trained = trained_logps(tuned, request, found, replay=True)
            assert np.abs(trained - found.logps).max() < 1e-4
            assert trained.shape == found.logps.shape


def test_a_stop_and_bad_requests(tuned, requests_of):
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        OwnSampler(tuned, batch=4).sample(requests_of(), 1.0, lambda: next(asked))
    assert next(asked, None) is None
