"""Small rules: a key becomes a setting, has no counterpart, or means nothing here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gptoss_tune.recipe.convert.draft import Draft, is_off

Rule = Callable[[Draft, str, Any], None]
NOT_SET: Final = "not set"
OFF: Final = "switched off there, and not done here"


def same(setting: str, note: str | None = None) -> Rule:
    """Return the rule of a key whose value is the setting's."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        draft.converted(key, setting, as_number(value), note)

    return rule


def none(text: str) -> Rule:
    """Return the rule of a key without a counterpart; switched off, it means nothing."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if is_off(value):
            draft.irrelevant(key, OFF)
        else:
            draft.none(key, text)

    return rule


def irrelevant(text: str) -> Rule:
    """Return the rule of a key that means nothing here, whatever its value."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        draft.irrelevant(key, text)

    return rule


def table(text: str, rule: Callable[[str], Rule], keys: str) -> dict[str, Rule]:
    """Return the entries of several keys that have the same rule."""
    return dict.fromkeys(keys.split(), rule(text))


def apply(draft: Draft, rules: Mapping[str, Rule]) -> None:
    """Apply the rules to the keys that are not told yet; what no rule knows is told as unknown."""
    for key, value in draft.document.values.items():
        if any(told[0] == key for told in draft.outcomes):
            continue
        if value is None or value in ("", [], {}):
            draft.irrelevant(key, NOT_SET)
        elif key in rules:
            rules[key](draft, key, value)
    for path, value in list(draft.untold()):
        if any(path[: len(told)] == told for told in draft.outcomes):
            continue
        if is_off(value):
            draft.irrelevant(path, f"not known here; {OFF.split(',')[0]}")
        else:
            draft.none(path, "not known here; look whether it matters")


def as_number(value: Any) -> Any:
    """Return number-like text, which YAML 1.1 makes of 1e-4, as the number; the rest as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def count_of(value: Any) -> Any:
    """Return a whole number that was written with a fraction of nothing; the rest as it is."""
    value = as_number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
