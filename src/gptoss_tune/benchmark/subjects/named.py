"""What ``--subjects`` says: labels, and what each stands for; looked at before torch is imported.

``base`` is the base of the run beside it, an address a server, everything else a run, an adapter, a
merged folder or a name on the Hub. ``label=...`` names any of them in the table, and ``#model``
behind an address the name that the server has for its model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from gptoss_tune.display import one_line
from gptoss_tune.errors import RecipeError
from gptoss_tune.export.openai_server import is_address
from gptoss_tune.preflight.finished import look_at_either, look_at_model

BASE: Final = "base"
_LABEL: Final = re.compile(r"([A-Za-z0-9][\w. -]{0,39})=(.+)", re.ASCII)
_SCHEME: Final = re.compile(r"[a-z]+://")


@dataclass(frozen=True)
class NamedSubject:
    """One subject as it was named.

    Attributes:
        label: What the table calls it.
        kind: ``base``, ``model`` (a folder or a name on the Hub) or ``server``.
        target: The folder, name or address; of the base what ``--base`` says, or empty.
        model: Name that a server has for its model; ``None``: it is asked which it serves.
    """

    label: str
    kind: Literal["base", "model", "server"]
    target: str
    model: str | None = None


def read_subjects(texts: Sequence[str], base: str | None = None) -> list[NamedSubject]:
    """Return the subjects that options name, in their order.

    Args:
        texts: ``base,runs/mine`` or one a text.
        base: ``--base``.

    Raises:
        RecipeError: Lists all that cannot be understood, two of one label included.
    """
    found: list[NamedSubject] = []
    mistakes: list[str] = []
    for text in texts:
        for part in _parts(text):
            try:
                found.append(_read(part, base))
            except RecipeError as error:
                mistakes.append(str(error))
    if not found and not mistakes:
        mistakes.append("--subjects names none; expected base, a run, a folder or an address")
    labels = [subject.label for subject in found]
    mistakes += [
        f"--subjects: two are called '{label}'; name them apart, such as other={found[n].target}"
        for n, label in enumerate(labels)
        if label in labels[:n]
    ]
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return found


def look_at_subjects(
    subjects: Sequence[NamedSubject], base: str | None = None, revision: str | None = None
) -> None:
    """Refuse folders that are not there, or hold no model.

    Raises:
        CheckpointError: As ``look_at_either``.
    """
    if base is not None:
        look_at_model(base, revision)
    for subject in subjects:
        if subject.kind == "model":
            look_at_either(subject.target, base, revision)


def _parts(text: str) -> list[str]:
    if text and Path(text).expanduser().exists():
        return [text]  # a folder may have a comma in its name
    return [part.strip() for part in text.split(",") if part.strip()]


def _read(text: str, base: str | None) -> NamedSubject:
    label, target = _labelled(text)
    if target == BASE:
        return NamedSubject(label or BASE, "base", base or "")
    if not _SCHEME.match(target):
        usual = Path(target).expanduser().name or target
        return NamedSubject(label or usual, "model", target)
    url, _, model = target.partition("#")
    if not is_address(url):
        raise RecipeError(
            f"--subjects: '{one_line(url)}' is no address; expected one such as "
            "http://localhost:8000/v1"
        )
    parts = urlsplit(url)
    if parts.query:
        raise RecipeError(
            f"--subjects: '{one_line(url)}' has a query; give the address alone, and a key by "
            "--api-key-env NAME"
        )
    usual = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or url
    return NamedSubject(label or usual, "server", url, model or None)


def _labelled(text: str) -> tuple[str | None, str]:
    match = _LABEL.fullmatch(text)
    if match is None or Path(text).expanduser().exists():
        return None, text
    return match[1], match[2]
