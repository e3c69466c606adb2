"""Reading and writing checkpoint folders, shared by the rooms that load and the rooms that export.

Nothing here knows what an adapter or a loss is. A checkpoint is opened once, checked whole, and
then read tensor by tensor.
"""

from gptoss_tune.checkpoint.read import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
