"""The licence of a base: read from its card and its LICENSE, never assumed.

Derivatives of gpt-oss come under other terms than the release, and a card that names the wrong ones
misleads everyone who builds on it. So a licence is named only where a text is that licence's own,
or where the base's card names it and no text says otherwise; everything else is ``other`` with the
text beside it, or ``unknown``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.hub.card_text import parse_card
from gptoss_tune.files.paths import inside
from gptoss_tune.shipped import shipped

_LARGEST_TEXT = 1 << 20
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,39}")
_CC = re.compile(
    r"attribution(?P<nc>-noncommercial)?(?P<nd>-noderiv(?:ative)?s)?(?P<sa>-sharealike)?"
    r" (?P<version>\d\.\d) (?:international|unported)"
)
_MIT = "permission is hereby granted, free of charge, to any person obtaining a copy"
_TITLES = {
    "gnu affero general public license version 3": "agpl-3.0",
    "gnu lesser general public license version 3": "lgpl-3.0",
    "gnu general public license version 3": "gpl-3.0",
    "gnu general public license version 2": "gpl-2.0",
}


@dataclass(frozen=True)
class Licence:
    """What is known of a base's terms.

    Attributes:
        identifier: As the Hub spells licences; ``"other"`` for a text of its own, ``"unknown"``.
        sentence: The same for a reader.
        files: The texts, to be uploaded beside what was made from the base.
    """

    identifier: str
    sentence: str
    files: tuple[Path, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the base says anything about its licence."""
        return self.identifier != "unknown"


def licence_of(base: Path) -> Licence:
    """Return the licence of the checkpoint in the folder ``base``."""
    names = sorted(file.name for file in base.glob("LICEN[SC]E*") if file.is_file())
    files = tuple(inside(base, name, f"{base}: has") for name in names)
    told = _of_card(base)
    if not files:
        if told is None:
            return Licence("unknown", "The base names no licence; ask whoever released it.")
        return Licence(told, f"`{told}`, as the base's card says; it came without a text of it.")
    shown = ", ".join(f"`{one_line(name)}`" for name in names)
    read = {licence_of_text(file.read_bytes()[:_LARGEST_TEXT]) for file in files}
    found = read.pop() if len(read) == 1 else None
    if found is not None and told in (None, found):
        return Licence(found, f"`{found}`, as the base; see {shown}.", files)
    card = f" The base's card says `{told}`." if told else ""
    text = f"The text is that of `{found}`" if found else "Its text is no standard licence's"
    if told and found is None:
        return Licence("other", f"The base's own terms; see {shown}.{card} {text}.", files)
    return Licence("other", f"See {shown}.{card} {text}: read both.", files)


def licence_of_text(raw: bytes) -> str | None:
    """Return the Hub's identifier of a licence's text; None where it is not plainly one."""
    text = _words(raw.decode("utf-8", errors="replace"))
    start = text[:300]
    if start.startswith("apache license version 2.0") and _apache_terms() in text:
        return "apache-2.0"
    if _MIT in text[:1000] and len(text) < 2000:
        return "mit"
    if "creative commons" in start and (match := _CC.search(start)):
        parts = [part for part in ("nc", "nd", "sa") if match[part]]
        return "-".join(["cc-by", *parts, match["version"]])
    return next((name for title, name in _TITLES.items() if start.startswith(title)), None)


def _words(text: str) -> str:
    """Return a text in small letters with single spaces."""
    return " ".join(text.lower().replace("https:", "http:").split())


def _apache_terms() -> str:
    """Return the terms of Apache-2.0 without what follows them: a text with more is another."""
    text = _words((shipped("data") / "tiny_checkpoint" / "LICENSE").read_text(encoding="utf-8"))
    return text.partition("end of terms and conditions")[0].strip()


def _of_card(base: Path) -> str | None:
    """Return the licence that the base's own card names; None without one."""
    if not (base / "README.md").is_file():
        return None
    file = inside(base, "README.md", f"{base}: has")
    try:
        text = file.read_bytes()[:_LARGEST_TEXT].decode("utf-8", errors="replace")
        named = parse_card(text, str(file)).metadata.get("license")
    except CheckpointError:
        return None  # a card whose metadata cannot be read says nothing
    return named if isinstance(named, str) and _IDENTIFIER.fullmatch(named) else None
