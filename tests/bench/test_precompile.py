"""Kernels compiled here are loaded there: from another folder, under the other machine's key."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from cache_key import MADE

SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "bench" / "lease" / "precompile.py"


def precompile(cache, *options):
    command = [sys.executable, str(SCRIPT), str(cache), "--only", "loss", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DRY": "0"})
    assert "kernels" in done.stdout, done.stderr[-2000:]
    return done.returncode, [int(number) for number in re.findall(r"\d+", done.stdout)]


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
