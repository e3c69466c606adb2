"""Checkpoints and adapters on disk, shared by the rooms that load and the rooms that export.

``checkpoint`` opens a folder once, checks it whole and reads it tensor by tensor; ``write`` plans
shards and writes them; ``safetensors_file`` is the format, ``config`` and ``names`` what a gpt-oss
holds. ``adapter`` opens a LoRA adapter against its base, ``adapter_config`` and ``adapter_targets``
say which ones are understood. Nothing here knows a module or a loss. What needs no tensor
(``adapter_config``, ``config``, ``names``) imports no torch, so this face brings it when asked.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_tune.weights.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
