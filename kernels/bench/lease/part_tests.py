"""The tests that need a GPU, each failure a line as soon as it happened."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from lines import Lines, dry

REPOSITORY = Path(__file__).resolve().parents[3]
FILES = ["tests/kernels", "tests/model"]
RESULT = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\s+(tests/\S+)|(tests/\S+)\s+(PASSED|FAILED)")


def run(name: str, lines: Lines) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short"]
    if dry():
        command += ["tests/kernels/test_addresses.py"]
    else:
        command += ["-m", "gpu", "-k", "not flex", *FILES]  # which compiles for minutes
        if importlib.util.find_spec("xdist"):
            command += ["-n", "8"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None  # piped just above
    counts: dict[str, int] = {}
    summary = False
    for line in process.stdout:
        print(line, end="", flush=True)
        found = RESULT.search(line)
        summary = summary or "short test summary" in line  # which names them once more
        if summary or found is None:
            continue
        outcome, test = found[1] or found[4], found[2] or found[3]
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome in ("FAILED", "ERROR"):
            lines.say(test=test, right=False)
        elif sum(counts.values()) % 20 == 0:
            lines.say(tests_so_far=dict(counts))
    lines.say(tests=counts, exit_code=process.wait(), right=process.returncode == 0)
