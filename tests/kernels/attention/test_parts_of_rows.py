"""A part of a row, whose keys reach back before its queries, by every engine: proof and arguments.

The stock libraries need a GPU: a stand-in computes what they document, from the arguments alone.
"""

import re
import sys
import types
from dataclasses import replace

import pytest
import torch
from gptoss_kernels.attention.attention import attention, find_documents
from gptoss_kernels.attention.cudnn import CudnnEngine
from gptoss_kernels.attention.eager import EagerEngine
from gptoss_kernels.attention.engines import (
    ENGINE_NAMES,
    choose_engine,
    find_fault,
    find_obstacle,
    find_part_fault,
)
from gptoss_kernels.attention.fa4 import FlashAttention4Engine
from gptoss_kernels.attention.torch_flash import TorchFlashEngine
from gptoss_kernels.attention.triton_engine import TritonEngine

CPU = torch.device("cpu")


class TopLeft(EagerEngine):
    """A library that counts causal and window from the first key."""

    def _pieces(self, query, rule):
        before = rule.documents.keys_before
        for rows, columns, hidden in super()._pieces(query, rule):
            if before:
                hidden = torch.nn.functional.pad(hidden[..., before:], (0, before), value=True)
                hidden[..., 0] = False
            yield rows, columns, hidden


class WindowOf63(EagerEngine):
    """Only where a part begins: the farthest key of its first query is hidden."""

    def _pieces(self, query, rule):
        for rows, columns, hidden in super()._pieces(query, rule):
            if rule.window and rule.documents.keys_before and rows.start == 0:
                hidden[..., 0, 0] = True
            yield rows, columns, hidden


class ForgetsKeysBefore(EagerEngine):
    """A backward that leaves the gradients of the keys before the part at zero."""

    def backward(self, *args):
        grads = super().backward(*args)
        for grad in grads[1:]:
            grad[:, :, : args[-1].documents.keys_before] = 0
        return grads


class Refuses(EagerEngine):
    def forward(self, *args):
        raise TypeError("unexpected keyword argument 'window_size_left'")


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        (TopLeft(), "output is wrong by .* with window 64"),
        (WindowOf63(), "output is wrong by .* with window 64"),
        (ForgetsKeysBefore(), "key gradient is wrong"),
        (Refuses(), "it raised TypeError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, EagerEngine) else "",
)
def test_a_part_of_a_row_is_proven_on_its_own(engine, fault):
    said = find_part_fault(engine, CPU, torch.float32, 16) or "no fault found"
    assert re.search(f"{fault}.*, for a part of a row", said)
    if not isinstance(engine, Refuses):
        assert find_fault(engine, CPU, torch.float32, 16) is None, "whole rows are right"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_exact_engine_passes_its_proof_for_a_part_of_a_row(dtype):
    assert find_part_fault(EagerEngine(), CPU, dtype, 16) is None


@pytest.mark.triton
def test_the_triton_engine_passes_its_proof_for_a_part_of_a_row(device):
    assert find_part_fault(TritonEngine(), device, torch.float32, 16) is None


def scores_of(query, key, queries, keys, scale, causal, left):
    """Yield each document's queries, keys, and scores ``[H, rows, columns]``, as flash has it."""
    for n in range(len(queries) - 1):
        rows, columns = slice(queries[n], queries[n + 1]), slice(keys[n], keys[n + 1])
        last = torch.arange(rows.stop - rows.start)[:, None] + (columns.stop - columns.start)
        last = last - (rows.stop - rows.start)  # the diagonal ends at the bottom right
        numbers = torch.arange(columns.stop - columns.start)
        hidden = numbers > last if causal or left is not None else numbers < 0
        if left is not None:
            hidden = hidden | (numbers < last - left)
        group = query.shape[1] // key.shape[1]
        wide = key[columns].repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query[rows], wide) * scale
        yield rows, columns, scores.masked_fill(hidden, float("-inf"))


