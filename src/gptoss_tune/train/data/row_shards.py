"""A batch of whole rows to one rank's part of it, where several ranks share each row.

The whole batch is made first, on every rank of a group alike, and then cut: a target is the token
after its position whatever rank holds that one, so targets, loss weights and channels are shifted
before (``data.collator``). What is counted of whole rows is counted on one rank of the group.

B rows, S tokens of a whole row, N ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gptoss_kernels.attention.shards import RowShard, padded_length
from torch import Tensor

from gptoss_tune.train.data.collator import Collator

_OF_WHOLE_ROWS = ("attention_mask", "cu_seq_lens_q", "max_length_q")
"""What says of whole rows where their documents are; positions say it of a part, too."""


@dataclass(frozen=True)
class ShardedCollator:
    """A collator whose batches hold this rank's tokens of every row.

    Attributes:
        whole: Makes the batch of whole rows.
        ranks: N.
        rank: This one's number among them.
    """

    whole: Collator
    ranks: int
    rank: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return this rank's part of the batch of ``rows``.

        Returns:
            What ``Collator`` returns, of ``[B, S / N]``: the tokens of ``RowShard.indices``. There
            are always ``position_ids`` and neither ``attention_mask`` nor ``cu_seq_lens_q``;
            ``counts`` are those of the whole rows on rank 0 and 0 elsewhere.
        """
        multiple = math.lcm(self.whole.multiple, padded_length(1, self.ranks))
        batch = replace(self.whole, positions=True, multiple=multiple)(rows)
        shard = RowShard(batch["input_ids"].shape[1], self.ranks, self.rank)
        indices = shard.indices()
        for name in _OF_WHOLE_ROWS:
            batch.pop(name, None)
        for name, value in batch.items():
            if isinstance(value, Tensor):
                batch[name] = value[:, indices]
        batch["selected_rows"] = int((batch["loss_weights"] != 0).sum())
        if self.rank != 0:
            batch["counts"] = np.zeros_like(batch["counts"])
        return batch


def sharded(collator: Callable[[Any], Any], ranks: int, rank: int) -> Callable[[Any], Any]:
    """Return ``collator`` for one rank of those that share each row; itself for a single one.

    Raises:
        TypeError: Its batches cannot be cut; the recipe's rules refuse such methods before.
    """
    if ranks == 1:
        return collator
    if not isinstance(collator, Collator):
        raise TypeError(f"{type(collator).__name__} makes batches that no rank has a part of")
    return ShardedCollator(collator, ranks, rank)
