"""What was typed before, kept between conversations in the user's cache.

Kept is what was sent, the newest thousand, in a file that its user alone may read. Left out is what
begins with a space, as shells do it, and what holds a credential that can be told by how it begins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prompt_toolkit.history import History

from gptoss_tune.display import CREDENTIAL, visible

_MOST: Final = 1000
_NAME: Final = "chat_history.jsonl"


def history_file() -> Path:
    """Return where it is kept: ``$XDG_CACHE_HOME/gptoss-tune/chat_history.jsonl``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gptoss-tune" / _NAME


class KeptHistory(History):
    """History of the editor; a message a line, as JSON text.

    Attributes:
        trouble: Why nothing is kept on disk, if so.
    """

    def __init__(self, path: Path | None) -> None:
        """Keep in ``path``; ``None``: until the end of the process."""
        super().__init__()
        self._path = path
        self.trouble: str | None = None
        if path is not None:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(self._opened(path))
                self._shorten(path)
            except OSError as error:
                self._give_up(error)

    def append_string(self, string: str) -> None:
        """Keep a message, unless it begins with a space."""
        if not string[:1].isspace():
            super().append_string(string)

    def load_history_strings(self) -> Iterable[str]:
        """Return what was kept, the newest first."""
        return [] if self._path is None else reversed(_read(self._path))

    def store_string(self, string: str) -> None:
        """Add a message to the file; one with a credential in it stays in memory alone."""
        if self._path is None or CREDENTIAL.search(string):
            return
        try:
            with os.fdopen(self._opened(self._path), "ab") as file:
                file.write(_line(string))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.trouble = (
            f"what is typed is not kept: {visible(str(self._path))}: {error.strerror}; "
            "--no-history asks for that"
        )
        self._path = None

    @staticmethod
    def _opened(path: Path) -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)  # whoever made it
        return descriptor

    @staticmethod
    def _shorten(path: Path) -> None:
        """Keep the newest of a file that has grown to twice of what is kept."""
        kept = _read(path)
        if len(kept) <= 2 * _MOST:
            return
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(_line(one) for one in kept[-_MOST:])
        part.replace(path)


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _read(path: Path) -> list[str]:
    """Return the messages of a file; what is none is passed over."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            text = json.loads(line)
        except ValueError:
            continue
        if isinstance(text, str):
            found.append(text)
    return found
