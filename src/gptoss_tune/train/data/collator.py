"""Examples to batches: pad on the right, shift the targets once, on the CPU.

Targets are shifted here (``shift_labels[s]`` is the token after position s) rather than in the
model, so that loss weights, channels and targets stay aligned whatever the model drops or packs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptoss_tune.train.data.token_counts import count_row, sum_counts, token_sources

IGNORED = -100
BATCH_ONLY = ("channels", "counts", "rows", "sources")
"""What a batch carries for the trainer, and the model does not take."""


class NumberedRows(torch.utils.data.Dataset):
    """A dataset whose rows know their number, so that a bad batch can be traced to its file.

    A column would do the same and have the library copy the tokens of a selection to add it.
    """

    def __init__(self, dataset: Any) -> None:
        """Number the rows of ``dataset``, a ``datasets.Dataset``."""
        self._dataset = dataset
        self.column_names: list[str] = dataset.column_names

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._dataset)

    def __getitem__(self, index: int | str) -> Any:
        """Return a row with its number as ``row``, or a whole column by name."""
        found = self._dataset[index]
        return found if isinstance(index, str) else {**found, "row": index}


@dataclass(frozen=True)
class Collator:
    """Turn dataset rows into one batch.

    Attributes:
        pad_token_id: Fills rows to the length of the longest, rounded up.
        packed: Rows hold several documents, told apart by ``position_ids`` that restart at 0.
        positions: Give ``position_ids`` in any case, of rows that are one document too.
        multiple: Of what rows are filled to.
        by_source: Say of each target which source it is from, for figures of each.
    """

    pad_token_id: int
    packed: bool = False
    positions: bool = False
    multiple: int = 8
    by_source: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of ``rows``.

        Args:
            rows: Each with ``input_ids``, ``loss_weights`` (of predicting token i), ``channels``
                and, when packed, ``position_ids``; all of one length per row. ``sources`` names
                the dataset of each document.

        Returns:
            ``input_ids``, ``shift_labels``, ``channels`` ``[B, S]`` int64, ``loss_weights``
            ``[B, S]`` fp32, ``attention_mask`` ``[B, S]`` int64 (or ``position_ids``, when packed
            or asked for), ``cu_seq_lens_q`` and ``max_length_q`` for varlen attention, and two
            counts known here on the host, so that no GPU has to be asked for them:
            ``counts`` (``tokens.count_row``) and ``selected_rows`` (with a loss weight); and
            ``rows``, the rows' numbers where they carry one (``NumberedRows``). ``sources``
            ``[B, S]`` int64 when asked for: the number of the source of each target.
        """
        length = max(len(row["input_ids"]) for row in rows)
        length = -(-length // self.multiple) * self.multiple
        ids = self._stack(rows, "input_ids", length, self.pad_token_id)
        weights = _shifted(self._stack(rows, "loss_weights", length, 0.0), 0.0)
        batch: dict[str, Any] = {
            "input_ids": ids,
            "shift_labels": _shifted(self._stack(rows, "input_ids", length, IGNORED), IGNORED),
            "loss_weights": weights,
            "selected_rows": int((weights != 0).sum()),
            "channels": _shifted(self._stack(rows, "channels", length, 0), 0),
            "counts": sum_counts([count_row(row) for row in rows]),
            "rows": [row["row"] for row in rows if "row" in row],
        }
        if self.by_source:
            batch["sources"] = _sources(rows, length)
        if self.packed or self.positions:
            batch["position_ids"] = self._positions(rows, length)
        else:
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            batch["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
        batch["cu_seq_lens_q"], batch["max_length_q"] = _document_ends(batch)
        return batch

    @staticmethod
    def _stack(rows: Sequence[dict[str, Any]], column: str, length: int, fill: float) -> Tensor:
        dtype = torch.float32 if isinstance(fill, float) else torch.int64
        stacked = torch.full((len(rows), length), fill, dtype=dtype)
        for index, row in enumerate(rows):
            values = torch.as_tensor(row[column], dtype=dtype)
            stacked[index, : len(values)] = values
        return stacked

    @staticmethod
    def _positions(rows: Sequence[dict[str, Any]], length: int) -> Tensor:
        positions = torch.empty((len(rows), length), dtype=torch.int64)
        for index, row in enumerate(rows):
            own = row.get("position_ids")
            if own is None:
                own = torch.arange(len(row["input_ids"]))
            values = torch.as_tensor(own, dtype=torch.int64)
            positions[index, : len(values)] = values
            # Padding is a document of its own: it restarts at 0 and attends to itself alone.
            positions[index, len(values) :] = torch.arange(length - len(values))
        return positions


def _sources(rows: Sequence[dict[str, Any]], length: int) -> Tensor:
    """Return the source of each target, ``[B, length]``; 0 in padding, which has no weight."""
    found = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        of_tokens = token_sources(row)
        found[index, : len(of_tokens)] = torch.from_numpy(of_tokens)
    return _shifted(found, 0)


def _document_ends(batch: dict[str, Any]) -> tuple[Tensor, int]:
    """Return where documents start over all tokens, with the end, int32, and the longest one.

    Varlen attention kernels take them; found on a GPU, their number would have to be waited for.
    Padding counts as a document, here as in ``gptoss_kernels.find_documents``.
    """
    if "position_ids" in batch:
        starts = batch["position_ids"] == 0
    else:
        mask = batch["attention_mask"]
        starts = mask.diff(dim=-1, prepend=1 - mask[:, :1]) != 0
    ends = torch.cat((starts.flatten().nonzero().flatten(), torch.tensor([starts.numel()])))
    return ends.int(), int(ends.diff().max())


def _shifted(values: Tensor, fill: float) -> Tensor:
    shifted = torch.full_like(values, fill)
    shifted[:, :-1] = values[:, 1:]
    return shifted
