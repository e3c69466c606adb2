"""Phases without a model: how episodes are dealt over ranks, and what a stopped phase keeps."""

import threading

import pytest

from gptoss_tune.environments.environment import Rewards
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.train.rollouts import phase as phases
from gptoss_tune.train.rollouts.groups import PromptOrder
from gptoss_tune.train.rollouts.ledger import Ledger
from gptoss_tune.train.rollouts.phase import Rollouts
from gptoss_tune.train.rollouts.played import Played

LARGE = {"prompts_per_step": 16, "rollout_batch": 64}


def episode(task, index, seed):
    rewards = Rewards(float(seed % 2))
    return Played(task, "a", index, (), rewards, "answer", (), (), 1, 1, 0, 0, 0, 0.0)


def play_on(ranks, section, folder, monkeypatch, stop_after=None):
    """Play a phase of 16 prompts on threads; return each rank's phase and the chunks it played."""
    here, barrier, slots = threading.local(), threading.Barrier(ranks), [None] * ranks

    def gather(value):
        slots[here.rank] = value
        barrier.wait()
        found = list(slots)
        barrier.wait()
        return found

    monkeypatch.setattr(phases, "rank", lambda: here.rank)
    monkeypatch.setattr(phases, "world_size", lambda: ranks)
    monkeypatch.setattr(phases, "gather_over_ranks", gather)
    chunks, found = {rank: [] for rank in range(ranks)}, [None] * ranks

    def run(rank):
        here.rank = rank

        def play(asked, temperature, should_stop):
            if stop_after is not None and len(chunks[rank]) == stop_after:
                raise Stopped
            chunks[rank].append(tuple(asked))
            return [episode(*one) for one in asked]

        rollouts = Rollouts(section, PromptOrder(40, 1), play, Ledger(folder), lambda: False)
        try:
            found[rank] = rollouts.phase(section.prompts_per_step, 0, "k" * 64)
        except Stopped:
            found[rank] = "stopped"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, chunks


@pytest.mark.parametrize("sampler", ["own", "batched"])
def test_every_rank_plays_and_one_to_four_play_the_same_chunks(sampler, tmp_path, monkeypatch):
    section = GrpoSection(name="grpo", sampler=sampler, **LARGE)
    played = {}
    for ranks in (1, 2, 3, 4, 8):
        found, chunks = play_on(ranks, section, tmp_path / str(ranks), monkeypatch)
        assert all(chunks.values()), f"of {ranks} ranks some are idle"
        assert all(one.groups == found[0].groups for one in found)
        assert [group.place for group in found[0].groups] == list(range(16))
        played[ranks] = sorted(chunk for own in chunks.values() for chunk in own)
    assert played[1] == played[2] == played[3] == played[4]
    assert [len(chunk) for chunk in played[1]] == [4 * 8] * 4
    assert [len(chunk) for chunk in played[8]] == [2 * 8] * 8


def test_a_stopped_phase_keeps_what_is_over(tmp_path, monkeypatch):
    section = GrpoSection(name="grpo", sampler="batched", **LARGE)
    found, chunks = play_on(1, section, tmp_path, monkeypatch, stop_after=3)
    assert found == ["stopped"] and len(chunks[0]) == 3
    found, rest = play_on(1, section, tmp_path, monkeypatch)
    assert len(rest[0]) == 1 and len(found[0].groups) == 16


def test_a_chunk_is_no_larger_than_its_sampler_fills():
    own = GrpoSection(name="grpo", rollout_batch=24, group_size=8)
    assert own.groups_in_chunk(100, 1) == 3
    assert own.groups_in_chunk(4, 1) == 1
    batched = own.model_copy(update={"sampler": "batched"})
    assert batched.groups_in_chunk(100, 1) == 12
    assert batched.groups_in_chunk(100, 50) == 2
    assert own.model_copy(update={"rollout_batch": 2}).groups_in_chunk(100, 1) == 1
