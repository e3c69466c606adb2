"""The whole kit on a CPU: as it should go, and with parts that crash, hang, lie or are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
LEASE = REPOSITORY / "kernels" / "bench" / "lease.sh"
# step120b runs step20b's code; it is left to the command line.
PARTS = ["env", "correct", "tune", "op", "step20b", "attention", "loss", "tests"]

# Runs before a part's own code: faults without a line of them in the kit.
FAULTS = {
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hang": "import time; time.sleep(600)",
    "nan": """
import gptoss_kernels.testing as testing
right = testing.outputs_and_gradients
def unwritten(inputs, **options):
    found = right(inputs, **options)
    if options.get("engine") == "packed":
        found["hidden_states"][0, 0] = float("nan")
    return found
testing.outputs_and_gradients = unwritten
""",
}


def start(folder, parts, faults=None, **settings):
    """Start the kit; ``faults`` names a fault by part."""
    plant = folder / "plant"
    plant.mkdir(parents=True)
    lines = ["import sys"]
    for part, fault in (faults or {}).items():
        lines += [f"if sys.orig_argv[-1] == {part!r}:", f"    exec({FAULTS[fault]!r})"]
    (plant / "sitecustomize.py").write_text("\n".join(lines))
    environment = os.environ | {
        "DRY": "1",
        "OUT": str(folder / "out"),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(plant),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        **{name: str(value) for name, value in settings.items()},
    }
    return subprocess.Popen(
        ["bash", str(LEASE), *parts],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read(folder):
    from lines import read_lines

    return read_lines(folder / "out" / "lines.jsonl")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    process = start(folder, PARTS)
    shown, _ = process.communicate()
    return folder, process.returncode, shown


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Start the faulty runs side by side: what hangs takes no processor."""
    folder = tmp_path_factory.mktemp("bad")
    runs = {
        "crash": start(folder / "crash", ["attention", "loss"], {"attention": "crash"}),
        "hang": start(folder / "hang", ["op", "env"], {"op": "hang", "env": "crash"}, PART_LIMIT=5),
        "nan": start(folder / "nan", ["env", "correct", "tune", "op"], {"correct": "nan"}),
    }
    for run in runs.values():
        run.communicate()
    return {name: (folder / name, run.returncode) for name, run in runs.items()}


def test_every_part_ends_well_and_says_what_it_found(good):
    folder, code, shown = good
    lines = read(folder)
    assert code == 0, shown
    wanted = {
        "env": "environment",
        "correct": "errors",
        "tune": "best",
        "op": "dx_off",
        "step20b": "host_ms",
        "attention": "forward_ms",
        "loss": "of_floor",
        "tests": "tests",
    }
    for part, field in wanted.items():
        found = [line for line in lines if line["part"] == part]
        assert any(field in line for line in found), part
        assert found[-1]["wrong"] == 0 and "seconds" in found[-1], part
    assert not [line for line in lines if "crashed" in line or line.get("right") is False]
    assert len(list((folder / "out").rglob("*"))) <= 8
    rivals = {line["name"] for line in lines if line["part"] == "op" and "dx_off" in line}
    assert rivals >= {
        "ours, MXFP4, fused",
        "transformers grouped_mm + PEFT",
        "transformers grouped_mm, no LoRA (the floor)",
        "split LoRA on grouped_mm, bf16 base",
    }


def test_its_report_says_cpu_and_is_no_result(good, tmp_path):
    import report

    folder = good[0]
    lines = read(folder)
    assert "No results: lines of a dry run" in report.markdown(lines)
    command = [sys.executable, report.__file__, str(folder / "out" / "lines.jsonl")]
    before = report.README.read_bytes()
    refused = [[], ["--out", str(report.RESULTS / "cpu.md")]]
    for options in refused:
        assert subprocess.run([*command, *options], capture_output=True).returncode == 2
    assert report.README.read_bytes() == before
    assert not list(report.RESULTS.glob("cpu*"))
    out = tmp_path / "report.md"
    assert subprocess.run([*command, "--out", str(out)], capture_output=True).returncode == 0
    assert "transformers grouped_mm + PEFT" in out.read_text()


def test_a_part_that_crashes_loses_itself_alone(bad):
    lines = read(bad["crash"][0])
    assert ends(lines) == {"attention": 139}  # SIGSEGV
    assert bad["crash"][1] == 1
    assert any("of_floor" in line for line in lines if line["part"] == "loss")


def test_a_part_that_hangs_is_stopped_and_the_next_one_starts(bad):
    assert ends(read(bad["hang"][0])) == {"op": 124, "env": 139}


