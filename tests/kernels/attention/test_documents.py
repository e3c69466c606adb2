"""Runs of tokens that see each other, found without telling the host how many there are."""

import pytest
import torch
from gptoss_kernels.attention.attention import find_documents

CPU = torch.device("cpu")


def test_the_worked_example_of_the_docstring():
    documents = find_documents(
        1,
        8,
        CPU,
        position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0]]),
        attention_mask=torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
    )
    assert documents.first_key.tolist() == [[0, 0, 0, 3, 3, 3, 3, 7]]
    assert documents.last_query.tolist() == [[2, 2, 2, 6, 6, 6, 6, 7]]
    assert documents.cu_seqlens().tolist() == [0, 3, 7, 8]
    assert documents.first_key.dtype == documents.cu_seqlens().dtype == torch.int32


def test_no_facts_make_one_run_a_row():
    documents = find_documents(2, 3, CPU)
    assert documents.first_key.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert documents.last_query.tolist() == [[2, 2, 2], [2, 2, 2]]
    assert documents.cu_seqlens().tolist() == [0, 3, 6]
    assert documents.max_length == 3


@pytest.mark.parametrize(
    ("mask", "first", "last"),
    [
        ([1, 1, 1, 0, 0], [0, 0, 0, 3, 3], [2, 2, 2, 4, 4]),
        ([0, 0, 1, 1, 1], [0, 0, 2, 2, 2], [1, 1, 4, 4, 4]),
        ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [4, 4, 4, 4, 4]),
    ],
    ids=["padding right", "padding left", "no padding"],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_padding_is_a_run_of_its_own(mask, first, last, dtype):
    documents = find_documents(1, 5, CPU, attention_mask=torch.tensor([mask], dtype=dtype))
    assert documents.first_key.tolist() == [first]
    assert documents.last_query.tolist() == [last]


def test_positions_of_one_row_serve_all_rows():
    documents = find_documents(2, 4, CPU, position_ids=torch.tensor([[0, 1, 0, 1]]))
    assert documents.first_key.tolist() == [[0, 0, 2, 2]] * 2
    assert documents.cu_seqlens().tolist() == [0, 2, 4, 6, 8]


def test_given_cu_seqlens_are_boundaries_and_are_handed_on():
    given = torch.tensor([0, 2, 6], dtype=torch.int64)
    documents = find_documents(2, 3, CPU, cu_seqlens=given, max_length=4)
    assert documents.first_key.tolist() == [[0, 0, 2], [0, 0, 0]]
    assert documents.cu_seqlens().tolist() == [0, 2, 6]
    assert documents.max_length == 4


def test_a_gpu_is_not_waited_for():
    # Reading a value from a meta tensor raises.
    meta = torch.device("meta")
    documents = find_documents(
        2,
        16,
        meta,
        position_ids=torch.empty(2, 16, dtype=torch.int64, device=meta),
        attention_mask=torch.empty(2, 16, dtype=torch.int64, device=meta),
        cu_seqlens=torch.empty(5, dtype=torch.int32, device=meta),
        max_length=16,
    )
    assert documents.first_key.device == meta
    assert documents.cu_seqlens().shape == (5,)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"position_ids needs shape \[2, 4\]"):
        find_documents(2, 4, CPU, position_ids=torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="4-d mask is not a set of documents"):
        find_documents(2, 4, CPU, attention_mask=torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"cu_seqlens needs shape \[n \+ 1\]"):
        find_documents(2, 4, CPU, cu_seqlens=torch.tensor([0]))
