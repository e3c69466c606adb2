"""Phases without a model: how episodes are dealt over ranks, and what a stopped phase keeps."""

import dataclasses
import json
import threading

import pytest

from gptoss_tune.environments.environment import Rewards
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.run.record import update_record
from gptoss_tune.train.rollouts import phase as phases
from gptoss_tune.train.rollouts.groups import Group, PromptOrder
from gptoss_tune.train.rollouts.held_out import held_out_figures
from gptoss_tune.train.rollouts.ledger import Ledger
from gptoss_tune.train.rollouts.observer import RolloutObserver
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


def test_held_out_figures_tell_what_counts_0_for_no_fault_of_the_model(tmp_path):
    ends = [("answer", {}), ("answer", {"answer": "hung"}), ("error", {"environment": "raised"})]
    ends += [("length", {})]
    groups = []
    for place, (ended, failed) in enumerate(ends):
        rewards = Rewards(float(place == 0), {}, failed)
        one = dataclasses.replace(episode(place, 0, 1), ended=ended, rewards=rewards)
        groups.append(Group(place, (one,)))
    figures = held_out_figures(groups)
    assert figures == {
        **{"reward": 0.25, "episode_tokens": 1, "cut_off_share": 0.25, "failed_rewards": 2}
    }
    update_record(tmp_path, run_id="a", status="running")
    section = GrpoSection(name="grpo")
    observer = RolloutObserver(section, tmp_path, {})
    observer.note_held_out(7, figures, write=True)
    told = json.loads((tmp_path / "run.json").read_text())["rollouts"]
    assert told["held_out"] == {"step": 7, "failed_rewards": 2}
    resumed = RolloutObserver(section, tmp_path, {})
    resumed.load_state_dict(json.loads(json.dumps(observer.state_dict())), first_rank=True)
    assert resumed.state_dict() == observer.state_dict()
