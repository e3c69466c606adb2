import pytest
import torch

from gptoss_tune.train.data.collator import IGNORED, Collator

SHORT = {"input_ids": [7, 8, 9], "loss_weights": [0.0, 0.0, 2.0], "channels": [0, 0, 3]}
LONG = {
    "input_ids": [1, 2, 3, 4, 5],
    "loss_weights": [0.0, 0.0, 1.0, 0.5, 1.0],
    "channels": [0, 0, 1, 1, 3],
}


def test_targets_weights_and_channels_are_shifted_together():
    batch = Collator(pad_token_id=99)([SHORT, LONG])
    assert batch["input_ids"].tolist() == [[7, 8, 9, *[99] * 5], [1, 2, 3, 4, 5, *[99] * 3]]
    assert batch["shift_labels"].tolist() == [
        [8, 9, *[IGNORED] * 6],
        [2, 3, 4, 5, *[IGNORED] * 4],
    ]
    assert batch["loss_weights"].tolist() == [[0, 2, *[0] * 6], [0, 1, 0.5, 1, *[0] * 4]]
    assert batch["channels"].tolist() == [[0, 3, *[0] * 6], [0, 1, 1, 3, *[0] * 4]]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 5 + [0] * 3]
    assert batch["counts"].tolist() == [[0, 2, 0, 2, 0, 8]] and batch["selected_rows"] == 4


@pytest.mark.parametrize("length, padded", [(8, 8), (9, 16)])
def test_rows_are_padded_to_a_multiple_of_eight(length, padded):
    row = {"input_ids": [1] * length, "loss_weights": [1.0] * length, "channels": [3] * length}
    assert Collator(pad_token_id=0)([row])["input_ids"].shape == (1, padded)


def test_packed_rows_keep_their_documents_and_pad_with_one_of_their_own():
    row = {**LONG, "position_ids": [0, 1, 0, 1, 2]}
    batch = Collator(pad_token_id=99, packed=True)([row])
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2]]
    assert batch["position_ids"].dtype == torch.int64


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_document_ends_are_those_that_attention_would_find(packed):
    from gptoss_kernels import find_documents

    rows = [
        {"input_ids": [5] * n, "loss_weights": [1.0] * n, "channels": [1] * n, "position_ids": p}
        for n, p in ((5, [0, 1, 0, 1, 2]), (9, [*range(8), 0]))
    ]
    batch = Collator(0, packed=packed)(rows)
    found = find_documents(
        2,
        batch["input_ids"].shape[1],
        torch.device("cpu"),
        position_ids=batch.get("position_ids"),
        attention_mask=batch.get("attention_mask"),
    )
    assert torch.equal(batch["cu_seq_lens_q"], found.cu_seqlens())
    assert batch["max_length_q"] == 11, "the padding of the first row is its longest run"


def test_a_target_is_of_the_source_of_its_own_token():
    """Not of the token before it, which may be the end of another document."""
    row = {
        "input_ids": [1, 2, 3, 4, 5],
        "loss_weights": [0.0, 1.0, 1.0, 1.0, 1.0],
        "channels": [0] * 5,
        "position_ids": [0, 1, 2, 0, 1],
        "sources": [2, 1],
    }
    batch = Collator(0, packed=True, by_source=True)([row])
    assert batch["sources"].tolist() == [[2, 2, 1, 1, 0, 0, 0, 0]]
    assert "sources" not in Collator(0, packed=True)([row])
