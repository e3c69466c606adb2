"""The order of rows reaches the trainer: curriculum, ranks, resuming."""

import json
from itertools import chain
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import DataLoaderShard, skip_first_batches

from gptoss_tune.train.data.sampler import (
    FILLER,
    DatasetWithFiller,
    EpochSampler,
    MicroBatchSampler,
)
from gptoss_tune.train.data.token_counts import count_row
from gptoss_tune.train.run import train


def batches(size, batch, ranks, rank, epoch):
    dealer = MicroBatchSampler(EpochSampler(size, seed=5), batch, ranks=ranks, rank=rank)
    loader = DataLoaderShard([*range(size), FILLER], batch_sampler=dealer, collate_fn=list)
    loader.set_epoch(epoch)
    return loader


def steps_of(size, batch, accumulation, ranks, epoch):
    """Return the rows of each optimizer step, sorted, put together from all ranks."""
    dealt = [list(batches(size, batch, ranks, rank, epoch)) for rank in range(ranks)]
    assert len({len(parts) for parts in dealt}) == 1, "ranks meet in every micro-batch"
    meetings = [list(chain.from_iterable(parts)) for parts in zip(*dealt, strict=True)]
    steps = [
        list(chain.from_iterable(meetings[first : first + accumulation]))
        for first in range(0, len(meetings), accumulation)
    ]
    return [sorted(row for row in step if row != FILLER) for step in steps]


@pytest.mark.parametrize("size", [64, 61, 57, 49, 3], ids="{} rows".format)
@pytest.mark.parametrize("batch, accumulation, ranks", [(4, 1, 2), (1, 2, 4), (2, 2, 2), (1, 1, 8)])
def test_steps_have_the_same_rows_on_every_number_of_ranks(size, batch, accumulation, ranks):
    expected = steps_of(size, 8, 1, 1, epoch=3)
    assert steps_of(size, batch, accumulation, ranks, epoch=3) == expected
    assert sorted(chain.from_iterable(expected)) == list(range(size)), "each row once"
    assert steps_of(64, 8, 1, 1, epoch=3) != steps_of(64, 8, 1, 1, epoch=4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_epoch_skips_what_was_trained(ranks):
    for rank in range(ranks):
        whole = list(batches(61, 4, ranks, rank, epoch=1))
        resumed: Any = skip_first_batches(batches(61, 4, ranks, rank, epoch=0), 3)
        resumed.set_epoch(1)  # as the trainer does, after it has skipped
        assert list(resumed) == whole[3:]


def test_the_filler_trains_nothing_and_names_no_row():
    rows = [{"input_ids": [5, 6], "loss_weights": [1.0, 1.0], "channels": [1, 1], "row": 0}]
    filled = DatasetWithFiller(rows)
    assert len(filled) == 1 and filled[0] == rows[0]
    row = filled[FILLER]
    assert row == {"input_ids": [5], "loss_weights": [0.0], "channels": [1], "filler": True}
    assert not count_row(row).any()


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
