"""Engines of the large products: which is chosen, what stands in the way, and proofs that find."""

import json

import pytest
import torch
from gptoss_kernels import tiles
from gptoss_kernels.experts import engines
from gptoss_kernels.experts.engines import PACKED_MAX_ROWS, choose_engine, engine_for, find_obstacle
from gptoss_kernels.experts.grouped_mm import grouped_mm, grouped_mm_obstacle
from gptoss_kernels.experts.grouped_proof import find_product_fault, problems
from gptoss_kernels.experts.projection import ExpertMatrices, ExpertProjection
from gptoss_kernels.experts.quack import ProductForm
from gptoss_kernels.mxfp4 import Mxfp4Weight
from gptoss_kernels.tiles import Gpu

CPU = torch.device("cpu")
H200 = Gpu("nvidia-h200", "sm_90", 132)
FORM = ProductForm(gathered=True, biased=True, added=True, activated=True, turned=False)


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Let the measured table be read from an empty folder; return how to write one."""
    monkeypatch.setattr(tiles, "_TUNED", tmp_path)
    tiles._tuned_file.cache_clear()

    def write(content):
        (tmp_path / "nvidia-h200.json").write_text(json.dumps(content))
        tiles._tuned_file.cache_clear()

    yield write
    tiles._tuned_file.cache_clear()


def engine(rows, packed=True, forward=True, gpu=H200):
    return choose_engine(rows, packed=packed, forward=forward, gpu=gpu)


def test_engine_where_nothing_was_measured(tuned):
    """Hopper has a kernel in torch that beats Triton's pipeline on paper; others do not."""
    assert engine(PACKED_MAX_ROWS) == "packed"
    assert engine(PACKED_MAX_ROWS + 1) == engine(16383) == "fused"
    assert engine(64, packed=False) == engine(64, forward=False) == "fused"
    assert engine(16384) == engine(16384, packed=False, forward=False) == "grouped_mm"
    for architecture in ("sm_80", "sm_100", "sm_120", "gfx942", "interpreter"):
        assert engine(10**6, gpu=Gpu("other", architecture, 100)) == "fused"


def test_engine_as_measured(tuned):
    tuned({"engines": {"packed_max_rows": 100, "grouped_mm_min_rows": 5000}})
    assert [engine(rows) for rows in (100, 101, 4999, 5000)] == [
        "packed",
        "fused",
        "fused",
        "grouped_mm",
    ]
    tuned({"engines": {"packed_max_rows": 100, "quack_min_rows": 9000}})
    assert [engine(rows) for rows in (8999, 9000, 10**6)] == ["fused", "quack", "quack"]
    tuned({"engines": {}})
    assert engine(10**6) == "fused", "a measurement that named no other engine wins"


def matrices_of(dense=False, dtype=torch.float32):
    blocks = torch.zeros((4, 64, 1, 16), dtype=torch.uint8)
    packed = Mxfp4Weight(blocks, torch.full((4, 64, 1), 127, dtype=torch.uint8))
    weight = torch.zeros((4, 32, 64), dtype=dtype) if dense else packed
    return ExpertMatrices(ExpertProjection(weight, None), dtype)


def chosen(matrices, wanted="auto", rows=20000, scratch_bytes=2**31):
    return engine_for(wanted, matrices, FORM, rows=rows, device=CPU, scratch_bytes=scratch_bytes)


def test_all_experts_at_once_need_their_scratch(tuned, monkeypatch, caplog):
    monkeypatch.setattr(engines, "gpu_of", lambda device: H200)
    needed = 4 * 64 * 32 * 4
    assert chosen(matrices_of(), scratch_bytes=needed) == "grouped_mm"
    with caplog.at_level("INFO", "gptoss_kernels"):
        assert chosen(matrices_of(), scratch_bytes=needed - 1) == "fused"
    assert "raise scratch_bytes" in caplog.text
    assert chosen(matrices_of(dense=True), scratch_bytes=1) == "grouped_mm", "nothing is decoded"
    assert chosen(matrices_of(), "grouped_mm", scratch_bytes=1) == "grouped_mm", "asked for"


