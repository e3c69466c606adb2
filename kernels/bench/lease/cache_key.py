"""The part of Triton's cache key that depends on the machine, so that kernels can travel.

Triton files a kernel under a hash of five things: its own files (``triton_key``), the source of the
kernel and of what it calls, the target's name with the version of ptxas, the options, and a few
environment variables. Paths and line numbers of the source do not enter; the files of Triton do, and
they differ between the wheels of two Python versions. So the key of the other wheel is computed from
its files, and ``precompile.py`` compiles under it.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
