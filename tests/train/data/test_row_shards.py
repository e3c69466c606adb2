"""A rank's part of a batch: together the parts are the whole, every token once."""

import numpy as np
import pytest
import torch
from gptoss_kernels.attention.shards import RowShard

from gptoss_tune.train.data.collator import IGNORED, Collator
from gptoss_tune.train.data.row_shards import sharded
from gptoss_tune.train.preference.collator import PreferenceCollator

TOKENWISE = ("input_ids", "shift_labels", "loss_weights", "channels", "position_ids")


def row(length, first, documents=1):
    ids = list(range(first, first + length))
    found = {
        "input_ids": ids,
        "loss_weights": [0.5 * (n % 3) for n in range(length)],
        "channels": [n % 4 for n in range(length)],
    }
    if documents > 1:
        found["position_ids"] = [n % -(-length // documents) for n in range(length)]
    return found


def parts(rows, ranks, **settings):
    collate = Collator(pad_token_id=99, **settings)
    return [sharded(collate, ranks, rank)(rows) for rank in range(ranks)]


def put_together(found, name, ranks):
    length = sum(part["input_ids"].shape[1] for part in found)
    whole = torch.zeros((len(found[0][name]), length), dtype=found[0][name].dtype)
    for rank, part in enumerate(found):
        whole[:, RowShard(length, ranks, rank).indices()] = part[name]
    return whole


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("documents", [1, 3], ids=["whole", "packed"])
def test_the_parts_are_the_batch_of_one_process(ranks, documents):
    rows = [row(21, 100, documents), row(50, 300, documents)]
    found = parts(rows, ranks, packed=documents > 1)
    whole = Collator(pad_token_id=99, packed=documents > 1)(rows)
    length = sum(part["input_ids"].shape[1] for part in found)
    assert length % (2 * ranks) == 0 and length % 8 == 0
    common = whole["input_ids"].shape[1]
    for name in TOKENWISE:
        together = put_together(found, name, ranks)
        if name in whole:
            assert torch.equal(together[:, :common], whole[name]), name
    together = put_together(found, "position_ids", ranks)
    for index, one in enumerate(rows):
        own = one.get("position_ids", list(range(len(one["input_ids"]))))
        pads = list(range(length - len(own)))
        assert together[index].tolist() == own + pads, "padding is a document of its own"


def test_the_target_of_a_chunk_s_last_token_lies_on_another_rank():
    (first, second) = parts([row(16, 100)], 2)
    assert first["input_ids"].tolist() == [[100, 101, 102, 103, 112, 113, 114, 115]]
    assert first["shift_labels"].tolist() == [[101, 102, 103, 104, 113, 114, 115, IGNORED]]
    assert second["shift_labels"].tolist() == [[105, 106, 107, 108, 109, 110, 111, 112]]


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_token_and_weight_is_counted_once(ranks):
    rows = [row(21, 100), row(33, 300)]
    found, whole = parts(rows, ranks), Collator(pad_token_id=99)(rows)
    assert sum(part["selected_rows"] for part in found) == whole["selected_rows"] > 0
    assert np.array_equal(sum(part["counts"] for part in found), whole["counts"])
    weight = sum(part["loss_weights"].double().sum() for part in found)
    assert weight == whole["loss_weights"].double().sum()
    real = sum(int((part["shift_labels"] != IGNORED).sum()) for part in found)
    assert real == int((whole["shift_labels"] != IGNORED).sum())
    assert all("attention_mask" not in part and "cu_seq_lens_q" not in part for part in found)


def test_a_filler_is_a_part_on_every_rank():
    filler = {**row(1, 100), "loss_weights": [0.0], "filler": True}
    found = parts([filler], 4)
    assert [part["input_ids"].shape for part in found] == [(1, 2)] * 4
    assert not any(part["selected_rows"] or part["counts"].any() for part in found)


def test_one_process_has_whole_rows_and_pairs_have_no_parts():
    collate = Collator(pad_token_id=99)
    assert sharded(collate, 1, 0) is collate
    with pytest.raises(TypeError, match="PreferenceCollator makes batches that no rank has"):
        sharded(PreferenceCollator(99), 2, 0)
