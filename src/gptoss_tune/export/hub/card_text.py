"""``README.md`` as text: metadata, the section that a push writes, and what people wrote around it.

A card belongs to whoever wrote it. A push owns one section, between two comments, and the metadata
that says what the files are; the opening comment keeps what metadata it wrote, so that the next
push can tell its own values from those that people set. Everything else stays as it is, byte for
byte. The alternative, one generated page, loses known limits and evaluations that no record holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from gptoss_tune.errors import CheckpointError

TAG = "gptoss-tune"
"""The tag that every push writes into the metadata."""
_METADATA = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_BEGIN = re.compile(r"<!-- gptoss-tune: begin (\{.*?\}) -->\n?")
_MARK = re.compile(r"^<!-- gptoss-tune: begin ", re.MULTILINE)
_END = "<!-- gptoss-tune: end -->"
_TITLE = re.compile(r"\s*(?:# [^\n]*)?\s*")
_LARGEST_METADATA = 100_000
# What the files are is not a matter of opinion.
_FACTS = ("base_model", "base_model_relation", "library_name", "license", "license_link")


@dataclass(frozen=True)
class Card:
    """The parts of a card.

    Attributes:
        metadata: The YAML block that the Hub reads.
        head: That block as it stands, with its marks; empty without one.
        before: What stands before our section.
        section: Our section without its marks; None in a card that no push wrote.
        after: What stands after it.
        earlier: The metadata that the last push wrote.
    """

    metadata: dict[str, Any]
    head: str
    before: str
    section: str | None
    after: str
    earlier: dict[str, Any]

    @property
    def by_hand(self) -> bool:
        """Whether people wrote more in it than a title."""
        return _TITLE.fullmatch(self.before + self.after) is None


def new_card(title: str, metadata: Mapping[str, Any], section: str) -> str:
    """Return a card with nothing in it but ours."""
    return f"{_head(metadata)}\n# {title}\n\n{_marked(section, metadata)}\n"


def parse_card(text: str, where: str) -> Card:
    """Return the parts of a card.

    Args:
        text: The whole ``README.md``.
        where: The file, for messages.

    Raises:
        CheckpointError: Its metadata is no YAML mapping, or the marks of our section are damaged.
    """
    found = _METADATA.match(text)
    head = found.group() if found else ""
    metadata = _metadata(found.group(1), where) if found else {}
    body = text[len(head) :]
    begins = list(_BEGIN.finditer(body))
    if not begins and _END not in body:
        return Card(metadata, head, body, None, "", {})
    if len(begins) != 1 or body.count(_END) != 1 or body.index(_END) < begins[0].end():
        raise CheckpointError(
            f"{where}: the comments around the section of gptoss-tune are damaged; restore "
            "'<!-- gptoss-tune: begin {} -->' before it and "
            f"'{_END}' after it, or replace the whole card with --replace-card"
        )
    (begin,) = begins
    try:
        earlier = json.loads(begin.group(1))
    except (ValueError, RecursionError):
        earlier = {}
    end = body.index(_END)
    section, after = body[begin.end() : end], body[end + len(_END) :]
    return Card(metadata, head, body[: begin.start()], section, after, earlier)


def is_of_a_push(text: str) -> bool:
    """Return whether a card shows that a push wrote it: our tag in its metadata, and our section.

    One of the two alone may be copied, or written by hand.
    """
    found = _METADATA.match(text)
    if found is None or _MARK.search(text, found.end()) is None:
        return False
    try:
        tags = _metadata(found.group(1), "").get("tags")
    except CheckpointError:
        return True  # who reads the card says what is wrong with it
    return isinstance(tags, list) and TAG in tags


def updated_card(theirs: str, ours: str, where: str) -> str:
    """Return the card ``theirs`` with the section and the metadata of ``ours``.

    Args:
        theirs: A card as it stands, with or without a section of an earlier push.
        ours: A card from ``new_card``, or one updated from it.
        where: The file that ``theirs`` is, for messages.

    Raises:
        CheckpointError: As ``parse_card``.
    """
    kept, new = parse_card(theirs, where), parse_card(ours, "README.md")
    metadata = _merged(kept, new.earlier)
    head = kept.head if metadata == kept.metadata else _head(metadata)
    before = kept.before if kept.head else "\n" + kept.before
    if kept.section is None:
        before = before.rstrip() + "\n\n" if before.strip() else before
    after = kept.after or "\n"
    return head + before + _marked(new.section or "", new.earlier) + after


def _metadata(text: str, where: str) -> dict[str, Any]:
    try:
        if len(text) > _LARGEST_METADATA:
            raise ValueError(f"{len(text)} characters")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{where}: the metadata at its top cannot be read as YAML ({reason}); repair it, or "
            "replace the whole card with --replace-card"
        ) from None
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(
            f"{where}: the metadata at its top is {type(value).__name__}, expected a mapping; "
            "repair it, or replace the whole card with --replace-card"
        )
    return value or {}


def _merged(kept: Card, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return what people set, what is ours, and lists of both, in the order of the card."""
    found: dict[str, Any] = {}
    for key, value in kept.metadata.items():
        before = kept.earlier.get(key)
        if isinstance(value, list) and isinstance(before, list):
            found[key] = [entry for entry in value if entry not in before]
        elif value != before:
            found[key] = value
    order = [key for key in kept.metadata if key in found or key in ours]
    for key, value in ours.items():
        own = found.get(key)
        if isinstance(own, list) and isinstance(value, list):
            found[key] = [*value, *(entry for entry in own if entry not in value)]
        elif key not in found or (key in _FACTS and value != "unknown") or own in ([], None):
            found[key] = value
    order += [key for key in ours if key not in order]
    return {key: found[key] for key in order if found[key] != []}


def _head(metadata: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"


def _marked(section: str, metadata: Mapping[str, Any]) -> str:
    kept = json.dumps(dict(metadata), default=str).replace("<", "\\u003c").replace(">", "\\u003e")
    # A recipe's own texts stand in the section; none of them can end it.
    text = section.strip().replace("<!-- gptoss-tune:", "<!-- gptoss-tune :")
    return f"<!-- gptoss-tune: begin {kept} -->\n{text}\n{_END}"