def flash_forward(query, key, value, queries, keys, *, scale, causal, left):
    """Return O ``[T, H, D]`` and LSE ``[H, T]`` by FlashAttention's documentation."""
    out = torch.full_like(query, float("nan"))
    lse = query.new_full((query.shape[1], query.shape[0]), float("nan"))
    group = query.shape[1] // key.shape[1]
    documents = scores_of(query, key, queries.tolist(), keys.tolist(), scale, causal, left)
    for rows, columns, scores in documents:
        wide = value[columns].repeat_interleave(group, dim=1)
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), wide)
        lse[:, rows] = scores.logsumexp(-1)
    return out, lse


def flash_backward(grad, query, key, value, out, lse, queries, keys, *, scale, causal, left):
    """Return dQ, dK, dV from whatever O and LSE are given, as every flash backward does."""
    grads = [torch.full_like(t, float("nan")) for t in (query, key, value)]
    group = query.shape[1] // key.shape[1]
    delta = (grad * out).sum(-1).T
    documents = scores_of(query, key, queries.tolist(), keys.tolist(), scale, causal, left)
    for rows, columns, scores in documents:
        wide_key, wide_value = (t[columns].repeat_interleave(group, 1) for t in (key, value))
        weights = torch.exp(scores - lse[:, rows, None])
        grad_weights = torch.einsum("qhd,khd->hqk", grad[rows], wide_value)
        grad_scores = weights * (grad_weights - delta[:, rows, None]) * scale
        grads[0][rows] = torch.einsum("hqk,khd->qhd", grad_scores, wide_key)
        for n, (of, other) in enumerate(((grad_scores, query), (weights, grad)), start=1):
            summed = torch.einsum("hqk,qhd->khd", of, other[rows])
            grads[n][columns] = summed.unflatten(1, (-1, group)).sum(2)
    return grads


@pytest.fixture
def torch_flash(monkeypatch):
    """Put the stand-in behind torch's names; their arguments by position, as in its schema."""

    def forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale, **window):
        assert (dropout, debug) == (0.0, False)
        assert max_q >= cu_q.diff().max() and max_k >= cu_k.diff().max()
        left = window.get("window_size_left")
        return *flash_forward(q, k, v, cu_q, cu_k, scale=scale, causal=causal, left=left), None

    def backward(
        grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, *rest, scale, **window
    ):
        assert max_q >= cu_q.diff().max() and max_k >= cu_k.diff().max()
        settings = {"scale": scale, "causal": causal, "left": window.get("window_size_left")}
        return flash_backward(grad, q, k, v, out, lse, cu_q, cu_k, **settings)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)


@pytest.fixture
def fa4(monkeypatch):
    """Put the stand-in behind the names of ``flash_attn.cute``."""

    def settings_of(causal, softmax_scale, window_size_left, window_size_right):
        assert window_size_right == (None if window_size_left is None else 0)
        return {"scale": softmax_scale, "causal": causal, "left": window_size_left}

    def forward(q, k, v, *, cu_seqlens_q, cu_seqlens_k, return_lse, **rest):
        assert return_lse and rest.pop("max_seqlen_q") >= cu_seqlens_q.diff().max()
        assert rest.pop("max_seqlen_k") >= cu_seqlens_k.diff().max()
        return flash_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, **settings_of(**rest))

    def backward(q, k, v, out, grad, lse, *, cu_seqlens_q, cu_seqlens_k, **rest):
        assert rest.pop("max_seqlen_q") >= cu_seqlens_q.diff().max()
        assert rest.pop("max_seqlen_k") >= cu_seqlens_k.diff().max()
        runs = (cu_seqlens_q, cu_seqlens_k)
        return flash_backward(grad, q, k, v, out, lse, *runs, **settings_of(**rest))

    library = types.ModuleType("flash_attn.cute.interface")
    library._flash_attn_fwd, library._flash_attn_bwd = forward, backward
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", library)


@pytest.mark.parametrize("proof", [find_fault, find_part_fault], ids=["whole rows", "a part"])
def test_torch_flash_computes_parts_by_its_documentation(proof, torch_flash):
    assert proof(TorchFlashEngine("torch"), CPU, torch.float32, 16) is None


