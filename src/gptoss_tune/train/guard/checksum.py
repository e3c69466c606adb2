"""Checksums of tensors, computed where they lie: did one change.

Every 32-bit word is multiplied by an odd number drawn for its place and the products are added
modulo 2^64, so one changed word always changes the sum. A cryptographic hash was the alternative;
it runs on the host, and 13 GB would have to be copied there first.
"""

from __future__ import annotations

import torch
from gptoss_kernels import Mxfp4Weight
from torch import Tensor

from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.parallel.sharding import share_of

_PIECE_WORDS = 1 << 22
_SEED = 20_250_805


def checksum(tensor: Tensor) -> Tensor:
    """Return the checksum of a tensor's bytes, a scalar int64 on its device; packed experts too.

    A sharded tensor gives the checksum of this rank's share.
    """
    parts = [part.detach().reshape(-1) for part in _stored(tensor)]
    total = torch.zeros((), dtype=torch.int64, device=parts[0].device)
    for part in parts:
        words = _words(part)
        multipliers = _multipliers(min(_PIECE_WORDS, words.numel()), words.device)
        for number, piece in enumerate(words.split(_PIECE_WORDS)):
            weighted = (piece.long() * multipliers[: piece.numel()]).sum()
            # By piece too, so that two exchanged pieces are seen.
            total = total * 3 + weighted * (2 * number + 1)
    return total


def _stored(tensor: Tensor) -> list[Tensor]:
    tensor = share_of(tensor.detach())
    if isinstance(tensor, ExpertWeight):
        stored = tensor.stored
        return [stored.blocks, stored.scales] if isinstance(stored, Mxfp4Weight) else [stored]
    return [tensor]


def _words(flat: Tensor) -> Tensor:
    """Return the bytes of a flat tensor as 32-bit words, or as bytes where they do not come out."""
    start = flat.storage_offset() * flat.element_size()
    aligned = flat.nbytes % 4 == 0 and start % 4 == 0
    return flat.view(torch.int32 if aligned else torch.uint8)


def _multipliers(count: int, device: torch.device) -> Tensor:
    """Return ``count`` odd int64 numbers, the same in every call."""
    generator = torch.Generator(device=device).manual_seed(_SEED)
    drawn = torch.randint(0, 2**62, (count,), generator=generator, device=device)
    return drawn * 2 + 1
