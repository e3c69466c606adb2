"""A selection of the fault script: killed, torn, damaged, stopped and frozen runs end exact.

In a process of its own: it forks, and a test process may have threads that a fork would lose.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("method, faults, most", [("sft", 8, 2), ("dpo", 8, 1), ("grpo", 3, 1)])
def test_a_selection_of_faults_ends_exact(tmp_path, method, faults, most):
    script, found = Path(__file__).with_name("run_faults.py"), tmp_path / "outcomes.jsonl"
    arguments = ["--selection", "--jobs", "1", "--timeout", "15", "--work", str(tmp_path / "work")]
    arguments += ["--method", method]
    done = subprocess.run(
        [sys.executable, str(script), *arguments, "--json", str(found)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if row["kind"] != "exact"] == []
    tried = Counter(row["fault"] for row in rows)
    assert len(tried) == faults and tried["kill -9, inside a save"] == most, tried
