"""The ledger of a rollout phase: chunks of episodes that are over, in ``RUN/.rollouts``.

A phase may take an hour, and a run may be stopped in the middle of it. Each chunk is written when
it is over, whole or not at all, so that a continuation reads what was played and plays the rest.
What a chunk depends on is its key: the weights, the settings, and which prompts it holds; a file of
another key is not read. Playing the phase again was the alternative: it gives the same episodes,
unless a tool or a limit of time comes into it, and takes the hour again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gptoss_tune.files.atomic import create, disk_errors
from gptoss_tune.train.rollouts.played import Played, from_arrays, to_arrays

_KEY, _FACTS = "key", "episodes"


class Ledger:
    """Chunks of the phase that is not trained yet; rank 0 alone has one."""

    def __init__(self, folder: Path) -> None:
        """Keep chunks in ``folder``, which is made with the first."""
        self._folder, self._phase = folder, ""

    def open(self, phase: str) -> None:
        """Begin or go on with a phase, by its digest; chunks of another one go."""
        self._phase = phase[:16]
        for path in self._folder.glob("*"):
            if not path.name.startswith(self._phase):
                path.unlink(missing_ok=True)

    def read(self, number: int, key: str) -> list[Played] | None:
        """Return a finished chunk; ``None``: there is none of this key, or it is damaged."""
        path = self._path(number)
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                if about.get(_KEY) != key:
                    return None
                arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return from_arrays(arrays, about[_FACTS])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def write(self, number: int, key: str, episodes: Sequence[Played]) -> None:
        """Write a chunk, whole or not at all.

        Raises:
            MachineError: The disk is full or cannot be written.
        """
        arrays, facts = to_arrays(episodes)
        path = self._path(number)
        part = path.with_name(path.name + ".part")
        with disk_errors(path):
            self._folder.mkdir(exist_ok=True)
            descriptor = create(part)
            try:
                with open(descriptor, "wb") as file:
                    file.write(save(arrays, metadata={_KEY: key, _FACTS: facts}))
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    part.unlink()

    def clear(self) -> None:
        """Forget all chunks: the run is over."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._phase}-{number}.safetensors"
