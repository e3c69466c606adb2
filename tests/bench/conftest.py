"""The scripts of kernels/bench import one another by name, as their folder is on the path."""

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
sys.path[:0] = [str(BENCH), str(BENCH / "lease")]
