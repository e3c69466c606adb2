"""An install without the extras: what needs no torch runs, the rest names its extra in one line."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gptoss_tune.error_hints import EXTRAS, missing_extra
from gptoss_tune.errors import run_command
from gptoss_tune.shipped import shipped

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ABSENT = sorted(module for modules in EXTRAS.values() for module in modules)


def test_the_table_of_extras_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for extra, modules in EXTRAS.items():
        named = [re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"][extra]]
        assert sorted(name.replace("-", "_").replace("_kernels", "") for name in named) == [
            *modules
        ]
    base = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in project["dependencies"]}
    assert not base & set(ABSENT)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_module_that_is_not_there_names_its_extra(extra, monkeypatch, capsys):
    module = EXTRAS[extra][0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: __import__(module), debug=False)
    assert ended.value.code == 3
    told = f"error: this needs the extra '{extra}': pip install \"gptoss-tune[{extra}]\" (there is"
    assert capsys.readouterr().err.startswith(told)


def test_a_part_of_a_library_that_is_there_is_no_missing_extra(capsys):
    assert missing_extra("torch") is None
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: __import__("torch.no_such_part"), debug=False)


def test_what_is_made_for_linux_alone_is_not_to_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert missing_extra("bitsandbytes") == (
        "bitsandbytes is installed on Linux alone; choose settings that do without it"
    )


def commands(place):
    """Return the command lines that need no torch, and those that do."""
    recipe = str(shipped("recipes") / "gpt-oss-20b" / "qlora.yaml")
    own = shipped("data") / "tiny" / "train.jsonl"
    words = [recipe, f"data.train={own}", "data.eval=null", "train.eval_steps=null"]
    run = place / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    run.joinpath("run.json").write_text(json.dumps({"run_id": "x", "status": "finished"}))
    light = [
        ["--version"],
        ["recipes"],
        ["schema"],
        ["check", *words],
        ["plan", *words, "--gpu", "h100-80gb"],
        ["preview", *words],
        ["check-data", *words],
        ["launch", *words, "--slurm", "--out", str(place / "job")],
        ["report", str(run)],
    ]
    heavy = [
        ["train", *words],
        ["demo", "--folder", str(place / "demo")],
        ["tiny", str(place / "base")],
        ["merge", str(run), "--out", str(place / "out")],
        ["verify", str(run)],
        ["chat", str(run)],
        ["push", str(run), "--repo", "me/mine"],
        ["serve-config", str(run), "--target", "vllm", "--out", str(place / "out")],
        ["adapter", str(run), "--for", "vllm", "--out", str(place / "out")],
    ]
    tracked = ["train", *words, "tracking.wandb=online"]
    return light, heavy, tracked


@pytest.mark.slow
def test_commands_without_torch(tmp_path):
    light, heavy, tracked = commands(tmp_path)
    asked = {"encoding": "utf-8", "absent": ABSENT, "commands": [*light, *heavy, tracked]}
    sources = [str(ROOT / top) for top in ("src", "kernels")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sources),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "commands.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted({*ABSENT} & {*found["loaded"]}) == []
    ended = found["ended"]
    for one in ended[: len(light)]:
        assert one["code"] == 0, one
    for one in ended[len(light) : -1]:
        told = one["errors"].strip().splitlines()
        assert len(told) == 1 and "Traceback" not in told[0], one
        if one["words"][0] in ("train", "demo", "tiny"):
            wanted = "error: this needs the extra 'train': pip install \"gptoss-tune"
            assert one["code"] == 3 and told[0].startswith(wanted), one
        else:  # the run has no adapter, which is known without torch
            assert one["code"] in (2, 3), one
    assert ended[-1]["code"] == 3 and "the extra 'train'" in ended[-1]["errors"], ended[-1]


def test_every_dependency_of_the_base_install_is_here():
    # As declared: what a base install brings is what its commands import.
    for line in importlib.metadata.requires("gptoss-tune") or ():
        if "extra ==" not in line:
            importlib.metadata.version(re.match(r"[\w-]+", line)[0])
