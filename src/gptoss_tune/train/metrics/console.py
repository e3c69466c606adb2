"""The console of a run, which may stop listening: no line of it ends a training.

The reader of a pipe leaves (``train | head``), a terminal closes, the disk of a job's log fills up.
The figures are in the run's folder; what could not be shown is said to be so once, on standard
error, and the run goes on. A console of rich ends the process when its pipe is closed.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console

from gptoss_tune.display import wrapped


def run_console(*, quiet: bool) -> Console:
    """Return the console on standard output.

    On a terminal its lines are broken between words, and a path never, since it is copied from
    there; elsewhere a line stays one.

    Args:
        quiet: Print nothing, as on all ranks but the first.
    """
    stream: Any = LastingStream(sys.stdout)
    return _RunConsole(file=stream, quiet=quiet, markup=False, emoji=False, soft_wrap=True)


class _RunConsole(Console):
    """A console that breaks the lines of a run between words on a terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        if self.is_terminal and len(objects) == 1 and isinstance(objects[0], str):
            objects = (wrapped(objects[0], self.width),)
        super().print(*objects, **options)


class LastingStream:
    """A text stream whose failures cost the lines that it could not take, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``; everything else is asked of it."""
        self._stream = stream
        self._said = False

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        with self._lasting():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:  # a path, on a stream that is not UTF-8
                spelled = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
                self._stream.write(spelled)
        return len(text)

    def flush(self) -> None:
        """Send what was written on its way, or drop it."""
        with self._lasting():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Return what is asked of the stream."""
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed in this process
            self._empty()
            if not self._said:
                self._said = True
                say(
                    f"standard output takes no more lines ({error}); the run "
                    "goes on, its figures are in its folder"
                )

    def _empty(self) -> None:
        """Drop what the stream still holds: it would fail again, last at the end of the process."""
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            number = self._stream.fileno()
            kept, nothing = os.dup(number), os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nothing, number)
                self._stream.flush()
            finally:
                os.dup2(kept, number)
                os.close(kept)
                os.close(nothing)


def say(text: str) -> None:
    """Write a line to standard error, where that can still be written."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
