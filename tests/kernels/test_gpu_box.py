"""These tests as a machine with a GPU sees them: Triton's interpreter off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]

# One process: all tests of both folders are collected and looked at, those of a few files run.
CODE = """
import sys
import pytest

class Look:
    misplaced = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        for item in items:
            kept = any(item.get_closest_marker(name) for name in ("gpu", "interpreter"))
            if item.get_closest_marker("triton") and not kept and "device" not in item.fixturenames:
                self.misplaced.append(item.nodeid)
        items[:] = [item for item in items if item.path.name in sys.argv[2:]]

look = Look()
code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", sys.argv[1] + "/kernels",
                    sys.argv[1] + "/model"], plugins=[look])
print("misplaced:", look.misplaced)
sys.exit(code)
"""
FILES = (
    *("test_attention.py", "test_sinks.py"),
    *("test_linear_cross_entropy.py", "test_row_weights.py"),
)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this is such a machine")
def test_without_the_interpreter_nothing_fails_and_what_cannot_run_is_skipped():
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(TESTS), *FILES],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Triton's interpreter is off, and there is no GPU" in done.stdout
    # With a GPU these tests run on it, so their tensors have to be there.
    assert done.stdout.splitlines()[-1] == "misplaced: []"
