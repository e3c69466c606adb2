"""Samplers that change their weights, give other counts than tokens, or tell no experts."""

from dataclasses import replace

import pytest

from gptoss_tune.environments.rows import RowTools
from gptoss_tune.errors import MachineError
from gptoss_tune.rollout.play import Limits, Player

FINAL = "<|channel|>final<|message|>3<|return|>"
GOOD = (
    '<|channel|>commentary to=functions.price <|constrain|>json<|message|>{"item": "pear"}<|call|>'
)


def test_a_sampler_that_changes_its_weights_or_its_counts_is_refused(
    row, scripted, renderer, task_of
):
    def broken(**changes):
        sampler = scripted([GOOD, FINAL])
        whole = sampler.sample
        sampler.sample = lambda *a, **k: [
            replace(found, **{k: change(found, sampler) for k, change in changes.items()})
            for found in whole(*a, **k)
        ]
        return sampler

    for sampler, said in (
        (broken(version=lambda found, sampler: sampler.rounds), "version 1 began.*by version 2"),
        (broken(logps=lambda found, sampler: found.logps[1:]), "log-probabilities for"),
        (broken(choices=lambda found, sampler: found.choices[1:]), "experts of"),
    ):
        player = Player(
            sampler, renderer, RowTools, lambda asked, *, waiting: [], Limits(100, 8, 2000, 5.0)
        )
        with pytest.raises(MachineError, match=said):
            player.play([(task_of(row), 0, 0)], temperature=1.0)


def test_a_sampler_that_tells_no_experts_gives_samples_without(play, row, monkeypatch):
    episode, sampler = play(row, GOOD, FINAL)
    assert episode.samples[0].choices is not None
    whole = type(sampler).sample
    silent = lambda self, *a, **k: [replace(f, choices=None) for f in whole(self, *a, **k)]  # noqa: E731
    monkeypatch.setattr(type(sampler), "sample", silent)
    episode, _ = play(row, GOOD, FINAL)
    assert episode.samples[0].choices is None
