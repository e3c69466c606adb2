"""Every Python that finds this folder first on its path runs as on Windows."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import emulation

sys.path.pop(0)
emulation.windows()
