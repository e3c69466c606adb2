"""The held-out sources of a recipe, and the names that their figures carry.

``eval_loss_maths`` is the loss on ``data/maths.jsonl``. A name is made of the file's own, without
folder and suffix, in small letters, digits and ``_``; so it stays what it is when the folder is
moved or another source is added. Where two files would have one name, or a file the name of a
channel, whose losses have a place there already, the folder's name goes before it; what is still
not its own gets a number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSection, DataSource

WEIGHED = ("analysis", "commentary", "final", "text")
"""The channels that have a loss weight, as ``data.channel_weights`` names them."""
CHANNELS = ("other", *WEIGHED)
"""Names that the losses of channels have."""


def held_out_sources(data: DataSection) -> list[DataSource]:
    """Return the sources whose rows are held out, in the order of the rows' source numbers."""
    if data.eval_fraction is not None:
        return list(data.train)
    return list(data.eval or ())


def named_sources(data: DataSection) -> list[str]:
    """Return the names of the held-out sources; none where a single one is all of it."""
    sources = held_out_sources(data)
    return source_names(sources) if len(sources) > 1 else []


def source_names(sources: Sequence[DataSource]) -> list[str]:
    """Return the name of each source in the figures, each its own."""
    parts = [_parts(source.path) for source in sources]
    names = [_joined(part[-1:]) for part in parts]
    shared = Counter(names)
    names = [
        _joined(part[-2:]) if shared[name] > 1 or name in CHANNELS else name
        for name, part in zip(names, parts, strict=True)
    ]
    found: list[str] = []
    for name in names:
        own, number = name, 1
        while own in found or own in CHANNELS:
            number += 1
            own = f"{name}_{number}"
        found.append(own)
    return found


def _parts(path: str) -> list[str]:
    """Return the words of a path's folders and of its file, without the file's suffixes."""
    *folders, last = PurePath(path).parts or (path,)
    stem = last.split(".")[0] or last
    return [word for word in map(_word, (*folders, stem)) if word] or ["source"]


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _joined(words: Sequence[str]) -> str:
    return "_".join(words)