def test_cudnn_leaves_parts_to_torch_flash(torch_flash):
    assert find_part_fault(CudnnEngine("torch"), CPU, torch.float32, 16) is None


@pytest.mark.parametrize("proof", [find_fault, find_part_fault], ids=["whole rows", "a part"])
def test_flash_attention_4_computes_parts_by_its_documentation(proof, fa4):
    assert proof(FlashAttention4Engine("torch"), CPU, torch.float32, 16) is None


def part_of_a_row(device):
    """The runs of queries 40 to 95 of documents of 60, 1 and 35 tokens, on keys from 8."""
    positions = torch.cat([torch.arange(n) for n in (60, 1, 35)])[None]
    runs = find_documents(1, 96, CPU, position_ids=positions).part(0, 40, 96, 8)
    made = {"cu_seqlens": runs.cu_seqlens().to(device)}
    made["cu_seqlens_keys"] = runs.cu_seqlens_keys().to(device)
    return replace(
        runs,
        first_key=runs.first_key.to(device),
        last_query=runs.last_query.to(device),
        made=made,
    )


@pytest.mark.parametrize("window", [None, 128], ids=["full", "window"])
@pytest.mark.parametrize("engine", [TorchFlashEngine, CudnnEngine])
def test_parts_fit_the_signatures_of_this_torch(engine, window, monkeypatch):
    # On meta tensors torch checks arguments and shapes of its kernels and computes nothing.
    documents, called = part_of_a_row("meta"), []
    original = torch._ops.OpOverloadPacket.__call__
    monkeypatch.setattr(
        torch._ops.OpOverloadPacket,
        "__call__",
        lambda op, *a, **k: called.append((op.__name__, a, k)) or original(op, *a, **k),
    )

    def empty(heads, tokens):
        leaf = torch.empty(1, tokens, heads, 64, device="meta", dtype=torch.bfloat16)
        return leaf.requires_grad_()

    leaves = empty(4, 56), empty(2, 88), empty(2, 88)
    sinks = torch.empty(4, device="meta", requires_grad=True)
    out = attention(
        *(leaf.transpose(1, 2) for leaf in leaves),
        sinks,
        scaling=0.125,
        window=window,
        documents=documents,
        engine=engine("torch"),
    )
    grads = torch.autograd.grad(out.sum(), (*leaves, sinks))
    assert [g.shape for g in grads] == [*(leaf.shape for leaf in leaves), sinks.shape]
    flash = [(args, options) for name, args, options in called if "_flash_attention" in name]
    assert len(flash) == 2 and not any("cudnn" in name for name, *_ in called)
    for (args, options), at in zip(flash, (3, 6), strict=True):
        queries, keys = args[at : at + 2]
        assert queries is documents.made["cu_seqlens"]
        assert keys is documents.made["cu_seqlens_keys"]
        assert args[at + 2 : at + 4] == (56, 88)
        assert options.get("window_size_left") == (None if window is None else 127)
    runs = part_of_a_row("cpu")
    assert runs.cu_seqlens().tolist() == [0, 20, 21, 56]
    assert runs.cu_seqlens_keys().tolist() == [0, 52, 53, 88]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in ENGINE_NAMES if name != "flex"])
def test_engines_on_a_gpu_pass_their_proof_for_a_part_of_a_row_in_bf16(name):
    device = torch.device("cuda")
    obstacle = find_obstacle(name, device, torch.bfloat16, 64)
    if obstacle is not None:
        pytest.skip(obstacle)
    engine = choose_engine(name, device, torch.bfloat16, 64).engine
    assert find_part_fault(engine, device, torch.bfloat16, 64) is None


@pytest.mark.gpu
def test_triton_on_a_gpu_equals_the_exact_engine_in_fp32_for_a_part_of_a_row():
    assert find_part_fault(TritonEngine(), torch.device("cuda"), torch.float32, 64) is None
