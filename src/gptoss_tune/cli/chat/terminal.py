"""The terminal while an answer comes: keys wait unseen for the next line, Ctrl-C ends the answer.

What is typed or pasted meanwhile is kept by the terminal as it was typed, and read by the editor
afterwards. Left as it is, a terminal would write it into the answer, and turn Enter into another
key.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

_BRACKETED = "\x1b[?2004h"
"""Asks the terminal to mark what is pasted, so that it stays one message."""


def shows_escapes(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that moves its cursor when it is told to."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


@contextmanager
def keys_wait(out: TextIO) -> Iterator[None]:
    """Keep keys unseen for the editor, which is asked next.

    Args:
        out: The terminal.
    """
    try:
        import termios
    except ImportError:  # Windows, whose console shows no keys that nobody reads
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # Ctrl-C and Ctrl-Z throw nothing away that was typed

    def hide() -> None:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
        # Past the stream's buffer: a signal may come while the answer is being written into it.
        os.write(out.fileno(), _BRACKETED.encode())

    out.flush()
    hide()
    try:
        with _when_continued(descriptor, hide):
            yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _when_continued(descriptor: int, hide: Callable[[], None]) -> Iterator[None]:
    """Call ``hide`` where the process goes on after Ctrl-Z: the shell has set the terminal anew.

    In the background the terminal is another's, and to set it would stop the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def again(number: int, frame: FrameType | None) -> None:
        if os.tcgetpgrp(descriptor) == os.getpgrp():
            hide()

    before = signal.signal(signal.SIGCONT, again)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C inside raise KeyboardInterrupt, and more of them nothing.

    One pressed again while an answer is being ended would end the session. A request to end the
    process is raised too, so that the terminal gets its keys back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if not pressed:
            pressed = True
            raise KeyboardInterrupt

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: end}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = end
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(TypeError):  # one that C has set
                signal.signal(number, handler)
