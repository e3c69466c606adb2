"""Where a message is typed: a line with editing and history, or the plain line of a dumb terminal.

Both give a message, pasted lines as one (of a dumb terminal those that end with Enter), raise
``EOFError`` at Ctrl-D and ``KeyboardInterrupt`` at Ctrl-C on an empty line.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import is_searching
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from gptoss_tune.cli.chat.terminal import keys_wait

_PROMPT: Final = "> "
_PASTE_S: Final = 0.05  # lines of one paste follow each other faster than anyone types


class Editor(Protocol):
    """Where messages are typed."""

    keys: tuple[tuple[str, str], ...]
    """What its keys do, for ``/help``."""

    def read(self) -> str:
        """Return a message.

        Raises:
            EOFError: Ctrl-D, or the terminal is gone.
            KeyboardInterrupt: Ctrl-C on an empty line.
        """
        ...

    def waiting(self) -> AbstractContextManager[None]:
        """Return what stands around an answer."""
        ...


class LineEditor:
    """A line that can be edited, with history and completion of commands."""

    keys = (
        ("arrows, Ctrl-R", "edit the line; walk through, or search, what was said before"),
        ("Alt-Enter, Ctrl-J", "a new line; pasted lines are one message, which Enter sends"),
        ("Ctrl-X Ctrl-E", "write it in $EDITOR"),
        ("Tab", "complete a command"),
        ("a space first", "keeps a message out of the history"),
    )

    def __init__(self, out: TextIO, history: History, choices: dict[str, Iterable[str]]) -> None:
        """Edit on the terminal ``out``.

        Args:
            out: Where it is drawn.
            history: Of what was typed.
            choices: Commands with what they take; ``<path>`` stands for a file.
        """
        self._out = out
        colours = ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            multiline=True,
            prompt_continuation="  ",
            history=history,
            completer=_Commands(choices),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_bindings(),
            enable_suspend=True,
            enable_open_in_editor=True,
            reserve_space_for_menu=0,
            style=Style.from_dict({"prompt": "bold"}),
            color_depth=colours,
            output=create_output(stdout=out),
        )
        # A terminal that does not tell where its cursor is can be written to all the same.
        self._session.app.renderer.cpr_not_supported_callback = None

    def read(self) -> str:
        """Return a message; the rest is as in ``Editor``."""
        return self._session.prompt()

    def waiting(self) -> AbstractContextManager[None]:
        """Return what keeps keys unseen while an answer comes."""
        return keys_wait(self._out)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter", filter=~is_searching)
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j", filter=~is_searching)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=~is_searching)
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.app.exit(result="")
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings


class _Commands(Completer):
    """Completes a command at the start of a message, and what it takes."""

    def __init__(self, choices: dict[str, Iterable[str]]) -> None:
        self._choices = choices
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: Any) -> Iterator[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            return
        if not space:
            found = [name for name in self._choices if name.startswith(command)]
            yield from (Completion(name, -len(command)) for name in found)
        elif list(self._choices.get(command, ())) == ["<path>"]:
            inner = Document(rest, len(rest))
            yield from self._paths.get_completions(inner, CompleteEvent())
        else:
            found = [one for one in self._choices.get(command, ()) if one.startswith(rest)]
            yield from (Completion(one, -len(rest)) for one in found)


class PlainLines:
    """Lines of a terminal that cannot move its cursor; the system edits them as it can."""

    # The system hands over whole lines only: what a paste has behind its last Enter is not seen.
    keys = (
        ("Enter", "sends the line"),
        ("pasted lines", "are sent at once, as one message; a last one without Enter is the next"),
    )

    def __init__(self, out: TextIO, pasted: Callable[[], bool] | None = None) -> None:
        """Prompt on ``out``; ``pasted`` tells whether more lines are there already."""
        self._out, self._pasted = out, pasted or _more_is_pasted

    def read(self) -> str:
        """Return a message; the rest is as in ``Editor``."""
        self._out.write(_PROMPT)
        self._out.flush()
        lines = [_line()]
        while self._pasted():
            lines.append(_line())
        return "\n".join(lines)

    def waiting(self) -> AbstractContextManager[None]:
        """Return nothing that changes the terminal."""
        return nullcontext()


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _more_is_pasted() -> bool:
    """Return whether the terminal holds another line that nobody can have typed yet."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_S)[0])
    except OSError:
        return False  # a console of Windows cannot be asked; there each line is a message
