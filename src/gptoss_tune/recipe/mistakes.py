"""The error of a recipe: for each mistake its place, what was got, what was expected, what to do.

A recipe's author wants all mistakes at once and each with its line, so mistakes are values that are
collected and sorted, and one error carries them all. Raising at the first was the alternative: five
typos then cost five tries. Values are shown cut short, and what looks like a credential is not
shown at all: messages end up in logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_tune.display import HIDDEN, without_credentials
from gptoss_tune.errors import RecipeError

_LONGEST = 60
# Hugging Face, OpenAI, GitHub and bare hexadecimal keys (Weights & Biases) as people paste them.
_CREDENTIAL = re.compile(
    r"(?:hf_|sk-|ghp_|github_pat_|wandb_)[\w-]{8,}"
    r"|(?<![0-9A-Za-z])(?=[0-9]*[a-f])[0-9a-f]{40,}(?![0-9A-Za-z])"
)

_SECRET_KEY = re.compile(r"token|secret|passw|credential|auth|(?:^|[._-])key$|api_?key", re.I)

KeyPath = tuple[str | int, ...]
"""Where a value stands in a recipe: ``("data", "train", 0, "path")``."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A position in a recipe's file (``override`` 0), or in the n-th ``key=value`` override.

    Line and column count from 1; 0 stands for the file or the override as a whole.
    """

    override: int
    line: int
    column: int
    origin: str
    """The file as the user named it, or the override's text."""

    def __str__(self) -> str:
        """Return ``file:line:column``, ``file`` or ``override n: 'key=value'``."""
        if self.override:
            key, equals, value = self.origin.partition("=")
            # What stands behind a key of this name is nobody's business, whatever it looks like.
            shown_value = HIDDEN if value and secret(key) else value
            return f"override {self.override}: {quoted(key + equals + shown_value)}"
        if not self.line:
            return self.origin
        return f"{self.origin}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing to put right in a recipe; they sort by where they stand."""

    place: Place
    key: str
    """Dotted name of the setting; empty for the file as a whole."""
    got: str
    expected: str
    todo: str

    def __str__(self) -> str:
        """Return ``file:line:column: key: got, expected, what to do`` on one line."""
        key = f"{self.key}: " if self.key else ""
        return f"{self.place}: {key}got {self.got}, expected {self.expected}; {self.todo}"

    def as_json(self) -> dict[str, object]:
        """Return the mistake for ``--json``; a file's has line and column, an override's number."""
        in_file = self.place.override == 0
        has_line = in_file and self.place.line > 0
        return {
            "file": self.place.origin if in_file else None,
            "line": self.place.line if has_line else None,
            "column": self.place.column if has_line else None,
            "override": None if in_file else self.place.override,
            "key": self.key,
            "got": self.got,
            "expected": self.expected,
            "todo": self.todo,
            "message": str(self),
        }


class RecipeMistakes(RecipeError):
    """Every mistake in one recipe, in the order of its lines, then of its overrides."""

    def __init__(self, name: str, mistakes: list[Mistake]) -> None:
        """Collect the mistakes of the recipe that the user called ``name``."""
        self.mistakes = tuple(sorted(set(mistakes)))
        lines = [str(mistake) for mistake in self.mistakes]
        if len(lines) > 1:
            lines = [f"{len(lines)} mistakes in {plain(name)}", *(f"  {line}" for line in lines)]
        super().__init__("\n".join(lines))


def secret(key: str) -> bool:
    """Return whether what stands behind a key of this name is nobody's business."""
    return _SECRET_KEY.search(key) is not None


def plain(text: str) -> str:
    """Return a text for a message: cut short, on one line, without what looks like a key."""
    text = without_credentials(_CREDENTIAL.sub("[a credential, not shown]", text))
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def quoted(text: str) -> str:
    """Return a text for a message, in quotes."""
    return f"'{plain(text)}'"


def shown(value: object, spelled: str | None = None) -> str:
    """Return a value for a message, as YAML spells it.

    Args:
        value: What was read.
        spelled: How the recipe's author spelled a scalar, where that is known.
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return quoted(value) if value else "an empty text"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        try:
            return plain(json.dumps(value, ensure_ascii=False)) if value else "an empty list"
        except (TypeError, ValueError):
            return "a list"
    if spelled is not None:
        return plain(spelled)
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else plain(repr(value))


def dotted(path: KeyPath, spell: Callable[[str], str] = plain) -> str:
    """Return ``data.train[0].path`` for ``("data", "train", 0, "path")``.

    Args:
        path: Keys of mappings and numbers of list entries.
        spell: Writes a key of the user's own.
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{spell(part)}" if text else spell(part)
    return text
