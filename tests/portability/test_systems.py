"""Every command of a first hour on macOS and on Windows, both emulated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_tune.shipped import shipped

HERE = Path(__file__).parent
SOURCES = [str(HERE.parents[1] / top) for top in ("src", "kernels")]


def commands(place):
    """Return the command lines of a first hour, in ``place``."""
    recipe = str(shipped("recipes") / "tiny" / "qlora.yaml")
    data = shipped("data") / "tiny"
    base, run = place / "base", place / "run"
    own, few = place / "Größe.jsonl", place / "few.jsonl"
    lines = (data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    own.write_text("".join(lines), "utf-8")
    # The demo lets three models answer every row, which takes minutes for all.
    few.write_text("".join(lines[:2]), "utf-8")
    words = [
        recipe,
        f"model.name_or_path={base}",
        f"data.train={own}",
        f"train.output_dir={run}",
        "train.max_steps=3",
        "train.save_steps=2",
        "train.warmup_steps=0",
    ]
    return [
        ["recipes"],
        ["schema"],
        ["tiny", str(base)],
        ["check", *words],
        ["plan", *words],
        ["preview", *words],
        ["check-data", *words],
        ["launch", *words, "--slurm", "--out", str(place / "job.sbatch")],
        ["train", *words],
        ["report", str(run)],
        ["merge", str(run), "--format", "mxfp4", "--accept-loss", "--out", str(place / "merged")],
        ["serve-config", str(place / "merged"), "--target", "vllm", "--out", str(place / "serve")],
        [
            "demo",
            f"data.train={few}",
            "train.max_steps=2",
            "train.warmup_steps=0",
            "--folder",
            str(place / "demo"),
        ],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["mac", "windows"])
def test_a_first_hour(system, tmp_path):
    encoding = "cp1252" if system == "windows" else "utf-8"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE / system), *SOURCES]),
        "PYTHONWARNDEFAULTENCODING": "1",
        "PYTHONIOENCODING": encoding,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    asked = {"encoding": encoding, "commands": commands(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(HERE / "commands.py")],
        input=json.dumps(asked),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = {one["words"][0]: one for one in json.loads(done.stdout.splitlines()[-1])["ended"]}
    for name, one in ended.items():
        assert one["code"] == 0, (name, one["out"], one["errors"], done.stdout, done.stderr)
        assert "Traceback" not in one["errors"], (name, one["errors"])
        assert "cannot be locked" not in one["errors"], (name, one["errors"])
    assert "cannot be locked" not in done.stderr
    assert "asks only that the merge is right" in ended["demo"]["out"]
    assert (tmp_path / "demo" / "merged" / "model.safetensors").exists()
    assert (tmp_path / "run" / "report.html").exists()
    assert b"\r" not in (tmp_path / "job.sbatch").read_bytes()
    left = [path.name for path in tmp_path.rglob("*") if path.suffix in (".part", ".incomplete")]
    assert left == [] and not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
def test_the_emulations_lack_what_they_should():
    said = {}
    for system in ("mac", "windows"):
        # Under the name of a file of ours, from whom more is kept.
        code = "import os\nprint(hasattr(os, 'sched_getaffinity'), hasattr(os, 'preadv2'))\n"
        code += "print(hasattr(os, 'fork'))\n"
        code += "try:\n import fcntl\n print('fcntl')\nexcept ImportError:\n print('none')"
        code = f"exec(compile({code!r}, 'gptoss_tune.py', 'exec'))"
        environment = {**os.environ, "PYTHONPATH": str(HERE / system)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        said[system] = done.stdout.split()
    assert said == {
        "mac": ["False", "False", "True", "fcntl"],
        "windows": ["False", "False", "False", "none"],
    }