def quick(folder, *parts, **codes):
    """Run the kit with parts that write one line and end with a code; return its code and words."""
    folder.mkdir(exist_ok=True)
    part = folder / "part.sh"
    part.write_text(
        '#!/bin/bash\necho "{\\"part\\": \\"$2\\"}" >> "$OUT/lines.jsonl"\n'
        'code=CODE_$2\nexit "${!code:-0}"\n'
    )
    part.chmod(0o755)
    environment = os.environ | {"DRY": "1", "OUT": "out", "PYTHON": str(part)}
    environment |= {f"CODE_{name}": str(code) for name, code in codes.items()}
    done = subprocess.run(
        ["bash", str(LEASE), *parts], env=environment, cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout


def test_a_relative_folder_is_the_callers(tmp_path):
    assert quick(tmp_path, "env")[0] == 0
    assert read(tmp_path) == [{"part": "env"}] and not (REPOSITORY / "out").exists()


def test_whoever_is_stopped_beside_it_without_a_terminal_is_not_hung_up(tmp_path):
    """A group whose end is another group's is sent SIGHUP where one of it is stopped."""
    part = tmp_path / "part.sh"
    part.write_text("#!/bin/bash\n")
    part.chmod(0o755)
    script = (
        'sleep 60 & kill -STOP $!; bash "$0" env loss > /dev/null; code=$?; kill -9 $!; exit $code'
    )
    done = subprocess.run(
        ["bash", "-c", script, str(LEASE)],
        env=os.environ | {"DRY": "1", "OUT": "out", "PYTHON": str(part)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr


def test_named_parts_add_and_a_whole_run_keeps_what_was_there(tmp_path):
    quick(tmp_path, "env")
    with (tmp_path / "out" / "lines.jsonl").open("a") as half:
        half.write('{"part": "op", "na')
    quick(tmp_path, "loss")
    assert [line["part"] for line in read(tmp_path)] == ["env", "loss"]
    for _ in range(5):
        quick(tmp_path)
    whole = ["env", "correct", "tune", "op", "step20b", "attention", "loss", "step120b", "tests"]
    assert [line["part"] for line in read(tmp_path)] == whole
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"log.txt", "lines.jsonl", *(f"lines-{n}.jsonl" for n in (1, 2, 3))}
    quick(tmp_path / "other", "loss")
    quick(tmp_path / "other")
    (kept,) = (tmp_path / "other" / "out").glob("lines-*.jsonl")
    assert kept.name == "lines-1.jsonl" and '"loss"' in kept.read_text()


@pytest.mark.parametrize(
    ("part", "ended", "code"),
    [("env", 127, 1), ("loss", 126, 1), ("loss", 1, 1), ("loss", 3, 1), ("loss", 124, 0)],
)
def test_the_exit_code_and_the_last_line_say_which_part_failed(tmp_path, part, ended, code):
    found, shown = quick(tmp_path, "env", "loss", **{part: ended})
    assert found == code
    assert (f"{part} ({ended})" in shown.splitlines()[-1]) is bool(code)


def ends(lines):
    return {line["part"]: line["exit_code"] for line in lines if "exit_code" in line}


def test_nan_in_correct_stops_what_builds_on_it(bad):
    folder, code = bad["nan"]
    lines = read(folder)
    engines = {line["engine"]: line for line in lines if "engine" in line}
    assert engines["fused"]["right"] and not engines["packed"]["right"]
    assert engines["packed"]["faults"].keys() == {"hidden_states"}
    assert ends(lines) == {"correct": 3}
    stopped = {
        line["part"]: line["not_run"] for line in lines if line.keys() == {"part", "not_run"}
    }
    assert stopped == {"tune": "correct ended with 3", "op": "correct ended with 3"}
    assert code != 0
    assert any("environment" in line for line in lines)


def test_a_killed_run_leaves_its_lines(tmp_path):
    process = start(tmp_path, ["env", "correct"], {"correct": "hang"})
    file = tmp_path / "out" / "lines.jsonl"
    most = time.monotonic() + 120
    while not (file.is_file() and '"seconds"' in file.read_text()):
        assert process.poll() is None and time.monotonic() < most
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lines = read(tmp_path)
    assert {line["part"] for line in lines} == {"env"}
    with file.open("a") as half:
        half.write('{"part": "correct", "err')  # a line that the kill cut off
    assert read(tmp_path) == lines
    assert json.loads(file.read_text().splitlines()[0])["dry"]
