"""What the benchmarks' figures rest on: no wrong tile, useful operations only, honest tables."""

import json
import subprocess
import sys

import lines
import measure
import ops_attention
import ops_experts
import ops_loss
import part_correct
import part_tune
import pytest
import report
import step
import torch
import tune
from cache_key import MADE, key_of_wheel, unpack
from gptoss_kernels.routing import route
from gptoss_kernels.testing import make_layer, make_routing
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


@pytest.mark.slow
def test_steps_and_gpu_tests_need_no_trainer_tokenizer_or_data():
    """A bare machine has torch, triton and transformers; pydantic and PEFT are carried."""
    missing = ["trl", "datasets", "openai_harmony", "bitsandbytes", "typer", "rich", "wandb"]
    missing += ["trackio", "tiktoken", "pyarrow", "pandas", "liger_kernel"]
    code = f"""
import importlib.machinery, importlib.metadata, sys
bench = {str(report.REPOSITORY / "kernels" / "bench")!r}
sys.path[:0] = [bench, bench + "/lease"]
missing = {missing!r}
class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.partition(".")[0] not in missing
        return super().find_spec(name, path, target) if known else None
sys.meta_path = [Bare if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
import step
assert not [name for name in missing if name in sys.modules]
import pytest, part_tests
sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *part_tests.FILES]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=report.REPOSITORY
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_what_a_torch_lacks_is_named(monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    assert "not in this torch" in dict(ops_loss.candidates())["torch linear_cross_entropy"]


def test_no_error_stops_a_table():
    assert measure.failure(torch.OutOfMemoryError("80 GiB")) == "out of memory"
    assert measure.failure(ValueError("")) == "ValueError: "


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_an_engine_of_ours_that_raises_is_wrong(monkeypatch, error):
    def broken(*arguments, **options):
        raise error("made up")

    names, calls = ("ours, one", "another"), {}
    monkeypatch.setattr(ops_attention, "candidates", lambda _: [(n, broken) for n in names])
    calls["attention"] = ops_attention.figures([8], 1)
    monkeypatch.setattr(ops_loss, "candidates", lambda: [(n, broken) for n in names])
    calls["loss"] = ops_loss.figures([8], 1)
    monkeypatch.setattr(ops_experts, "candidates", lambda *_: [(n, broken) for n in names])
    calls["experts"] = ops_experts.figures(SHAPES["least"], 2, 4, 1)
    for op, figures in calls.items():
        ours, other = list(figures)[:2]
        assert "not_run" in ours and "right" not in other, op
        assert ours.get("right") is (None if error is torch.OutOfMemoryError else False), op


FAILED_PROOF = ValueError('engine "quack" failed its proof: made up; use engine "fused"')


def test_a_failed_proof_stops_nothing(monkeypatch):
    def outputs(inputs, engine="", **options):
        if engine == "quack":
            raise FAILED_PROOF
        return {"out": torch.ones(4)}

    monkeypatch.setattr(part_correct, "find_obstacle", lambda *_: None)
    monkeypatch.setattr(part_correct, "outputs_and_gradients", outputs)
    monkeypatch.setattr(part_correct, "bf16_faults", lambda *_: {})
    routing = make_routing(3, 2, 4, kind="random")
    sizes = {"num_experts": 4, "hidden": 32, "intermediate": 32, "rank": 4, "packed": True}
    inputs = make_layer(routing, **sizes, dtype=torch.float32, device=torch.device("cpu"))
    found = list(part_correct.engines(inputs, packed=True))
    assert [figure["engine"] for figure in found] == ["fused", "grouped_mm", "packed", "quack"]
    assert all(figure["right"] for figure in found[:-1])
    assert "failed its proof" in found[-1]["not_run"] and "right" not in found[-1]
    assert measure.no_figure("ours, quack", FAILED_PROOF).keys() == {"not_run"}


def test_an_engine_that_raises_loses_its_own_limit_alone(capsys):
    def clock(tokens):
        times = {"fused": 4.0, "packed": 3.0 if tokens < 2048 else 5.0, "grouped_mm": 9.0}
        times["quack"] = 1.0

        def timed(engine):
            if engine == "quack" and tokens >= failing:
                raise FAILED_PROOF
            return times[engine] if (engine, tokens) != ("grouped_mm", 16384) else 2.0

        return timed

    for failing in (512, 16384):
        limits = tune.engine_limits(clock, ["grouped_mm", "quack"], (512, 2048, 16384), 4)
        assert limits == {"packed_max_rows": 2048, "grouped_mm_min_rows": 65536}
        assert f"{failing} tokens: quack is left out" in capsys.readouterr().out
    failing = 10**9
    limits = tune.engine_limits(clock, ["grouped_mm", "quack"], (2048, 16384), 4)
    assert limits == {"packed_max_rows": 0, "quack_min_rows": 8192}


def test_a_killed_tune_leaves_no_engines(tmp_path, monkeypatch):
    """Or ``choose_engine`` would read that none was ever faster than the fused one."""
    monkeypatch.setenv("DRY", "1")
    monkeypatch.setenv("OUT", str(tmp_path))
    best = {"product": "store", "rank": 4}
    monkeypatch.setattr(tune, "tile_figures", lambda *_: [{"best": best, "taken": 1}])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune_engines", killed)
    with pytest.raises(KeyboardInterrupt):
        part_tune.run("tune", lines.Lines(tmp_path, "tune"))
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["tiles"] == [best]
    assert "engines" not in json.loads(file.read_text())
    monkeypatch.setattr(tune, "tune_engines", lambda *_: {"packed_max_rows": 0})
    part_tune.run("tune", lines.Lines(tmp_path, "tune"))
    assert json.loads(file.read_text())["engines"] == {"packed_max_rows": 0}


def test_a_tuned_entry_says_its_rank():
    found = list(tune.tile_figures(SHAPES["least"], 4, 4, 1, 1, "packed_swiglu"))
    assert found[-1]["best"]["rank"] == 4


def test_the_factor_that_holds_the_bias_is_tuned():
    """As the layer launches it: one column more, in rows of a multiple of 16."""
    shape = SHAPES["gpt-oss-20b"]
    case = next(c for c in tune.cases(shape, 16) if (c.n, c.k) == (17, shape.hidden))
    assert case.product == "skinny" and case.gather and not case.turned
    assert {tiles.block_n for tiles in tune.space(case, "sm_90")} == {32}
    small = SHAPES["tiny"]
    picked = torch.rand(16, small.num_experts).topk(small.top_k).indices
    routing = route(picked, small.num_experts, backend="triton")
    made = tune.Problem(tune.Case("skinny", 5, small.hidden, gather=True), small, routing, 4)
    assert made.out.shape[1] == 5 and made.out.stride(0) == 16
    assert made.timed(Tiles(16, 16, 32, 4, 1), 1) > 0


MADE_UP = {"gpu": "Made-Up 1", "dry": False, "day": "2001-01-01"}
FIXTURE = [
    # Made up, to test the report: no GPU gave these numbers.
    {"part": "env", "environment": "2001-01-01, Made-Up 1, driver 1"} | MADE_UP,
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
    assert report.slug(FIXTURE) == "made-up-1-2001-01-01" and "No results" not in text
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


@pytest.mark.parametrize(
    ("lines", "obstacle"),
    [
        ([], "no line names the GPU"),
        ([{"part": "op", "ms": 1.0}], "no line names the GPU"),
        ([{"part": "op", "gpu": "CPU"}], "without a GPU"),
        ([*FIXTURE, {"part": "op"} | MADE_UP | {"dry": True}], "dry run"),
        ([*FIXTURE, {"part": "op", "gpu": "Made-Up 2"}], "Made-Up 1, Made-Up 2"),
        (FIXTURE, None),
        ([FIXTURE[1] | MADE_UP], None),  # a part by itself, without env
    ],
)
def test_lines_are_results_by_what_each_of_them_says(lines, obstacle):
    found = report.find_obstacle(lines)
    assert found is None if obstacle is None else obstacle in found


def test_each_line_names_its_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("DRY", raising=False)
    monkeypatch.setattr(lines, "gpu_name", lambda: "Made-Up 1")
    lines.Lines(tmp_path, "op").say(**{k: v for k, v in FIXTURE[1].items() if k != "part"})
    found = lines.read_lines(tmp_path / "lines.jsonl")
    assert report.find_obstacle(found) is None and found[0]["name"] == FIXTURE[1]["name"]
    assert report.slug(found).startswith("made-up-1-20")
    assert f"{report.slug(found)}; the whole report: there." in report.readme_table(found, "there")


@pytest.mark.parametrize(
    ("change", "cell"),
    [
        ({"tflops": None}, report.NOT_MEASURED),
        ({"ms": float("nan")}, report.NOT_MEASURED),
        ({"tflops": None, "right": False}, "wrong, see the report"),
        ({"not_run": "ValueError: made up", "right": False}, "wrong, see the report"),
        ({"ms": 2.5}, "2.50 ms, 11 TFLOP/s, 1,234 MiB"),  # a part that ran again
    ],
)
def test_readme_shows_the_last_line_and_nothing_that_is_no_number(change, cell):
    table = report.readme_table([*FIXTURE, FIXTURE[1] | change], "there")
    assert f"| expert layer, ours, MXFP4, fused | {cell} |" in table


def test_lines_of_other_kinds_do_not_stop_a_report(tmp_path):
    file = tmp_path / "lines.jsonl"
    odd = [*FIXTURE, {"tokens": 3}, {"best": {"product": "store"}}, 7, None, ["part"]]
    file.write_text("\n".join(json.dumps(line) for line in odd) + '\n{"part": "op", "na')
    found = lines.read_lines(file)
    assert len(found) == len(FIXTURE) + 2
    assert "ours, MXFP4, fused" in report.markdown(found) and report.readme_table(found)


def test_a_report_names_a_file_that_is_not_there_and_counts_what_it_leaves_out(
    tmp_path, monkeypatch, capsys
):
    file = tmp_path / "lines.jsonl"
    monkeypatch.setattr("sys.argv", ["report.py", str(file), "--out", str(tmp_path / "report.md")])
    with pytest.raises(SystemExit, match="2"):
        report.main()
    assert f"{file}: no such file; kernels/bench/lease.sh writes one" in capsys.readouterr().err
    file.write_text("\n".join(map(json.dumps, FIXTURE)) + '\n{"part": "op", "na')
    assert report.main() == 0
    assert "left out: 1 lines" in capsys.readouterr().out
    assert "ours, MXFP4, fused" in (tmp_path / "report.md").read_text()


def test_a_second_run_of_a_day_has_a_file_of_its_own(tmp_path):
    first = report.free_file(tmp_path, FIXTURE)
    first.write_text(report.markdown(FIXTURE))
    assert first.name == "made-up-1-2001-01-01.md"
    assert report.free_file(tmp_path, FIXTURE) == first
    again = [*FIXTURE, FIXTURE[1] | {"ms": 2.5}]
    assert report.free_file(tmp_path, again).name == "made-up-1-2001-01-01-2.md"


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
