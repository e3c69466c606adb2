"""The order of rows reaches the trainer: curriculum, ranks, resuming."""

import json
from itertools import chain

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from torch.utils.data import BatchSampler

from gptoss_tune.harmony.order import EpochOrder
from gptoss_tune.train.run import train


def batches(size, batch, ranks, rank, epoch):
    order = EpochOrder(size, seed=5)
    sampler = BatchSamplerShard(BatchSampler(order, batch, drop_last=False), ranks, rank)
    loader = DataLoaderShard(list(range(size)), batch_sampler=sampler, collate_fn=list)
    loader.set_epoch(epoch)
    return loader


@pytest.mark.parametrize("ranks", [2, 4])
def test_accelerate_deals_the_same_steps_to_every_number_of_ranks(ranks):
    expected = [sorted(batch) for batch in batches(64, 8, 1, 0, epoch=3)]
    dealt = [list(batches(64, 8 // ranks, ranks, rank, epoch=3)) for rank in range(ranks)]
    steps = [sorted(chain.from_iterable(parts)) for parts in zip(*dealt, strict=True)]
    assert steps == expected
    assert steps != [sorted(batch) for batch in batches(64, 8, 1, 0, epoch=4)]


def test_a_resumed_epoch_skips_what_was_trained():
    whole = list(batches(64, 8, 1, 0, epoch=1))
    resumed = batches(64, 8, 1, 0, epoch=1)
    assert list(skip_first_batches(resumed, 3)) == whole[3:]


def test_a_curriculum_trains_low_effort_first(recipe, tmp_path):
    efforts = ["high", "low", "medium", "low", "high", "medium"]
    words = {"low": 1, "medium": 30, "high": 90}
    rows = [
        {
            "reasoning_effort": effort,
            "messages": [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": "a " * words[effort]},
            ],
        }
        for number, effort in enumerate(efforts)
    ]
    path = tmp_path / "efforts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (f"data.train={path}", "data.curriculum=reasoning_effort", "train.max_steps=3")
    train(recipe(*settings, f"train.output_dir={tmp_path / 'run'}"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    tokens = [row["tokens"] for row in map(json.loads, lines) if "loss" in row]
    per_step = np.diff([0, *tokens])
    assert (np.diff(per_step) > 30).all(), per_step