def test_auto_takes_quack_only_measured_and_proved(tuned, monkeypatch, caplog):
    monkeypatch.setattr(engines, "gpu_of", lambda device: H200)
    assert chosen(matrices_of()) == "grouped_mm", "never unmeasured"
    tuned({"engines": {"quack_min_rows": 9000}})
    with caplog.at_level("INFO", "gptoss_kernels"):
        assert chosen(matrices_of()) == "fused"
    assert "do not take quack" in caplog.text
    monkeypatch.setattr(engines, "quack_obstacle", lambda device, dtype: None)
    monkeypatch.setattr(engines, "find_fault", lambda *form: "its product is wrong")
    assert chosen(matrices_of()) == "fused", "measured, here, and wrong"
    with pytest.raises(ValueError, match=r"failed its proof.*its product is wrong"):
        chosen(matrices_of(), "quack")
    monkeypatch.setattr(engines, "find_fault", lambda *form: None)
    assert chosen(matrices_of()) == "quack"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_passes_its_proof(dtype, device):
    if device.type == "cuda" and dtype == torch.float32:
        pytest.skip("torch's grouped product takes bf16 on a GPU")
    assert find_obstacle("grouped_mm", device, dtype) is None
    assert "needs bfloat16" in grouped_mm_obstacle(device, torch.float16)
    assert "got device meta" in grouped_mm_obstacle(torch.device("meta"), dtype)


def test_problems_hold_the_hazards():
    layouts, most, ends = set(), 0, set()
    for problem in problems(CPU, torch.float32):
        layouts.add(problem.matrices.is_contiguous())
        most = max(most, problem.matrices.shape[0])
        counts = problem.expert_offsets.diff()
        ends.add((int(counts[-1]), bool((counts[1:-1] == 0).any())))
        assert counts[0] == 0
        assert (counts % 8 != 0).any()
        assert problem.rows[problem.offsets[-1] :].isnan().all()
        assert problem.matrices[counts == 0].isnan().all()
        assert problem.reference().isfinite().all()
    assert layouts == {True, False}
    assert most > 32
    assert (0, True) in ends


def shifted(rows, matrices, offsets):
    """Skips experts without rows, so that later ones get the wrong matrix."""
    counts = offsets.diff()
    order = torch.argsort((counts == 0).int(), stable=True)
    return grouped_mm(rows, matrices[torch.argsort(order)], offsets)


def transposed_as_stored(rows, matrices, offsets):
    """Reads a transposed view as if it were packed."""
    experts, columns, inner = matrices.shape
    stored = matrices if matrices.is_contiguous() else matrices.mT
    return grouped_mm(rows, stored.reshape(experts, columns, inner), offsets)


def every_row(rows, matrices, offsets):
    """Multiplies rows past the last offset into the last expert's sum, masked too late."""
    out = grouped_mm(rows, matrices, offsets)
    out[: offsets[-1]] += 0.0 * rows.sum()
    return out


def whole_eights(rows, matrices, offsets):
    """Leaves out the rest of an expert's rows below a multiple of 8."""
    out = grouped_mm(rows, matrices, offsets)
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        out[stop - (stop - start) % 8 : stop] = 0
    return out


def first_warp(rows, matrices, offsets):
    """Knows the first 32 experts."""
    out = grouped_mm(rows, matrices, offsets)
    if len(offsets) > 33:
        out[offsets[32] :] = 0
    return out


def counts_as_offsets(rows, matrices, offsets):
    """Takes row counts for the cumulative ends."""
    ends = offsets.diff()
    out = torch.full((len(rows), matrices.shape[1]), float("nan"))
    start = 0
    for expert, stop in enumerate(ends.tolist()):
        out[start:stop] = rows[start:stop] @ matrices[expert].mT
        start = max(start, stop)
    return out


def refuses(rows, matrices, offsets):
    raise RuntimeError("strides should be multiple of 16 bytes")


@pytest.mark.parametrize(
    "planted",
    [
        shifted,
        transposed_as_stored,
        every_row,
        whole_eights,
        first_warp,
        counts_as_offsets,
        refuses,
    ],
)
def test_proof_finds(planted):
    fault = find_product_fault(planted, CPU, torch.float32)
    assert fault is not None
    assert "experts of [" in fault
    if planted is refuses:
        assert "strides should be" in fault


def test_the_right_product_passes():
    assert find_product_fault(grouped_mm, CPU, torch.float32) is None
