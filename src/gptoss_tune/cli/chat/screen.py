"""What a conversation writes, and nothing else: libraries' words do not get between.

A library warns through Python, logs, or prints in C straight into the descriptors of the process;
``alone`` takes the descriptors 1 and 2 away from all of them. What they say is kept, and shown
where the program ends with a fault, of which it may tell the reason. Filters of warnings and
levels of loggers were the alternative: each library needs its own, and C listens to none.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TextIO

from rich.console import Console

from gptoss_tune.display import one_line, shown_safely, visible, wrapped
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.evaluate.channels import Delta

_LAST_LINES = 20


class Screen(NamedTuple):
    """Where the conversation is written.

    Attributes:
        out: Standard output of the command.
        err: Its standard error.
    """

    out: TextIO
    err: TextIO

    def say(self, text: str) -> None:
        """Write a line beside the conversation, on standard error."""
        self.err.write(f"{fitted(shown_safely(text), self.err)}\n")
        self.err.flush()


def fitted(text: str, stream: TextIO) -> str:
    """Return ``text`` broken between words where ``stream`` is a terminal."""
    if not stream.isatty():
        return text
    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(stream.fileno()).columns
        return wrapped(text, columns) if columns else text
    return text


@contextmanager
def alone() -> Iterator[Screen]:
    """Let the block alone write to standard output and standard error.

    Where they are no files of this process's own (a test's or a notebook's), they are used as they
    are.
    """
    if not (_is_descriptor(sys.stdout, 1) and _is_descriptor(sys.stderr, 2)):
        yield Screen(sys.stdout, sys.stderr)
        return
    with tempfile.TemporaryFile() as sink:
        screen = Screen(_copied(sys.stdout), _copied(sys.stderr))
        try:
            with _redirected(sink):
                yield screen
        except (GptossTuneError, KeyboardInterrupt, SystemExit, EOFError, BrokenPipeError):
            raise
        except Exception:
            sink.seek(0)
            said = sink.read().decode("utf-8", "replace").splitlines()[-_LAST_LINES:]
            if said:
                screen.say("\n".join(["what libraries said before:", *said]))
            raise
        finally:
            for stream in screen:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False


def _copied(stream: TextIO) -> TextIO:
    """Return a stream of its own to where ``stream`` writes."""
    stream.flush()
    return io.TextIOWrapper(
        os.fdopen(os.dup(stream.fileno()), "wb"),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )


@contextmanager
def _redirected(sink: BinaryIO) -> Iterator[None]:
    """Let the descriptors 1 and 2 lead into ``sink``."""
    kept = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(sink.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)  # what C has printed and not yet written
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


class Display:
    """Prints text as it comes, a label where the channel changes, thoughts dimmed.

    Attributes:
        written: Whether anything was.
    """

    def __init__(self, console: Console) -> None:
        """Print on ``console``."""
        self._console = console
        self._place: tuple[str, int] | None = None
        self.written = False

    def __call__(self, delta: Delta) -> None:
        """Print what is new."""
        channel, text = delta.label, delta.text
        style = None if channel == "final" else "dim"
        # Two calls of one tool are two messages under one label.
        place = (channel, delta.message if delta.recipient else 0)
        if place != self._place:
            if self._place is not None:
                self._console.print()
            self._console.print(f"[{one_line(channel)}] ", style="cyan", end="", markup=False)
            self._place = place
        self._console.print(visible(text), style=style, end="", markup=False, emoji=False)
        self.written = True
