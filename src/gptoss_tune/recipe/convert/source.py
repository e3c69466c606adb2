"""One entry of a list of data sets while it becomes a source of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss_tune.recipe.convert.draft import Draft, called, is_off, switch
from gptoss_tune.recipe.dump import Noted
from gptoss_tune.recipe.mistakes import KeyPath

THINKING = ("thinking", "reasoning_content", "reasoning")
"""Keys of a chain of thought that the reader knows."""
ROLES = ("system", "developer", "user", "human", "assistant", "gpt", "model", "tool", "function")
"""Names of roles that the reader knows; some of them."""


@dataclass(slots=True)
class Source:
    """A source and the keys that it is made of.

    Attributes:
        draft: Where outcomes are told.
        at: Where its entry stands in the file.
        entry: Its values.
        setting: ``data.train`` or ``data.eval``.
        number: Its place there.
        values: Of the source in the recipe.
    """

    draft: Draft
    at: KeyPath
    entry: Mapping[str, Any]
    setting: str
    number: int
    values: dict[str, Any] = field(default_factory=dict)

    def get(self, key: str, usual: Any = None) -> Any:
        """Return a value of the entry; ``usual`` where it is absent or null."""
        value = self.entry.get(key)
        return usual if value is None else value

    def untold(self, key: str) -> bool:
        """Whether the entry has a value for a key that is not told yet."""
        return self.entry.get(key) is not None and (*self.at, key) not in self.draft.outcomes

    def put(self, key: str, name: str, value: Any) -> None:
        """Convert a key to a setting of the source."""
        self.values[name] = value
        path = (*self.setting.split("."), self.number, name)
        self.draft.places[path] = self.draft.place((*self.at, key))
        if name == "path":  # a source of nothing else is written as its path
            self.draft.places[path[:-1]] = self.draft.places[path]
        self.draft.also((*self.at, key), f"{called(path)}: {value}")

    def also(self, key: str, text: str) -> None:
        """Tell that a key is part of what another was converted to."""
        self.draft.also((*self.at, key), text)

    def none(self, key: str, text: str) -> None:
        """Tell that a key has no counterpart."""
        self.draft.none((*self.at, key), text)

    def irrelevant(self, key: str, text: str) -> None:
        """Tell that a key means nothing here."""
        self.draft.irrelevant((*self.at, key), text)

    def columns(self, templates: Mapping[str, str] | None, keys: tuple[str, ...] = ()) -> None:
        """Set the templates, and tell the keys that they came from."""
        if templates:
            self.values["columns"] = dict(templates)
        for key in keys:
            if self.untold(key):
                self.also(key, f"{self.where}.columns" if templates else "read by itself")

    @property
    def where(self) -> str:
        """What messages call the source."""
        return f"{self.setting}[{self.number}]"

    def rest(self, rules: Mapping[str, Callable[[Source, str, Any], None]]) -> None:
        """Tell every key that is left: by its rule, or as unknown."""
        for key, value in self.entry.items():
            if any(told[: len(self.at) + 1] == (*self.at, key) for told in self.draft.outcomes):
                continue
            if value is None or (key not in rules and is_off(value)):
                self.irrelevant(key, "not set")
            elif key in rules:
                rules[key](self, key, value)
            else:
                self.none(key, "not known here; look whether it matters")

    def done(self) -> str | dict[str, Any]:
        """Return the source as a recipe has it."""
        return self.values["path"] if list(self.values) == ["path"] else self.values


def keep(draft: Draft, key: str, setting: str, sources: list[str | dict[str, Any]]) -> None:
    """Put the sources into the recipe."""
    draft.settings[setting] = Noted(sources, key if key != setting.rpartition(".")[2] else None)
    draft.places[tuple(setting.split("."))] = draft.place((key,))


def roles(draft: Draft, path: KeyPath, mapping: Mapping[str, str]) -> None:
    """Convert names of roles that the reader does not know to ``data.roles``."""
    other = {said: role for said, role in mapping.items() if said not in ROLES}
    other = {said: role for said, role in other.items() if said != role}
    if not other:
        draft.also(path, "these names of roles are known")
        return
    kept = draft.settings.get("data.roles")
    draft.settings["data.roles"] = Noted({**(kept.value if kept else {}), **other}, called(path))
    draft.also(path, f"data.roles: {other}")


def same_spelling(role: object, content: object) -> bool:
    """Whether messages with these keys are read as they are."""
    return (role, content) in {("role", "content"), ("from", "value")}


def unsaid(source: Source, key: str, value: Any) -> None:
    """Tell a switch of a source that has no counterpart; off, it means nothing."""
    if not switch(value):
        source.irrelevant(key, "switched off there, and not done here")
    else:
        source.none(key, "no counterpart for a single source")


def because(fate: str, text: str) -> Callable[[Source, str, Any], None]:
    """Return the rule of a key of a source that has no counterpart, or means nothing."""

    def rule(source: Source, key: str, value: Any) -> None:
        if fate == "irrelevant" or is_off(value):
            source.irrelevant(key, text)
        else:
            source.none(key, text)

    return rule
