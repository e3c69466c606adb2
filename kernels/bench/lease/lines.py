"""JSON lines of a part, each on the disk before the next figure is measured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RED = 3
"""Exit code of a part that ran and found something wrong."""


def dry() -> bool:
    """Return whether this is a check of the scripts: a CPU, the interpreter, tiny sizes."""
    return os.environ.get("DRY") == "1"


class Lines:
    """Appends lines to ``lines.jsonl``; all parts share the file, as few files come back.

    Attributes:
        wrong: Lines that said ``right: false`` so far.
    """

    def __init__(self, folder: Path, part: str) -> None:
        """Open the file for appending."""
        self._file = (folder / "lines.jsonl").open("a", encoding="utf-8")
        self._part, self.wrong = part, 0

    def say(self, **figures: Any) -> None:
        """Write one line, flush it to the disk, and print it."""
        if figures.get("right") is False:
            self.wrong += 1
        line = json.dumps({"part": self._part, **figures}, default=str)
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(line, flush=True)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; one that was cut off by a kill is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
