"""The tile of tokens that goes through the experts at a time: the largest with which a card does.

Tiles trade memory for decoding, and nothing else: the larger the better, and none where the whole
micro-batch fits. So ``auto`` asks the plan, with one tile, then with two, and takes the first that
fits. The plan knows the card's memory and not how much of it others hold; a number says better.
"""

# Legend: T tokens of a micro-batch.

from __future__ import annotations

from collections.abc import Iterator

from gptoss_tune.plan.memory import memory
from gptoss_tune.plan.training_setup import TrainingSetup

SMALLEST_TOKENS = 2048
"""Of a tile that ``auto`` takes: 256 rows for each of 32 experts, 64 for each of 128; with fewer,
products wait for weights."""
_STEP, _SPARE = 128, 0.02


def fitted(setup: TrainingSetup, memory_bytes: int) -> TrainingSetup:
    """Return the setup with a tile where ``train.expert_tile`` leaves it open, else as it is.

    Args:
        setup: A training.
        memory_bytes: Of one GPU.

    Returns:
        The setup with the largest tile that fits; where none does, the one that needs least.
    """
    if setup.train.expert_tile != "auto":
        return setup
    least, peak = setup, memory(setup).peak
    for tile in _tiles(setup.tokens):
        # A plan that fits to the byte is no plan, and a smaller tile costs little.
        if peak <= (memory_bytes if least is setup else (1 - _SPARE) * memory_bytes):
            break
        smaller = setup.with_settings({"train.expert_tile": tile})
        if (lower := memory(smaller).peak) < peak:
            least, peak = smaller, lower
    if least is setup:
        return setup.with_settings({"train.expert_tile": None})
    return least


def _tiles(tokens: int) -> Iterator[int]:
    """Yield sizes of tiles below ``tokens``, the largest first, whole multiples of 128."""
    count, before = 2, tokens
    while before > SMALLEST_TOKENS:
        size = max(SMALLEST_TOKENS, -(-tokens // count // _STEP) * _STEP)
        if size < before:
            yield size
            before = size
        count += 1
