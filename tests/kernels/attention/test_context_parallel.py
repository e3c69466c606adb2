"""A row spread over 2 and 4 ranks equals the row on one, in output and every gradient.

What the ranks do is in ``context_ranks.py``, started once for each number of them.
"""

from pathlib import Path

import pytest
import torch
from gptoss_kernels.attention.attention import attention, attention_reference, find_documents
from gptoss_kernels.attention.context_parallel import ContextRows, context_attention
from gptoss_kernels.attention.eager import EagerEngine
from gptoss_kernels.attention.flex import FlexEngine
from gptoss_kernels.attention.shards import RowShard
from gptoss_kernels.testing import assert_close

RESULTS = ("output", "d_query", "d_key", "d_value", "d_sinks")
FLOAT64 = 1e-14  # measured <= 7e-16
FP32 = 3e-6  # the interpreted kernels, as in test_attention.py
LENGTH = 96
# Chunks of 24 tokens on 2 ranks and of 12 on 4.
ROWS = {
    "one document": [96],
    "boundaries inside chunks": [31, 37, 28],
    "boundaries at chunk ends": [24, 48, 24],
    "over several chunks, and single tokens": [1, 70, 1, 5, 19],
    "every document in one chunk": [12] * 8,
}
WINDOWS = (None, 1, 8, 20)  # on 4 ranks 20 is longer than a chunk


def positions_of(lengths):
    return torch.cat([torch.arange(length) for length in lengths])


def problem(rows, window, engine="eager", again=False, trained=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = len(rows)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads = (4, 2, 2)
    return {
        "leaves": [*(draw(batch, n, LENGTH, 16) for n in heads), draw(4)],
        "grad": draw(batch, LENGTH, 4, 16),
        "positions": torch.stack([positions_of(ROWS[row]) for row in rows]),
        "window": window,
        "engine": engine,
        "again": again,
        "trained": trained,
    }


CASES = {
    **{f"{row}, window {window}": ([row], window) for row in ROWS for window in WINDOWS},
    "two rows of different documents": (
        ["boundaries inside chunks", "over several chunks, and single tokens"],
        None,
    ),
    "two rows of different documents, window 8": (
        ["one document", "boundaries at chunk ends"],
        8,
    ),
    "run again": (["one document"], None, "eager", True),
    "run again, window 8": (["boundaries inside chunks"], 8, "eager", True),
    "frozen sinks": (["boundaries inside chunks"], 8, "eager", False, False),
    "triton": (["boundaries inside chunks"], None, "triton"),
    "triton, window 8": (["over several chunks, and single tokens"], 8, "triton"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory, forked_python):
    """Return a function from a number of ranks to what each of them found, case by case."""
    folder, done = tmp_path_factory.mktemp("context"), {}
    torch.save([problem(*case) for case in CASES.values()], folder / "cases.pt")

    def of(ranks):
        if ranks not in done:
            script = Path(__file__).with_name("context_ranks.py")
            ended = forked_python([script, folder], ranks=ranks)
            assert ended.returncode == 0, ended.stderr
            each = [torch.load(folder / f"{ranks}-{rank}.pt") for rank in range(ranks)]
            done[ranks] = {name: [rank[n] for rank in each] for n, name in enumerate(CASES)}
        return done[ranks]

    return of


def whole(parts, ranks):
    """Put the ranks' outputs and gradients together; the sinks' are added up."""
    order = torch.cat([RowShard(LENGTH, ranks, rank).indices() for rank in range(ranks)])
    place = order.argsort()
    out, *grads = (torch.cat(t, dim=1 if n == 0 else 2) for n, t in enumerate(parts))
    return [out[:, place], *(grad[:, :, place] for grad in grads)]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_a_spread_row_equals_float64_autograd(name, ranks, found):
    case = problem(*CASES[name])
    leaves = [leaf.requires_grad_() for leaf in case["leaves"]]
    documents = find_documents(
        len(case["positions"]), LENGTH, torch.device("cpu"), position_ids=case["positions"]
    )
    out = attention_reference(*leaves, scaling=0.3, window=case["window"], documents=documents)
    expected = [out.detach(), *torch.autograd.grad(out, leaves, case["grad"])]
    each = [rank["results"] for rank in found(ranks)[name]]
    actual = whole(list(zip(*(results[:4] for results in each), strict=True)), ranks)
    if case["trained"]:
        actual.append(sum(results[4] for results in each))
    else:
        assert {len(results) for results in each} == {4}
    tolerance = FP32 if case["engine"] == "triton" else FLOAT64
    for what, got, truth in zip(RESULTS, actual, expected, strict=False):
        assert_close(what, got, truth, tolerance)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_travels_is_what_chunks_reach_back_to(ranks, found):
    size = LENGTH // (2 * ranks)
    for name, reach in {
        "one document, window None": LENGTH - size,
        "one document, window 8": 7,
        "one document, window 1": 0,
        "every document in one chunk, window None": 0,
        "boundaries inside chunks, window None": {2: 24, 4: 29}[ranks],
    }.items():
        for rank in found(ranks)[name]:
            assert rank["reach"] == reach, name
            tail = min(reach, size)
            parts = (2, 2, 1, tail, 2, 16)
            both = [("_gather", parts)] * 2 + [("_add_up", (ranks, *parts))]
            assert rank["all"] == (both if reach else []), name


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_layer_that_runs_again_fetches_for_its_backward_only(ranks, found):
    for name in ("run again", "run again, window 8"):
        for rank in found(ranks)[name]:
            assert [what for what, _ in rank["first"]] == ["_gather"]
            assert rank["second"] == []
            assert [what for what, _ in rank["all"]] == ["_gather", "_gather", "_add_up"]


def rows_of(positions, ranks=1, rank=0):
    """Return what a rank would know; no group is asked."""
    documents = find_documents(1, len(positions), torch.device("cpu"), position_ids=positions[None])
    shard = RowShard(len(positions), ranks, rank)
    starts = documents.first_key[:, :: shard.chunk].tolist()
    return ContextRows(shard, None, documents, starts)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"window {w}")
@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS.keys())
def test_flash_libraries_are_told_the_same_runs(lengths, window):
    """``cu_seqlens`` against ``first_key``, which the other engines read."""
    for chunk in range(8):
        runs = rows_of(positions_of(lengths), ranks=4).runs(0, chunk, window)
        queries, keys = runs.cu_seqlens().tolist(), runs.cu_seqlens_keys().tolist()
        assert keys[0] == 0 and keys[-1] == runs.last_query.shape[1]
        first_key, last_query = [], []
        for n, start in enumerate(queries[:-1]):
            first_key += [keys[n]] * (queries[n + 1] - start)
            last_query += [queries[n + 1] - 1] * (keys[n + 1] - keys[n])
        assert runs.first_key.tolist() == [first_key]
        assert runs.last_query.tolist() == [last_query]


