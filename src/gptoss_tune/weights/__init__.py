"""Checkpoints and adapters on disk, shared by the rooms that load and the rooms that export.

``checkpoint`` opens a folder once, checks it whole and reads it tensor by tensor; ``write`` plans
shards and writes them; ``safetensors_file`` is the format, ``config`` and ``names`` what a gpt-oss
holds. ``adapter`` opens a LoRA adapter against its base, ``adapter_config`` and ``adapter_targets``
say which ones are understood. Nothing here knows a module or a loss.
"""

from gptoss_tune.weights.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
