"""Context parallel in a plan: what a GPU holds of the whole row for a moment, and what travels.

Everything but attention is computed of a GPU's own tokens. A full layer fetches K and V of the
whole row, and adds up their gradients for it; a window layer fetches the ends of all chunks. Both
are forgotten with the layer. Rows are taken as one document each: where documents end within a
row, less travels.
"""

# Legend: S tokens of a row, N GPUs that share it, D of both K and V: 2 * key_size values a token.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_tune.plan.training_setup import TrainingSetup

_FP32_BYTES = 4


@dataclass(frozen=True)
class SharedRows:
    """What sharing each row costs one GPU.

    Attributes:
        gpus: N.
        row_tokens: Tokens of it that a GPU holds.
        fetched: Bytes of K and V of the whole row, in a full layer.
        attention: Bytes at the peak of a full layer's backward pass: what is fetched, a chunk's
            part of it as one tensor and the gradients of that, and fp32 sums of all gradients.
        received: Bytes that a GPU receives in an optimizer step, for attention alone.
    """

    gpus: int
    row_tokens: int
    fetched: int
    attention: int
    received: int


def shared_rows(setup: TrainingSetup) -> SharedRows | None:
    """Return what sharing rows costs; ``None`` where each GPU has rows of its own."""
    if setup.context_parallel == 1:
        return None
    values = 2 * setup.architecture.key_size * setup.row_tokens
    fetched = values * setup.value_bytes
    return SharedRows(
        gpus=setup.context_parallel,
        row_tokens=setup.local_length,
        fetched=fetched,
        attention=3 * fetched + values * _FP32_BYTES,
        received=_received(setup),
    )


def attention_moment(setup: TrainingSetup) -> int:
    """Return the bytes of the whole row that a layer's attention holds, at its most."""
    shared = shared_rows(setup)
    return 0 if shared is None else shared.attention


def _received(setup: TrainingSetup) -> int:
    """Return the bytes that come to a GPU in an optimizer step."""
    a, ranks = setup.architecture, setup.context_parallel
    again = setup.train.activation_checkpointing in ("full", "offload")
    rows = setup.train.per_device_train_batch_size
    total = 0
    for layer, kind in enumerate(a.layer_types):
        tokens = setup.row_tokens
        if kind == "sliding_attention":
            tokens = min(tokens, rows * 2 * ranks * (a.window - 1))
        values = 2 * a.key_size * tokens * (ranks - 1) // ranks
        trained = layer >= setup.lowest_layer
        kept = again and kind == "full_attention" and setup.keeps_attention
        fetches = 1 + trained * (1 + (again and not kept))
        total += values * (fetches * setup.value_bytes + trained * _FP32_BYTES)
    return total * setup.train.gradient_accumulation_steps