def test_mistakes_are_named():
    rows = rows_of(positions_of([4, 4]))
    query, key, value, sinks = (
        torch.zeros(1, 4, 8, 16),
        *(torch.zeros(1, 2, 8, 16) for _ in "kv"),
        torch.zeros(4),
    )
    settings = {"scaling": 1.0, "rows": rows}
    with pytest.raises(ValueError, match=r"FlexEngine brings its own autograd .* use torch_flash"):
        context_attention(query, key, value, sinks, engine=FlexEngine(compiled=False), **settings)
    settings["engine"] = EagerEngine()
    with pytest.raises(ValueError, match=r"holds \(1, 8\) tokens of the rows, the query has"):
        context_attention(*(t[:, :, :6] for t in (query, key, value)), sinks, **settings)
    with pytest.raises(ValueError, match="one per head"):
        context_attention(query, key, value, sinks[:2], **settings)


def test_keys_before_several_rows_have_no_cu_seqlens():
    documents = find_documents(1, 8, torch.device("cpu")).part(0, 4, 8, 1)
    assert documents.keys_before == 3 and not documents.whole_rows()
    assert documents.cu_seqlens().tolist() == [0, 4]
    assert documents.cu_seqlens_keys().tolist() == [0, 7]
    from gptoss_kernels.attention.documents import Documents

    both = Documents(documents.first_key.repeat(2, 1), documents.last_query.repeat(2, 1))
    with pytest.raises(ValueError, match="take the rows one by one"):
        both.cu_seqlens_keys()
    query, key, sinks = torch.zeros(1, 2, 4, 16), torch.zeros(1, 2, 8, 16), torch.zeros(2)
    with pytest.raises(ValueError, match="same B, S and D"):  # 8 keys, the runs know of 7
        attention(query, key, key, sinks, scaling=1.0, documents=documents)
