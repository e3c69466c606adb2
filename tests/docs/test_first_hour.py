"""The first hour, walked: its blocks in their order, as typed, in an empty folder on a CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "first-hour.md"
WALKED = re.compile(r"^<!-- walked -->\n```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks():
    return WALKED.findall(PAGE.read_text(encoding="utf-8"))


def test_every_step_but_install_and_push_is_walked():
    text = "\n".join(blocks())
    for command in ("check", "check-data", "preview", "train", "report", "chat", "merge"):
        assert f"gptoss-tune {command} " in text


@pytest.mark.slow
def test_the_page_is_walked_from_rows_to_an_answer(tmp_path):
    """With fewer steps than the page has: what is learnt is the notebook's test."""
    command = tmp_path / "bin" / "gptoss-tune"
    command.parent.mkdir()
    command.write_text(f'#!/bin/bash\nexec {sys.executable} -m gptoss_tune "$@"\n')
    command.chmod(0o755)
    place = tmp_path / "work"
    place.mkdir()
    (place / "walk.sh").write_text(
        "set -e\n" + "\n".join(blocks()).replace("steps: 120", "steps: 5")
    )
    ended = subprocess.run(
        ["bash", "walk.sh"],
        cwd=place,
        env={
            **os.environ,
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for made in ("preview.html", "runs/first/report.html", "merged/config.json", "bundle"):
        assert (place / made).exists(), made
