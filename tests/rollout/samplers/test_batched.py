"""The sampler `batched` says what `own` says, whatever shares a pass, and keeps nothing."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.generation.continuous_batching import cache as paged_cache

from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.model.attention import ATTENTION_IMPLEMENTATION
from gptoss_tune.rollout.batched import planner
from gptoss_tune.rollout.batched import sampler as batched
from gptoss_tune.rollout.batched.sampler import BatchedSampler
from gptoss_tune.rollout.own import OwnSampler

pytestmark = pytest.mark.usefixtures("planner")


def tokens(found):
    return [one.token_ids for one in found]


def assert_same(one, other, bound=1e-5):
    assert tokens(one) == tokens(other)
    for left, right in zip(one, other, strict=True):
        assert left.logps.shape == right.logps.shape == (len(left.token_ids),)
        assert np.abs(left.logps - right.logps).max() < bound
        assert np.array_equal(left.choices, right.choices)


def passes_of(monkeypatch):
    """Return a list that fills with the tokens of each pass."""
    seen, run = [], BatchedSampler._run

    def noting(self, passes, *args):
        seen.append([(f.state.request_id, f.query_length) for f in passes._planned()])
        run(self, passes, *args)

    monkeypatch.setattr(BatchedSampler, "_run", noting)
    return seen


@pytest.mark.parametrize(
    ("temperature", "settings"),
    [(0.0, {"batch": 3}), (1.7, {"batch": 3, "pass_tokens": 16})],
    ids=["greedy", "drawn, in pieces"],
)
def test_answers_are_those_of_own(tuned, requests_of, monkeypatch, temperature, settings):
    """Prompts and answers go over the window of 32; pieces of 16 tokens are cut from prompts."""
    requests = [
        replace(r, max_new_tokens=n) for r, n in zip(requests_of(), (34, 8, 5, 1), strict=True)
    ]
    own = OwnSampler(tuned, batch=4).sample(requests, temperature)
    seen = passes_of(monkeypatch)
    assert_same(own, BatchedSampler(tuned, **settings).sample(requests, temperature))
    assert max(len(one) for one in seen) <= settings["batch"], "sequences at a time"
    assert any({length > 1 for _, length in one} == {True, False} for one in seen), "mixed passes"
    if "pass_tokens" in settings:
        assert max(sum(length for _, length in one) for one in seen) == 16


def test_a_group_prefills_its_prompt_once(tuned, requests_of, monkeypatch):
    (first, second, *_) = requests_of()[1:]
    requests = [replace(r, seed=seed) for seed in range(3) for r in (first, second)]
    requests.append(replace(first, max_new_tokens=5))
    own = OwnSampler(tuned, batch=8).sample(requests, 1.0)
    assert len({one.token_ids for one in own}) == len(requests)
    seen = passes_of(monkeypatch)
    assert_same(own, BatchedSampler(tuned, batch=8).sample(requests, 1.0))
    prefilled = sum(length for one in seen for _, length in one if length > 1)
    prompts = 2 * len(first.prompt) + len(second.prompt)
    assert prompts - 2 <= prefilled <= prompts, "one of each prompt and length"


def test_a_full_cache_lets_requests_come_again(tuned, requests_of, monkeypatch):
    """Room for one request at a time and two that run: one is put back and prefilled again."""
    requests = [
        replace(r, max_new_tokens=n) for r, n in zip(requests_of()[1:3], (24, 24), strict=True)
    ]
    own = OwnSampler(tuned, batch=2).sample(requests, 1.0)
    monkeypatch.setattr(planner, "PAGE_TOKENS", 16)
    asked = []

    class Small(planner.ContinuousBatchingConfig):
        def __init__(self, **settings):
            asked.append(settings["num_blocks"])
            super().__init__(**{**settings, "num_blocks": 6})

    monkeypatch.setattr(planner, "ContinuousBatchingConfig", Small)
    seen = passes_of(monkeypatch)
    assert_same(own, BatchedSampler(tuned, batch=2).sample(requests, 1.0))
    assert asked == [2 * 5 + 4], "enough is asked for, so this does not come to pass by itself"
    prefilled = sum(length for one in seen for _, length in one if length > 1)
    assert prefilled > sum(len(r.prompt) for r in requests), "one came again"


def test_nothing_stays_and_nothing_else_moves(tuned, requests_of, monkeypatch):
    caches = []

    class Watched(paged_cache.PagedAttentionCache):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            caches.append(weakref.ref(self.cache_tensor))

    monkeypatch.setattr(planner, "PagedAttentionCache", Watched)
    config = tuned.get_base_model().config
    requests = requests_of(max_new_tokens=4)
    torch.manual_seed(3)
    before, memory = torch.get_rng_state(), tuned.get_base_model().lm_head.weight.data_ptr()
    gc.collect()
    gc.disable()
    try:
        first = BatchedSampler(tuned, batch=4).sample(requests, 1.0)
        assert len(caches) == 1 and caches[0]() is None, "the cache is free without a collection"
    finally:
        gc.enable()
    assert torch.equal(torch.get_rng_state(), before)
    assert config._attn_implementation == ATTENTION_IMPLEMENTATION and tuned.training
    assert tuned.get_base_model().lm_head.weight.data_ptr() == memory, "no weight is copied"
    again = BatchedSampler(tuned, batch=4).sample(requests, 1.0)
    assert all(np.array_equal(a.logps, b.logps) for a, b in zip(first, again, strict=True))
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        BatchedSampler(tuned, batch=4).sample(requests, 1.0, lambda: next(asked))
    assert config._attn_implementation == ATTENTION_IMPLEMENTATION and tuned.training
    tuned(torch.tensor([requests[0].prompt]), use_cache=False)


def test_an_answer_ends_with_its_stop_token(tuned, requests_of):
    requests = requests_of()
    free = OwnSampler(tuned, batch=4).sample(requests, 0.0)
    head = tuned.get_base_model().lm_head.weight.data
    kept = head[list(STOP_IDS)].clone()
    try:
        head[STOP_IDS[1]] = head[free[1].token_ids[3]] * 1.001
        own = OwnSampler(tuned, batch=4).sample(requests, 0.0)
        assert own[1].token_ids[-1] == STOP_IDS[1] and len(own[1].token_ids) <= 4
        assert {len(one.token_ids) for one in own} > {8}
        assert_same(own, BatchedSampler(tuned, batch=4).sample(requests, 0.0))
    finally:
        head[list(STOP_IDS)] = kept


def test_choices_and_refusals(tuned, requests_of, monkeypatch):
    assert BatchedSampler(tuned, batch=4).sample([], 1.0) == []
    (request, *_) = requests_of()
    with (
        monkeypatch.context() as patch,
        pytest.raises(MachineError, match=r"5\.23 or later, found"),
    ):
        patch.setattr(batched, "__version__", "5.22.2")
        BatchedSampler(tuned, batch=4)
    sampler = BatchedSampler(tuned, batch=4, replay=False)
    sampler.update(7)
    (found,) = sampler.sample([request], 1.0)
    assert found.choices is None and found.version == 7
    with pytest.raises(ValueError, match="both need to be 1 or more"):
        sampler.sample([replace(request, max_new_tokens=0)], 1.0)
    tiny = lambda self: 1 << 20  # noqa: E731
    monkeypatch.setattr(paged_cache.PagedAttentionMemoryHandler, "get_available_memory", tiny)
    with pytest.raises(MachineError, match="one request of 11 tokens"):
        sampler.sample([request, replace(request, seed=1)], 1.0)


def test_memory_is_counted_as_our_attention_takes_it(tuned, monkeypatch):
    """32 requests of 512 tokens, 64 of them in a pass: no mask, and no head of keys twice."""
    config = tuned.get_base_model().config
    keys = config.num_key_value_heads * config.head_dim
    pages = 2 * 4 * (32 * 4 + 4) * 128 * keys * 4  # of all four layers, in fp32
    read = 2 * pages / 4  # of a layer of each kind
    made = 32 * 512 * (keys + 2 * config.num_attention_heads) * 4
    head = 32 * (64 + 201_088) * 4
    expected = pages + read + made + head

    def room(planned):
        told = ("cpu", int(planned / 0.6), 0, 0)  # the share that is planned with on a CPU
        for module in (planner, paged_cache):
            monkeypatch.setattr(module, "get_device_and_memory_breakdown", lambda: told)
        return planner.processor_of(tuned, 512, 32, 64)[1]

    assert room(1.05 * expected) == 32
    assert room(expected - made) < 32, "what our attention makes is counted"
    assert 24 <= room(0.9 * expected) < 32, "and no more is taken away than has to be"


def test_a_lowered_batch_is_said_once(tuned, requests_of, monkeypatch, capsys):
    processor_of = planner.processor_of
    monkeypatch.setattr(batched, "processor_of", lambda m, n, b, p: processor_of(m, n, 1, p))
    requests = requests_of(max_new_tokens=1)
    sampler = BatchedSampler(tuned, batch=3)
    for _ in range(2):
        sampler.sample(requests, 0.0)
    said = capsys.readouterr().err
    assert said.count("of 3 requests of up to 46 tokens do not fit") == 1
    assert "those of 1 do" in said


def test_the_experts_of_an_answer_are_counted_as_they_come(tuned, requests_of, monkeypatch):
    """A pass adds its tokens to a number: a sum over all passes before would grow with each."""
    seen = []

    class Counted(list):
        def __iter__(self):
            seen.append(len(self))
            return super().__iter__()

    begin = batched.begin

    def begun(requests):
        rows = begin(requests)
        for row in rows:
            row.choices = Counted()
        return rows

    monkeypatch.setattr(batched, "begin", begun)
    (request, *_) = requests_of(max_new_tokens=6)
    (found,) = BatchedSampler(tuned, batch=1).sample([request], 1.0)
    assert len(found.choices) == len(request.prompt) + len(found.token_ids) - 1
    assert not seen
