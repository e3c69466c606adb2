"""Two processes play and learn what one does, and go on where one of them was stopped."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

_TIMES = ("second", "runtime", "memory", "epoch")


@pytest.fixture(scope="module")
def ranks(grpo_recipe, tmp_path_factory, forked_python):
    folder = tmp_path_factory.mktemp("rollout-ranks")
    script = Path(__file__).with_name("rollout_ranks.py")
    ended = forked_python([script, grpo_recipe, folder], ranks=2, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not any(word in k for word in _TIMES)}
        for line in found
        if "train_runtime" not in line
    ]


def drawn(run):
    """Return what every episode said and earned."""
    return {
        path.name: [
            [one[key] for key in ("split", "group", "index", "messages", "rewards", "advantage")]
            if (one := json.loads(line))["split"] == "train"
            else [one["task"], one["messages"], one["rewards"]]
            for line in path.read_text().splitlines()
        ]
        for path in (run / "rollouts").iterdir()
    }


def test_two_ranks_play_the_same_and_learn_the_same_to_rounding(ranks, whole):
    two = ranks / "two"
    assert drawn(two) == drawn(whole)
    assert len(lines(two)) == len(lines(whole))
    for mine, other in zip(lines(two), lines(whole), strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert math.isclose(value, other[name], rel_tol=1e-3, abs_tol=2e-6), name
    adapters = [load_file(r / "checkpoint-4" / "adapter_model.safetensors") for r in (two, whole)]
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=1e-3, atol=1e-5)


def test_one_rank_s_signal_stops_both_and_the_run_ends_with_the_same_bits(ranks):
    said = [(ranks / f"said-{rank}").read_text() for rank in (0, 1)]
    assert all("checkpoint-2 is complete" in text for text in said)
    assert drawn(ranks / "stopped") == drawn(ranks / "two")
    assert lines(ranks / "stopped") == lines(ranks / "two")
    adapters = [
        load_file(ranks / name / "checkpoint-4" / "adapter_model.safetensors")
        for name in ("stopped", "two")
    ]
    assert all(torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())
