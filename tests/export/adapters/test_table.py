"""The page of adapters shows what the commands do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_page_of_adapters_is_what_the_commands_do():
    # A process of its own, for what PEFT sets when it is imported.
    command = [sys.executable, ROOT / "tests" / "adapters.py", "--check", "docs/adapters.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
