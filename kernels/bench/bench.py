"""Measure an op beside its alternatives, in one run, after its tests have passed.

    python kernels/bench/bench.py --op experts --model gpt-oss-20b --tokens 4096,16384,65536

Prints nothing but the failure when a test of the op is red. Results of a GPU belong into
``results/<gpu>-<date>.md``, which the first line printed names in full.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from measure import SHAPES, environment

OPS = {"experts": "ops_experts", "attention": "ops_attention", "loss": "ops_loss"}
TESTS = Path(__file__).resolve().parents[2] / "tests" / "kernels"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=sorted(OPS), default="experts")
    parser.add_argument("--model", choices=sorted(SHAPES), default="gpt-oss-20b")
    parser.add_argument("--tokens", type=_numbers, default=[4096, 16384, 65536])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=20, help="timed calls of each candidate")
    parser.add_argument("--only", default="", help="candidates whose name contains this")
    parser.add_argument("--cpu", action="store_true", help="check the script without a GPU")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu:
        print("no GPU: nothing to measure (--cpu --model tiny checks the script)", file=sys.stderr)
        return 3
    op = importlib.import_module(OPS[arguments.op])
    if not arguments.cpu and not green(op.TESTS):
        return 1
    print(environment())
    op.run(arguments)
    return 0


def green(tests: list[str]) -> bool:
    """Run the op's tests; show their output when one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [str(TESTS / name) for name in tests]
    # The tests choose by themselves: compiled where there is a GPU, interpreted elsewhere.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = TESTS.parents[1]
    paths = [str(root / "src"), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-2000:], "tests are red: nothing measured", sep="\n")
    return done.returncode == 0


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
