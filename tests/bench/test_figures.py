"""What the benchmarks' figures rest on: no wrong tile, useful operations only, honest tables."""

import json
import subprocess
import sys

import measure
import ops_loss
import pytest
import report
import step
import torch
import tune
from cache_key import MADE, key_of_wheel, unpack
from gptoss_kernels.routing import route
from gptoss_kernels.tiles import Tiles
from measure import SHAPES, attended_pairs


@pytest.fixture(scope="module")
def problem():
    shape = SHAPES["tiny"]
    picked = torch.rand(16, shape.num_experts).topk(shape.top_k).indices
    routing = route(picked, shape.num_experts, backend="triton")
    return tune.Problem(tune.Case("store", shape.hidden, shape.intermediate), shape, routing, 4)


TILES = Tiles(16, 64, 64, 4, 1)


def writes(problem, **places):
    """Return a kernel that writes the right result but for one place."""

    def run(tiles):
        problem.out.copy_(problem.expected)
        for where, value in places.values():
            problem.out[where] = value(problem.out[where])

    return run


def test_a_right_tile_is_taken(problem):
    assert problem.timed(TILES, 1) > 0


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        pytest.param(lambda p: lambda tiles: None, "not finite", id="writes nothing"),
        pytest.param(
            lambda p: writes(p, row=(slice(3, 4), lambda v: v + float("nan"))),
            "64 of",
            id="one row unwritten",
        ),
        pytest.param(
            # Within the RMS of the whole: 1 of 2,048 values.
            lambda p: writes(p, one=((5, 7), lambda v: v + 0.6 * p.expected.std())),
            "a part of a row",
            id="one wrong value",
        ),
        pytest.param(
            lambda p: writes(p, all=(slice(None), lambda v: v.flip(0))), "relative", id="row order"
        ),
    ],
)
def test_a_wrong_tile_is_not(problem, monkeypatch, run, reason):
    monkeypatch.setattr(problem, "run", run(problem))
    assert reason in problem.timed(TILES, 1)


def test_tiles_to_try_are_listed_and_an_unknown_gpu_is_refused():
    for case in tune.cases(SHAPES["gpt-oss-20b"], 16):
        assert 1 <= len(tune.space(case, "sm_90")) <= 24, case
    with pytest.raises(ValueError, match=r"precompile\.py --tiles --arch sm_75"):
        tune.space(tune.cases(SHAPES["tiny"], 4)[0], "sm_75")


@pytest.mark.parametrize(("window", "document"), [(None, None), (5, None), (None, 7), (5, 7)])
def test_pairs_are_those_that_see_each_other(window, document):
    length = 24
    row, column = torch.arange(length)[:, None], torch.arange(length)
    seen = column <= row
    if window:
        seen &= column > row - window
    if document:
        seen &= row // document == column // document
    assert attended_pairs(length, window, document) == int(seen.sum())


def test_packed_documents_count_less_attention_and_nothing_else():
    shape = SHAPES["gpt-oss-20b"]
    whole, packed = (step.step_flops(shape, step.Step(24, 16384, d)) for d in (None, 4096))
    fewer = sum(
        attended_pairs(16384, w) - attended_pairs(16384, w, 4096) for w in (step.WINDOW, None)
    )
    assert whole - packed == pytest.approx(24 * 12 * 4096 * fewer / 2)
    assert 0.8 < packed / whole < 1


