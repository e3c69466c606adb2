"""A document of raw text: no roles and no channels, every token trained but the first.

It ends with ``<|endoftext|>``, as the documents of a pretraining corpus do; nothing is put before
it, since a server that completes text sends the text alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from gptoss_tune.harmony.reading import AS_IT_STANDS, Notes, ReadSettings


@dataclass
class Document:
    """A row of raw text, read and checked.

    Attributes:
        source: ``file:line``, for messages.
        text: What is trained, as it stands.
        weight: Factor on the loss weights of all its tokens.
        reading: How the recipe has rows read.
        notes: What is worth telling about the row.
    """

    source: str
    text: str
    weight: float = 1.0
    reading: ReadSettings = AS_IT_STANDS
    notes: Notes = field(default_factory=Notes)

    def keys(self) -> tuple[int, int]:
        """Return the 64-bit hash of the text, twice: a document asks nothing else than it says."""
        digest = hashlib.blake2b(b"document\0" + self.text.encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        return key, key

    def texts(self) -> list[str]:
        """Return all free text of the row, for counting what was injected."""
        return [self.text]
