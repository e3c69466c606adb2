"""The folder of a run: one owner of its files, read by every room above it.

- ``RunFolder``: where each file of a run stands (``folder``).
- ``read_record``, ``update_record``: run.json, checked for every reader (``record``).
- ``record_of_adapter``: the run.json beside or above an adapter.
- ``load_run_recipe``: the resolved recipe beside it.
- ``note_verification``: adds what ``merge`` and ``verify`` found to a run.
- ``RunCard``: the types of a finished run's record (``card``).
- ``read_lines``: metrics and layers read back; what a damaged line costs is the reader's choice
  (``jsonl``, which also writes them).
- ``Start``: where a run starts or goes on; ``start.claim`` finds it and locks the folder.
- ``FolderLock``: one process at a time writes into a run (``lock``).
- ``Manifest``: what a checkpoint says of itself; ``checkpoints`` stages, publishes, checks and
  prunes them.

``environment`` says what machine, versions and commit a run had, ``method`` in words how it was
trained. Names are imported when they are asked for: to read a record costs neither torch nor the
schema of a recipe.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_tune.run.card import RunCard
    from gptoss_tune.run.checkpoints import Manifest
    from gptoss_tune.run.folder import RunFolder
    from gptoss_tune.run.jsonl import read_lines
    from gptoss_tune.run.lock import FolderLock
    from gptoss_tune.run.record import (
        load_run_recipe,
        note_verification,
        read_record,
        record_of_adapter,
        update_record,
    )
    from gptoss_tune.run.start import Start

__all__ = [
    "FolderLock",
    "Manifest",
    "RunCard",
    "RunFolder",
    "Start",
    "load_run_recipe",
    "note_verification",
    "read_lines",
    "read_record",
    "record_of_adapter",
    "update_record",
]

_MODULES = {
    "FolderLock": "lock",
    "Manifest": "checkpoints",
    "RunCard": "card",
    "RunFolder": "folder",
    "Start": "start",
    "read_lines": "jsonl",
}


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is asked for."""
    if name in __all__:
        module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'record')}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
