"""The YAML reader: values, the line and column of each, and how each was spelled.

The reader walks PyYAML's event stream and takes the part of YAML that means the same to every
reader: mappings with plain keys, lists, scalars by the rules of YAML 1.2. So ``1e-5`` is a number,
``no`` is the text "no", ``12:30`` is not 750, and ``017`` is left a text instead of becoming 15.
Duplicate keys, anchors, aliases, tags and a second document are refused at their line and column.

``yaml.safe_load`` with its constructor was the alternative: it takes the last of two equal keys,
reads ``no`` as False, expands alias bombs, recurses as deep as the text says, and forgets lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from gptoss_tune.recipe.mistakes import KeyPath, Mistake, Place, dotted, quoted, shown
from gptoss_tune.recipe.schema.value_types import LONGEST_NUMBER, NUMBER

LARGEST_FILE = 65_536  # bytes; a long recipe has 3,000
_DEEPEST = 12

_OF_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}


class _Stop(Exception):
    pass


def scalar(text: str) -> Any:
    """Return what an unquoted scalar means by YAML 1.2: null, a bool, a number, else the text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if len(text) <= LONGEST_NUMBER and NUMBER.fullmatch(text):
        return float(text)
    return text


def is_unicode(text: str) -> bool:
    """Return whether a text can be written at all: a lone half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(slots=True)
class Document:
    """Nested plain values, and for each path in them where its key and its value stand.

    ``train: {seed: 7}`` in line 3 of ``a.yaml`` gives ``values == {"train": {"seed": 7}}``,
    ``key_places[("train", "seed")]`` a.yaml:3:9, ``value_places[...]`` a.yaml:3:15 and
    ``spelled[...] == "7"``. A value that was refused is in ``refused`` and stays out of ``values``.
    """

    values: dict[str, Any] = field(default_factory=dict)
    key_places: dict[KeyPath, Place] = field(default_factory=dict)
    value_places: dict[KeyPath, Place] = field(default_factory=dict)
    spelled: dict[KeyPath, str] = field(default_factory=dict)
    refused: set[KeyPath] = field(default_factory=set)
    mistakes: list[Mistake] = field(default_factory=list)
    readable: bool = True
    """False when the text broke off: what is missing from ``values`` may be written after that."""

    def forget(self, path: KeyPath) -> None:
        """Drop where and how ``path`` and everything below it was written."""
        for known in (self.key_places, self.value_places, self.spelled):
            for stale in [p for p in known if p[: len(path)] == path]:
                del known[stale]
        self.refused = {p for p in self.refused if p[: len(path)] != path}


def read_document(text: str, place: Callable[[int, int], Place]) -> Document:
    """Read YAML text; every mistake goes into the document's list, none is raised.

    Args:
        text: The whole text, decoded.
        place: Gives the place of a 1-based line and column of the text.
    """
    document = Document()
    try:
        events = _content(yaml.parse(text, Loader=yaml.SafeLoader), document, place)
        first = next(events, None)
        if first is not None:
            reader = _Reader(document, events, place)
            value = reader.node(first, (), 0)
            if isinstance(value, dict):
                document.values = value
            elif value is not None:
                got = "a list" if isinstance(value, list) else shown(value)
                document.mistakes.append(
                    Mistake(place(1, 1), "", got, "sections", "write for example 'model:'")
                )
                document.readable = False
            for _ in events:  # what follows the document, up to the end of the text
                pass
    except _Stop:
        document.readable = False
    except yaml.reader.ReaderError as error:
        document.readable = False
        document.mistakes.append(_unreadable_character(error, text, place))
    except yaml.MarkedYAMLError as error:
        document.readable = False
        document.mistakes.append(_broken_syntax(error, place))
    return document


def read_value(text: str, place: Place) -> tuple[Document, Any]:
    """Read the right-hand side of an override.

    A text that starts with a bracket, a brace or a quote is YAML; anything else is one word and
    taken whole, so that ``#``, ``: `` and ``*`` lose their meaning and nothing is cut off.

    Returns:
        The document that holds places and mistakes, and the value.
    """
    document = Document()
    document.value_places[()] = place
    if text[:1] not in {"[", "{", "'", '"'}:
        document.spelled[()] = text
        return document, scalar(text)
    try:
        events = _content(yaml.parse(text, Loader=yaml.SafeLoader), document, lambda *_: place)
        reader = _Reader(document, events, lambda *_: place)
        value = reader.node(next(events), (), 0)
        list(events)
        if text[reader.end :].strip():
            rest = quoted(text[reader.end :].strip())
            document.mistakes.append(
                Mistake(place, "", f"{rest} after the value", "one value", "put it all in quotes")
            )
        return document, value
    except _Stop:
        pass
    except yaml.reader.ReaderError as error:
        document.mistakes.append(_unreadable_character(error, text, lambda *_: place))
    except yaml.MarkedYAMLError as error:
        document.mistakes.append(_broken_syntax(error, lambda *_: place))
    return document, None


def _content(
    events: Iterator[yaml.Event], document: Document, place: Callable[[int, int], Place]
) -> Iterator[yaml.Event]:
    """Yield the events of the first document; a second one is a mistake and ends the reading."""
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                where = place(event.start_mark.line + 1, event.start_mark.column + 1)
                document.mistakes.append(
                    Mistake(
                        where, "", "a second document", "one recipe", "remove what follows '---'"
                    )
                )
                raise _Stop
        elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


class _Reader:
    """Builds values from events; recursion is bounded by ``_DEEPEST``."""

    def __init__(
        self,
        document: Document,
        events: Iterator[yaml.Event],
        place: Callable[[int, int], Place],
    ) -> None:
        self._document = document
        self._events = events
        self._place = place
        self.end = 0
        """Index behind the last character that was read into a value."""

    def _where(self, event: yaml.Event) -> Place:
        return self._place(event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse(self, event: yaml.Event, path: KeyPath, got: str, expected: str, todo: str) -> None:
        self._document.refused.add(path)
        self._document.mistakes.append(
            Mistake(self._where(event), dotted(path), got, expected, todo)
        )

    def node(self, event: yaml.Event, path: KeyPath, depth: int) -> Any:
        """Return the value that starts with ``event``; None where it is refused."""
        self._document.value_places.setdefault(path, self._where(event))
        if depth > _DEEPEST:
            self._refuse(
                event, path, f"more than {_DEEPEST} levels", "sections and lists", "flatten it"
            )
            raise _Stop
        self.end = event.end_mark.index
        if isinstance(event, yaml.AliasEvent):
            self._refuse(
                event, path, f"the alias {quoted('*' + event.anchor)}", "a value", "write it out"
            )
            return None
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None:
            got = f"the anchor {quoted('&' + anchor)}"
            self._document.mistakes.append(
                Mistake(self._where(event), dotted(path), got, "a plain value", "remove the anchor")
            )
        if tag is not None:
            self._refuse(event, path, f"the tag {quoted(tag)}", "a plain value", "remove the tag")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path, depth)
        assert isinstance(event, yaml.ScalarEvent)
        if not is_unicode(event.value):
            self._refuse(event, path, "half a surrogate pair", "text", "write the character itself")
            return None
        self._document.spelled[path] = event.value
        return scalar(event.value) if event.style is None else event.value

    def _skip(self, path: KeyPath, depth: int) -> None:
        """Read a value that will not be used, for the mistakes in it."""
        kept, self._document = self._document, Document()
        try:
            self.node(next(self._events), path, depth + 1)
        finally:
            kept.mistakes += self._document.mistakes
            self._document = kept

    def _sequence(self, path: KeyPath, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self.node(event, (*path, len(values)), depth + 1))
        self.end = event.end_mark.index
        return values

    def _mapping(self, path: KeyPath, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._refuse(
                    event, path, "a key that is no plain word", "key: value", "put it in quotes"
                )
                raise _Stop
            key_path = (*path, event.value)
            if not is_unicode(event.value):
                self._refuse(
                    event, path, "half a surrogate pair in a key", "text", "remove the key"
                )
                self._skip(path, depth)
                continue
            if event.anchor is not None or event.tag is not None:
                self._refuse(
                    event, key_path, "a key with an anchor or a tag", "a plain key", "remove it"
                )
            if key_path in self._document.key_places:
                first = self._document.key_places[key_path]
                where = f" in line {first.line}" if not first.override else ""
                self._refuse(
                    event,
                    key_path,
                    "the key a second time",
                    f"each key once (the first is{where or ' before it'})",
                    "remove one",
                )
                self._skip(key_path, depth)
                continue
            self._document.key_places[key_path] = self._where(event)
            value = self.node(next(self._events), key_path, depth + 1)
            if key_path not in self._document.refused:
                values[event.value] = value
        self.end = event.end_mark.index
        return values


def _unreadable_character(
    error: yaml.reader.ReaderError, text: str, place: Callable[[int, int], Place]
) -> Mistake:
    before = text[: error.position]
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return Mistake(
        place(line, column),
        "",
        f"the character U+{ord(text[error.position]):04X}",
        "printable text",
        "remove it",
    )


def _broken_syntax(error: yaml.MarkedYAMLError, place: Callable[[int, int], Place]) -> Mistake:
    mark = error.problem_mark or error.context_mark
    where = place(mark.line + 1, mark.column + 1) if mark else place(1, 1)
    problem = " ".join((error.problem or "an unfinished text").split())
    todo = "check the indentation, brackets and quotes here and in the line before"
    if not where.override and where.origin.lower().endswith(_OF_ROWS):
        todo = "name a recipe, and this file as its rows: data.train=" + where.origin
    elif "'\\t'" in problem:
        todo = "indent with spaces, not tabs"
    elif problem == "mapping values are not allowed here":
        todo = "one 'key: value' per line; put a text that holds ': ' in quotes"
    elif "'@'" in problem or "'`'" in problem or "'%'" in problem:
        todo = "put the text in quotes"
    return Mistake(where, "", f"broken YAML ({problem})", "YAML", todo)
