"""Episodes to rows of a step: weights of the whole step, samples packed, rows dealt over ranks."""

import numpy as np
import pytest

from gptoss_tune.environments.environment import Rewards
from gptoss_tune.model.routing import NO_CHOICE
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.rollout.episode import EpisodeSample
from gptoss_tune.train.grpo.collator import GrpoCollator
from gptoss_tune.train.grpo.rows import from_arrays, micro_batches, step_rows, to_arrays
from gptoss_tune.train.rollouts.groups import Group, PromptOrder
from gptoss_tune.train.rollouts.played import Played


def sample(draw, prompt, answer, choices=True):
    count = prompt + answer
    drawn = np.arange(count) >= prompt
    return EpisodeSample(
        input_ids=draw.integers(0, 90, count).astype(np.int32),
        sampled=drawn,
        logps=(-draw.random(count) * drawn).astype(np.float32),
        channels=np.where(drawn, 3, 0).astype(np.int8),
        choices=draw.integers(0, 4, (count, 2, 2)).astype(np.uint8) if choices else None,
    )


def episode(samples, reward, ended="answer", task=0, index=0):
    return Played(
        *(task, f"a.jsonl:{task + 1}", index, tuple(samples), Rewards(reward), ended, (), ()),
        *(sum(int(s.sampled.sum()) for s in samples), 4, 0, 0, 0, 0.1),
    )


@pytest.fixture
def groups():
    draw = np.random.default_rng(3)
    first = [
        episode([sample(draw, 5, 3), sample(draw, 9, 4)], 1.0),
        episode([sample(draw, 5, 6, choices=False)], 0.0, index=1),
        episode([sample(draw, 5, 8)], 0.0, ended="length", index=2),
    ]
    second = [
        episode([sample(draw, 7, n + 2)], float(n), task=1, index=n, ended=ended)
        for n, ended in enumerate(("answer", "answer", "error"))
    ]
    return [Group(0, tuple(first)), Group(1, tuple(second))]


def rows_of(groups, max_length=30, **settings):
    section = GrpoSection(name="grpo", scale_by_std=False, **settings)
    advantages = {group.place: group.advantages(section) for group in groups}
    return step_rows(groups, advantages, section, max_length, lambda task: task + 4)


def test_every_drawn_token_is_trained_once_by_its_share_of_the_step(groups):
    rows = rows_of(groups)
    weights = np.concatenate([row["loss_weights"] for row in rows])
    # Neither the cut episode nor the one whose environment failed: 3 + 4 + 6 + 2 + 3 tokens.
    assert (weights > 0).sum() == 18
    np.testing.assert_allclose(weights[weights > 0], 1 / 18, rtol=1e-6)
    assert all(len(row["input_ids"]) <= 30 for row in rows) and len(rows) < 5
    lengths = [len(row["input_ids"]) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    advantages = np.concatenate([row["advantages"] for row in rows])[weights > 0]
    # The cut episode is compared, the failed one is not.
    expected = [2 / 3] * 7 + [-1 / 3] * 6 + [-0.5] * 2 + [0.5] * 3
    np.testing.assert_allclose(np.sort(advantages), np.sort(expected), rtol=1e-6)
    tasks = np.concatenate([row["tasks"] for row in rows])
    sources = np.concatenate([row["sources"] for row in rows])
    assert sorted(tasks) == [0, 0, 0, 1, 1] and (sources == tasks + 4).all()


def test_counted_ones_are_trained_and_a_sequence_is_a_share(groups):
    rows = rows_of(groups, overlong="counted", average="sequence")
    weights = np.concatenate([row["loss_weights"] for row in rows])
    assert (weights > 0).sum() == 26
    assert weights.sum() == pytest.approx(1, rel=1e-6)
    assert sorted(set(np.round(weights[weights > 0] * 5, 6))) == pytest.approx(
        [1 / 8, 1 / 7, 1 / 6, 1 / 3, 1 / 2], abs=1e-6
    )


def test_a_penalty_grows_with_the_longest_answer(groups):
    section = GrpoSection(name="grpo", overlong="shaped", overlong_buffer=2, max_new_tokens=5)
    # The longest answers have 4 tokens each: half of the way from 3 to 5.
    np.testing.assert_allclose(groups[0].rewards(section), [0.5, -0.5, -0.5])


def test_ranks_have_as_many_micro_batches_and_all_rows(groups):
    rows = rows_of(groups, max_length=14)
    assert len(rows) == 5
    for ranks in (1, 2, 3, 7):
        dealt = [micro_batches(rows, 2, ranks, rank) for rank in range(ranks)]
        assert len({len(batches) for batches in dealt}) == 1
        found = [id(row) for batches in dealt for some in batches for row in some]
        assert sorted(found) == sorted(map(id, rows))
    assert micro_batches([], 2, 2, 1) == [[]]


def test_a_batch_says_of_each_position_what_the_next_token_is(groups):
    rows = rows_of(groups, max_length=14)
    batch = GrpoCollator(0, columns=("advantages", "sampler_logps"))(rows)
    for number, row in enumerate(rows):
        count = len(row["input_ids"])
        for name in ("advantages", "sampler_logps", "loss_weights"):
            np.testing.assert_array_equal(batch[name][number, : count - 1], row[name][1:])
            assert not batch[name][number, count - 1 :].any()
        np.testing.assert_array_equal(batch["choices"][number, :count], row["choices"])
        assert (batch["choices"][number, count:] == NO_CHOICE).all()
        # Of whom the sampler did not tell, the router chooses.
        assert (row["choices"] == NO_CHOICE).all() == (count == 11)
    assert batch["rows"] == [0, 1]
    filler = GrpoCollator(0, columns=("advantages", "sampler_logps"))([])
    assert not filler["loss_weights"].any() and filler["advantages"].shape == (1, 8)
    assert not filler["counts"].any()


def test_rows_come_back_from_arrays(groups):
    steps = {3: rows_of(groups), 4: [], 5: rows_of(groups, max_length=14)}
    found = from_arrays(to_arrays(steps))
    assert found.keys() == steps.keys()
    for step, rows in steps.items():
        assert len(found[step]) == len(rows)
        for mine, other in zip(found[step], rows, strict=True):
            assert mine.keys() == other.keys()
            assert all(np.array_equal(mine[name], other[name]) for name in mine)
    broken = to_arrays({3: rows_of(groups)})
    broken["3.0.advantages"] = broken["3.0.advantages"][1:]
    with pytest.raises(ValueError, match="one length"):
        from_arrays(broken)


def test_prompts_and_seeds_follow_from_their_place_alone():
    first, second = PromptOrder(5, seed=7), PromptOrder(5, seed=7)
    places = [second.task(place) for place in reversed(range(20))][::-1]
    assert [first.task(place) for place in range(20)] == places
    assert all(sorted(places[n : n + 5]) == list(range(5)) for n in (0, 5, 10, 15))
    assert places[:5] != places[5:10]
    seeds = {first.seed(place, index) for place in range(20) for index in range(4)}
    assert len(seeds) == 80 and all(0 <= seed < 2**63 for seed in seeds)
    assert PromptOrder(5, seed=8).seed(0, 0) not in seeds
