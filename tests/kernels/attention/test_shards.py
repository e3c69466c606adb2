"""Chunks of a row, two to a rank, mirrored so that causal work is balanced."""

import pytest
import torch
from gptoss_kernels.attention.shards import RowShard, padded_length


def test_the_worked_example_of_the_docstring():
    shards = [RowShard(8, 2, rank) for rank in range(2)]
    assert [shard.chunks for shard in shards] == [(0, 3), (1, 2)]
    assert [shard.indices().tolist() for shard in shards] == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert [shards[0].holder(chunk) for chunk in range(4)] == [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert shards[0].chunk == 2 and shards[0].local_length == 4


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_every_token_has_one_holder_and_all_do_the_same_work(ranks):
    length = 6 * ranks
    shards = [RowShard(length, ranks, rank) for rank in range(ranks)]
    held = torch.cat([shard.indices() for shard in shards])
    assert held.sort().values.tolist() == list(range(length))
    # A token sees as many keys as its number says, and one more.
    assert len({int(shard.indices().sum()) for shard in shards}) == 1
    for shard in shards:
        assert shard.indices().diff().min() > 0
        for slot, chunk in enumerate(shard.chunks):
            assert shard.holder(chunk) == (shard.rank, slot)


@pytest.mark.parametrize(
    ("length", "ranks", "padded"), [(1, 1, 2), (8, 2, 8), (9, 2, 12), (131_072, 8, 131_072)]
)
def test_lengths_are_padded_to_whole_chunks(length, ranks, padded):
    assert padded_length(length, ranks) == padded
    assert RowShard(padded, ranks, 0).length == padded


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"positive multiple of 8, got 12; pad it"):
        RowShard(12, 4, 0)
    with pytest.raises(ValueError, match="rank must be from 0 to 3, got 4"):
        RowShard(16, 4, 4)
    with pytest.raises(ValueError, match="at least 1 rank, got 0"):
        RowShard(16, 0, 0)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        padded_length(0, 2)
