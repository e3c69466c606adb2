"""Less noise: what other libraries say that a user of a recipe can do nothing about.

Called by the commands before anything heavy is imported, because some of it is said on import.

Deprecations inside TRL, PEFT and Transformers, and bars for loads that take a second, bury the few
lines that matter. Their errors stay, and ``--debug`` is untouched by this for tracebacks.
"""

from __future__ import annotations

import logging
import os
import warnings


def hush_libraries() -> None:
    """Silence deprecation warnings between libraries, their information and their progress bars."""
    # torch prints a C++ stack when another rank's connection closes; the run says who it was.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # On CPUs with AVX-512 bitsandbytes looks for a package "kernels" on import, and says so.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for library in ("transformers", "peft", "trl", "accelerate", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{library}\b")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
