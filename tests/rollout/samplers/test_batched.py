"""The sampler `batched` says what `own` says, whatever shares a pass, and keeps nothing."""

import numpy as np
import pytest

from gptoss_tune.rollout.batched.sampler import BatchedSampler
from gptoss_tune.rollout.own import OwnSampler


def tokens(found):
    return [one.token_ids for one in found]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("settings", [{"batch": 4}, {"batch": 3, "pass_tokens": 16}])
def test_tokens_are_those_of_own(tuned, requests_of, temperature, settings):
    requests = requests_of()
    own = OwnSampler(tuned, batch=4).sample(requests, temperature)
    batched = BatchedSampler(tuned, **settings).sample(requests, temperature)
    assert tokens(own) == tokens(batched)
    for one, other in zip(own, batched, strict=True):
        assert np.abs(one.logps - other.logps).max() < 1e-5
        assert np.array_equal(one.choices, other.choices)