def test_step_needs_no_trainer_tokenizer_or_data():
    """A bare machine has torch, triton and transformers; pydantic and PEFT are carried."""
    missing = ["trl", "datasets", "openai_harmony", "bitsandbytes", "typer", "rich", "wandb"]
    missing += ["trackio", "tiktoken", "pyarrow", "pandas", "liger_kernel"]
    code = f"""
import importlib.machinery, importlib.metadata, sys
sys.path.insert(0, {str(report.REPOSITORY / "kernels" / "bench")!r})
missing = {missing!r}
class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.partition(".")[0] not in missing
        return super().find_spec(name, path, target) if known else None
sys.meta_path = [Bare if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
import step
assert not [name for name in missing if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_a_torch_lacks_is_named(monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    assert "not in this torch" in dict(ops_loss.candidates())["torch linear_cross_entropy"]


def test_no_error_stops_a_table():
    assert measure.failure(torch.OutOfMemoryError("80 GiB")) == "out of memory"
    assert measure.failure(ValueError("")) == "ValueError: "


FIXTURE = [
    # Made up, to test the report: no GPU gave these numbers.
    {"part": "env", "environment": "2001-01-01, Made-Up 1, driver 1", "gpu": "Made-Up 1"},
    {
        "part": "op",
        "name": "ours, MXFP4, fused",
        "model": "gpt-oss-20b",
        "tokens": 16384,
        "ms": 1.5,
        "tflops": 11.0,
        "peak_mib": 1234.0,
        "right": True,
    },
    {
        "part": "op",
        "name": "transformers grouped_mm + PEFT",
        "model": "gpt-oss-20b",
        "tokens": 16384,
        "not_run": "out of memory",
    },
    {
        "part": "attention",
        "name": "ours, triton",
        "tokens": 16384,
        "window": None,
        "forward_tflops": 3.0,
        "backward_tflops": 2.0,
        "right": False,
    },
    {"part": "loss", "crashed": "RuntimeError: made up"},
]


def test_figures_reach_the_report_and_readme(tmp_path):
    text, table = report.markdown(FIXTURE), report.readme_table(FIXTURE, "there")
    assert report.slug(FIXTURE) == "made-up-1-2001-01-01" and report.DRY_RUN not in text
    assert "| ours, MXFP4, fused | 16384 | 1.5 |" in text and "crashed: RuntimeError" in text
    assert "fused | 1.50 ms, 11 TFLOP/s, 1,234 MiB |" in table
    assert "forward / backward | wrong, see the report |" in table
    assert f"PEFT, bf16 | {report.NOT_MEASURED} |" in table
    file = tmp_path / "README.md"
    file.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.update_readme(file, FIXTURE, tmp_path / "x.md")
    assert "old" not in file.read_text() and file.read_text().endswith(f"{report.END}\nafter\n")
    file.write_text("no marks")
    with pytest.raises(ValueError, match="needs one line"):
        report.update_readme(file, FIXTURE, tmp_path / "x.md")


def test_readme_holds_a_table_of_the_report():
    """Without results the one that says "not measured"; nobody wrote a number by hand."""
    table = report.README.read_text().partition(report.BEGIN)[2].partition(report.END)[0].strip()
    if report.NOT_MEASURED in table and not list(report.RESULTS.glob("*-20??-??-??.md")):
        assert table == report.readme_table([])
    else:
        named = {path.name for path in report.RESULTS.glob("*.md")}
        assert any(name in table for name in named)


def test_lines_without_a_gpu_are_dry():
    assert report.is_dry([]) and report.is_dry([{"part": "op", "ms": 1.0}])
    assert report.is_dry([{"part": "env", "gpu": "CPU"}]) and not report.is_dry(FIXTURE)


def test_a_moved_cache_names_its_files_anew(tmp_path):
    kernel = tmp_path / "old" / "abc"
    kernel.mkdir(parents=True)
    (kernel / "k.cubin").write_bytes(b"x")
    (kernel / "k.json").write_text("{}")
    paths = {name: str(kernel / name) for name in ("k.cubin", "k.json", "k.ptx")}
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))
    (tmp_path / "old" / MADE).write_text("{}")
    assert unpack(tmp_path / "old", tmp_path / "new") == 1
    told = json.loads((tmp_path / "new" / "abc" / "__grp__k.json").read_text())["child_paths"]
    assert told == {n: str(tmp_path / "new" / "abc" / n) for n in ("k.cubin", "k.json")}


def test_a_wheel_of_another_version_gives_no_key(tmp_path):
    import zipfile

    wheel = tmp_path / "triton-0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("triton/language/core.py", "another")
        archive.writestr("triton/_C/libtriton.so", "another")
    with pytest.raises(ValueError, match="1 of 1 files differ"):
        key_of_wheel(wheel)
