"""The start of a command that trains or runs a model: quiet libraries, signals while they load.

``with starting():`` stands around the imports of every such command. They take seconds, in which
``StopOnSignal`` cannot listen yet. A scheduler that takes a machine back at that moment would see a
process killed by a signal, which it counts as failed; nothing has begun yet, so the run is one to
start again. Imports hold locks and catch what is raised in them, so the handler ends the process
itself instead of raising.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gptoss_tune.errors import RunInterrupted
from gptoss_tune.terminal import loading
from gptoss_tune.train.distributed.stop_signals import stop_signals

_SHOW_CURSOR = "\x1b[?25h"


@contextmanager
def starting() -> Iterator[None]:
    """Quiet the libraries that are imported inside; a signal ends a resumable run."""
    # Ctrl-C stays what it is everywhere: the end, with an exit code of its own.
    taken = [number for number in stop_signals() if number != signal.SIGINT]
    previous = {number: signal.signal(number, _end) for number in taken}
    try:
        with loading("torch, transformers and the rest"):
            quiet_libraries()
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    # The spinner hides the cursor, and nothing comes after this line.
    shown = _SHOW_CURSOR if sys.stderr.isatty() else ""
    sys.stderr.write(
        f"{shown}stopped: a signal came before the run began; the same command starts it\n"
    )
    sys.stderr.flush()
    os._exit(RunInterrupted.exit_code)


def quiet_libraries() -> None:
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
