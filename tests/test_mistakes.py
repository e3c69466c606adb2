"""The page of mistakes shows what is said, and no mistake on it imports torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_mistakes_is_what_is_said_without_torch():
    # A process of its own: this one has imported torch long ago.
    command = [sys.executable, ROOT / "tests" / "mistakes.py", "--check", "docs/mistakes.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
