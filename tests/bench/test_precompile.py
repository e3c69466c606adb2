"""Kernels compiled here are loaded there: from another folder, under the other machine's key."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cache_key import MADE

SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "bench" / "lease" / "precompile.py"


def precompile(cache, *options):
    command = [sys.executable, str(SCRIPT), str(cache), "--only", "loss", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DRY": "0"})
    assert "kernels" in done.stdout, done.stderr[-2000:]
    return done.returncode, [int(number) for number in re.findall(r"\d+", done.stdout)]


@pytest.mark.slow
def test_a_moved_cache_is_taken_and_another_key_is_not(tmp_path):
    code, _ = precompile(tmp_path / "cache")
    made = tmp_path / "cache" / MADE
    told = json.loads(made.read_text())
    assert code == 0 and told["kernels"] >= 1
    assert {path.suffix for path in (tmp_path / "cache").rglob("*.*")} == {".cubin", ".json"}
    code, (loaded, compiled, *_) = precompile(tmp_path / "cache", "--check")
    assert (code, loaded, compiled) == (0, told["kernels"], 0)
    made.write_text(json.dumps(told | {"key": "that of another Triton"}))
    code, (loaded, compiled, *_) = precompile(tmp_path / "cache", "--check")
    assert (code, loaded, compiled) == (1, 0, told["kernels"])


@pytest.mark.slow
def test_kernels_are_compiled_whatever_is_imported_beside_them():
    """``--tiles`` imports ``tune``; and what is replaced for a launch is there to replace."""
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import precompile, fake_driver, tune
from gptoss_kernels.experts import engines, triton_engine
from gptoss_kernels.backend import interpreted
before = [set(vars(module)) for module in (engines, triton_engine)]
next(precompile.launches("sm_90"))
assert before == [set(vars(module)) for module in (engines, triton_engine)]
assert not interpreted()
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_wheel_that_the_readme_names_is_fetched_there():
    text = (SCRIPT.parents[1] / "README.md").read_text().replace("\\\n", "")
    commands = text.partition("```bash")[2].partition("```")[0].splitlines()
    (taken,) = re.findall(r"--key-of (\S+)/triton-(\S+)-cp(\d)(\d+)-", "\n".join(commands))
    (fetched,) = [line for line in commands if "pip download" in line]
    assert f"-d {taken[0]} triton=={taken[1]}" in fetched
    assert f"--python-version {taken[2]}.{taken[3]} " in fetched
    assert commands.index(fetched) < next(n for n, line in enumerate(commands) if "--key" in line)
