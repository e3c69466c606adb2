"""One part of a lease in a process of its own: ``python kernels/bench/lease/part.py NAME``.

Exit codes: 0 when all is right, 3 when a figure says that something is wrong, 1 after a crash,
whose error is a line too.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
sys.path[:0] = [str(HERE.parent), str(REPOSITORY / "src"), str(REPOSITORY / "kernels")]

from lines import RED, Lines, dry  # noqa: E402

PARTS = {
    "env": "part_env",
    "correct": "part_correct",
    "tune": "part_tune",
    "op": "part_op",
    "step20b": "part_step",
    "attention": "part_ops",
    "loss": "part_ops",
    "step120b": "part_step",
    "tests": "part_tests",
}
"""Module of each part, in the order of their value."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    name = parser.parse_args().part
    if dry():
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined
    folder = Path(os.environ["OUT"])
    folder.mkdir(parents=True, exist_ok=True)
    started, cached = time.perf_counter(), _compiled_kernels()
    lines = Lines(folder, name)
    code = 0
    try:
        importlib.import_module(PARTS[name]).run(name, lines)
    except Exception as error:
        traceback.print_exc()
        lines.say(crashed=f"{type(error).__name__}: {str(error)[:300]}")
        code = 1
    seconds = round(time.perf_counter() - started, 1)
    lines.say(
        seconds=seconds,
        cpu_seconds=round(time.process_time(), 1),
        compiled_here=_compiled_kernels() - cached,
        wrong=lines.wrong,
    )
    return code or (RED if lines.wrong else 0)


def _compiled_kernels() -> int:
    """Return how many kernels are in Triton's cache."""
    cache = os.environ.get("TRITON_CACHE_DIR")
    return len(list(Path(cache).rglob("*.cubin"))) if cache else 0


if __name__ == "__main__":
    sys.exit(main())
