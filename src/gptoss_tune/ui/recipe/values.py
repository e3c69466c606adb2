"""Values of the form: from a recipe's file into the fields, and back into ``key=value`` settings.

An empty field says nothing, and the setting has its default. Texts are quoted on the way back, so
that a folder called ``017`` stays a text; everything else is read as an override of the command
line is, with the same messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gptoss_tune.recipe.dump import ResolvedLine
from gptoss_tune.ui.recipe.fields import FormField, fields_by_key, groups

Value = str | list[str]
NULL = "null"


def form_values(recipe: Mapping[str, Any]) -> dict[str, Value]:
    """Return what stands in each field, by its key; the method's own under its plain keys.

    Args:
        recipe: Values of a recipe's file, unchecked.
    """
    method = method_of(recipe)
    found: dict[str, Value] = {}
    for field in fields_by_key().values():
        if field.method in ("", method):
            said, value = _at(recipe, field.key.split("."))
            if said:
                found[field.key] = _shown(field, value)
    return found


def method_of(recipe: Mapping[str, Any]) -> str:
    """Return the name of a recipe's method as its file says it."""
    section = recipe.get("method")
    name = section.get("name") if isinstance(section, Mapping) else None
    return str(name or "sft")


def settings_of(form: Mapping[str, Value]) -> list[str]:
    """Return the ``key=value`` settings of a filled form, in the order of its fields."""
    method = form.get("method.name") or "sft"
    found = []
    for group in groups():
        for field in group.fields:
            if field.method in ("", method) and (value := form.get(field.key)) is not None:
                text = _written(field, value)
                if text:
                    found.append(f"{field.key}={text}")
    return found


def changed_yaml(lines: Iterable[ResolvedLine]) -> str:
    """Return of a resolved recipe what is not the default, with the sections that it stands in."""
    kept: list[str] = []
    above: list[str] = []
    for line in lines:
        depth = line.setting.count(".")
        if line.kind == "section":
            above[depth:] = [line.text]
        elif line.kind == "changed":
            kept += [section for section in above[:depth] if section]
            above[:depth] = [""] * depth  # each is written once
            kept.append(line.text)
    return "".join(f"{text}\n" for text in kept)


def _at(values: Any, path: list[str]) -> tuple[bool, Any]:
    """Return whether a recipe says something at a path, and what."""
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False, None
        values = values[part]
    return True, values


def _shown(field: FormField, value: Any) -> Value:
    """Return what a field shows of a value, whatever it is."""
    if field.kind == "choices":
        if value is None:
            return []
        return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
    if value is None:
        return NULL if field.null_is_a_choice else ""
    if field.kind == "lines":
        entries = value if isinstance(value, list) else [value]
        return "\n".join(_flow(entry) if not isinstance(entry, str) else entry for entry in entries)
    if isinstance(value, str) and field.kind != "yaml":
        return value
    return _flow(value)


def _flow(value: Any) -> str:
    """Return a value as YAML on one line, which JSON is, too."""
    return json.dumps(value, ensure_ascii=False)


def _written(field: FormField, value: Value) -> str:
    """Return the right-hand side of a setting; empty where the field says nothing."""
    if field.kind == "choices":
        ticked = [str(entry) for entry in (value if isinstance(value, list) else [value])]
        default = [] if field.default is None else [str(entry) for entry in field.default]
        if sorted(ticked) == sorted(default) or (field.nullable and not ticked):
            return ""
        # In the schema's order, whatever the order of the clicks; what is none of them is refused.
        known = [option for option in field.options if option in ticked]
        return _flow([*known, *(entry for entry in ticked if entry not in field.options)])
    text = (value if isinstance(value, str) else "\n".join(value)).strip()
    if not text:
        return ""
    if text == NULL and field.nullable:
        return NULL
    if field.kind == "lines":
        entries = (line.strip() for line in text.splitlines())
        return f"[{', '.join(e if e.startswith('{') else _flow(e) for e in entries if e)}]"
    return _flow(text) if field.kind == "text" else text
