"""The handlers of signals, kept while a stranger's module is imported.

A run saves a checkpoint when it is told to end. A library that handles SIGTERM itself, as
``verifiers`` does whenever an environment is made, would end it without one.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Final

_KEPT: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back the handlers that whatever is done inside replaces.

    Outside of the main thread Python refuses to change one, so there is nothing to put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _KEPT}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
