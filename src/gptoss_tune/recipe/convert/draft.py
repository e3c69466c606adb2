"""A recipe while it is drafted from another tool's file, and what became of each of its keys.

Every key ends in exactly one outcome; a rule that forgets one, or tells one twice, is a fault here
and found by the tests. Keys that no rule knows are told as such: nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from gptoss_tune.display import one_line
from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe.dump import Noted
from gptoss_tune.recipe.mistakes import KeyPath, Place, dotted, secret, shown
from gptoss_tune.recipe.yaml_reader import Document

Fate = Literal["converted", "none", "irrelevant"]
_SWITCHES: Final = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
"""YAML 1.1, which the other tools read, has more words for true and false."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the file does not say.

    Attributes:
        model: The base to train instead of the one that is named.
        gpus: How many GPUs a launcher would start; 1: the file's sharing has nothing to share.
        dataset_info: LLaMA-Factory's list of data sets; ``None``: looked for where it would.
    """

    model: str | None = None
    gpus: int = 1
    dataset_info: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one key.

    Attributes:
        key: As the file has it, dotted.
        line: Where it stands.
        fate: ``converted``, ``none`` (no counterpart) or ``irrelevant``.
        text: To what, or what happens instead, or why it does not matter.
        value: As it may be shown.
    """

    key: str
    line: int
    fate: Fate
    text: str
    value: str

    def as_json(self) -> dict[str, Any]:
        """Return the outcome for ``--json``."""
        return {"key": self.key, "line": self.line, "fate": self.fate, "text": self.text}


@dataclass(slots=True)
class Draft:
    """Settings by dotted name, and the outcomes of keys.

    Attributes:
        name: The file, as messages call it.
        tool: The tool it is for.
        document: Its values and places.
        options: What the file does not say.
        settings: Of the recipe.
        places: Where each came from, for messages.
        outcomes: What became of each key.
        origins: The key that a setting was converted from.
    """

    name: str
    tool: str
    document: Document
    options: Options
    settings: dict[str, Noted] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    outcomes: dict[KeyPath, Outcome] = field(default_factory=dict)
    origins: dict[str, KeyPath] = field(default_factory=dict)

    def get(self, key: str, usual: Any = None) -> Any:
        """Return the value of a top-level key; ``usual`` where it is absent or null."""
        value = self.document.values.get(key)
        return usual if value is None else value

    def has(self, key: str) -> bool:
        """Whether a top-level key has a value."""
        return self.document.values.get(key) is not None

    def flag(self, key: str, usual: bool = False) -> bool:
        """Return a switch, in any of YAML's spellings."""
        return switch(self.get(key, usual))

    def converted(
        self, key: str | KeyPath, setting: str, value: Any, note: str | None = None
    ) -> None:
        """Tell that a key became a setting.

        Args:
            key: Of the file.
            setting: Dotted name in the recipe.
            value: Of the setting.
            note: More about it; the key itself is named where the setting is called otherwise.
        """
        path = _path(key)
        last = str(path[-1]) if isinstance(path[-1], str) else called(path)
        origin = None if last == setting.rpartition(".")[2] else called(path)
        comment = f"{origin}: {note}" if origin and note else origin or note
        self.settings[setting] = Noted(value, comment)
        self.places[tuple(setting.split("."))] = self.place(path)
        self.origins[setting] = path
        text = f"{setting}: {shown(value)}"
        self._tell(path, "converted", f"{text}; {note}" if note else text)

    def also(self, key: str | KeyPath, text: str) -> None:
        """Tell that a key is part of what another one was converted to."""
        self._tell(_path(key), "converted", text)

    def none(self, key: str | KeyPath, text: str) -> None:
        """Tell that a key has no counterpart, and what happens instead."""
        self._tell(_path(key), "none", text)

    def irrelevant(self, key: str | KeyPath, text: str) -> None:
        """Tell that a key means nothing here, and why."""
        self._tell(_path(key), "irrelevant", text)

    def retell(self, setting: str, fate: Fate, text: str) -> None:
        """Tell anew what became of the key that a setting came from, if it came from one."""
        path = self.origins.get(setting)
        if path is not None:
            self.outcomes[path] = replace(self.outcomes[path], fate=fate, text=text)

    def default(self, setting: str, value: Any) -> None:
        """Write what the other tool does where its file says nothing, if we would do otherwise."""
        if setting not in self.settings:
            self.settings[setting] = Noted(value, f"{self.tool}'s default")

    def refuse(self, key: str | KeyPath, expected: str, todo: str) -> RecipeError:
        """Return the error of a file that cannot become a recipe (the caller raises it)."""
        path = _path(key)
        value = _at(self.document.values, path)
        return RecipeError(
            f"{self.place(path)}: {called(path)}: got {shown(value)}, expected {expected}; {todo}"
        )

    def refuse_lists(self, keys: Iterable[str]) -> None:
        """Refuse a list or a mapping where every tool has one plain value.

        Raises:
            RecipeError: Names the first such key.
        """
        for key in keys:
            if isinstance(self.get(key), dict | list):
                raise self.refuse(key, "a plain value", "write one")

    def untold(self) -> Iterator[tuple[KeyPath, Any]]:
        """Yield the keys that have no outcome yet, nor what holds them, with a value of each."""
        for path, value in _leaves((), self.document.values):
            covered = any(path[: len(told)] == told for told in self.outcomes)
            if not covered:
                yield _shortest(path, self.outcomes), value

    def place(self, path: KeyPath) -> Place:
        """Return where a key stands, or what holds it."""
        for length in range(len(path), 0, -1):
            found = self.document.key_places.get(path[:length])
            found = found or self.document.value_places.get(path[:length])
            if found is not None:
                return found
        return Place(0, 0, 0, self.name)

    def _tell(self, path: KeyPath, fate: Fate, text: str) -> None:
        assert path not in self.outcomes, f"{called(path)} is told twice"
        value = "" if secret(called(path)) else shown(_at(self.document.values, path))
        self.outcomes[path] = Outcome(called(path), self.place(path).line, fate, text, value)


def called(path: KeyPath) -> str:
    """Return a key of the file, dotted, as it stands there: ``hf_use_auth_token`` is no secret."""
    return dotted(path, one_line)


def switch(value: object) -> bool:
    """Return whether a value switches something on."""
    if isinstance(value, str):
        return _SWITCHES.get(value.lower(), bool(value))
    return bool(value)


def is_off(value: object) -> bool:
    """Whether a value says that something is not wanted: null, false, 0, or empty."""
    return value is None or not switch(value)


def as_list(value: object) -> list[Any]:
    """Return a list, the list of one that a value is short for, or the words between commas."""
    if value is None:
        return []
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _path(key: str | KeyPath) -> KeyPath:
    return (key,) if isinstance(key, str) else key


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
        else:
            return None
    return values


def _leaves(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    below = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        below = enumerate(value)
    found = False
    for key, entry in below:
        found = True
        yield from _leaves((*path, key), entry)
    if not found and path:
        yield path, value


def _shortest(path: KeyPath, told: dict[KeyPath, Outcome]) -> KeyPath:
    """Return the shortest part of a path that holds nothing told: one outcome for a mapping."""
    for length in range(1, len(path)):
        if not any(other[:length] == path[:length] for other in told):
            return path[:length]
    return path
