"""How to merge, and the refusal of a merge that MXFP4 would undo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.names import ExpertFormat
from gptoss_tune.weights.write import MAX_SHARD_SIZE

MergeFormat = Literal["bf16", "mxfp4", "gguf", "gguf-bf16"]
"""What a user asks for: the experts' layout, in safetensors or in a GGUF."""
GGUF_MAX_SHARD_SIZE = 45_000_000_000
"""Bytes of tensors in one GGUF at most: llama.cpp's users expect one file, the Hub takes 50 GB."""


class TooLittleSurvives(CheckpointError):
    """MXFP4 would drop more of the experts' change than was accepted.

    Attributes:
        share: The share of the change that would survive.
    """

    def __init__(self, message: str, share: float) -> None:
        """Refuse with ``message``; ``share`` is what would survive."""
        super().__init__(message)
        self.share = share


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Attributes:
        expert_format: ``"bf16"``: dense; ``"mxfp4"``: as released.
        max_shard_size: Bytes of one file at most.
        device: Where the arithmetic runs.
        min_survival: Stop when less than this share of the change of the experts survives MXFP4.
        accept_loss: Do not stop.
    """

    expert_format: ExpertFormat = "bf16"
    max_shard_size: int = MAX_SHARD_SIZE
    device: str = "cpu"
    min_survival: float = 0.9
    accept_loss: bool = False


def merge_options(
    format: MergeFormat,
    *,
    max_shard_size: int | None,
    device: str,
    min_survival: float,
    accept_loss: bool,
) -> MergeOptions:
    """Return the options of a merge to ``format``; no size: the usual one of its files."""
    usual = GGUF_MAX_SHARD_SIZE if is_gguf_format(format) else MAX_SHARD_SIZE
    return MergeOptions(
        expert_format="mxfp4" if format in ("gguf", "mxfp4") else "bf16",
        max_shard_size=usual if max_shard_size is None else max_shard_size,
        device=device,
        min_survival=min_survival,
        accept_loss=accept_loss,
    )


def is_gguf_format(format: MergeFormat) -> bool:
    """Return whether a format is the file of llama.cpp."""
    return format in ("gguf", "gguf-bf16")
