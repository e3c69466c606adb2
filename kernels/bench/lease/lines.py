"""JSON lines of a part, each on the disk before the next figure is measured."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

RED = 3
"""Exit code of a part that ran and found something wrong."""


def dry() -> bool:
    """Return whether this is a check of the scripts: a CPU, the interpreter, tiny sizes."""
    return os.environ.get("DRY") == "1"


@functools.cache
def gpu_name() -> str | None:
    """Return the name of the GPU, "CPU" without one, None where torch cannot be asked."""
    try:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    except (ImportError, OSError, RuntimeError):
        return None  # the part says why it crashed


class Lines:
    """Appends lines to ``lines.jsonl``; all parts share the file, as few files come back.

    Each line names the GPU and the day, and whether it is of a dry run: it counts by itself.

    Attributes:
        wrong: Lines that said ``right: false`` so far.
    """

    def __init__(self, folder: Path, part: str) -> None:
        """Open the file for appending."""
        self._file = (folder / "lines.jsonl").open("a", encoding="utf-8")
        self._common = {"part": part, "gpu": gpu_name(), "dry": dry()}
        self.wrong = 0

    def say(self, **figures: Any) -> None:
        """Write one line, flush it to the disk, and print it."""
        if figures.get("right") is False:
            self.wrong += 1
        common = self._common | {"day": time.strftime("%Y-%m-%d")}
        line = json.dumps(common | figures, default=str)
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(line, flush=True)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; one that was cut off by a kill, or is no object, is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(told, dict):
            found.append(told)
    return found
