"""Fields of the form, made from the JSON Schema: a setting exists once, in the schema.

An enumeration is a choice, a list of an enumeration boxes to tick, a list of texts or sources a
line each, and everything else one line. A number stays text, with its range beside it: ``1e-4`` is
what people write, and the loader's own message says what is wrong with it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from gptoss_tune.recipe import json_schema
from gptoss_tune.recipe.json_schema import expected_phrase, recipe_json_schema

Kind = Literal["text", "number", "choice", "choices", "lines", "yaml"]
NUMERIC: Final = ("integer", "number")
_FIRST: Final = ("model", "data", "method", "lora", "train")
"""Sections of which a run says something; the others follow in the schema's order."""


@dataclass(frozen=True)
class FormField:
    """One setting.

    Attributes:
        key: Its dotted name.
        kind: How it is asked for.
        help: What it is.
        expected: What it takes, in words.
        options: Of a choice, or of boxes.
        default: As YAML; ``None`` where it has none.
        nullable: Whether it may be null.
        required: Whether a recipe has to say it.
        method: The method whose setting it is; empty for what every method has.
    """

    key: str
    kind: Kind
    help: str
    expected: str
    options: tuple[str, ...]
    default: Any
    nullable: bool
    required: bool
    method: str = ""

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition(".")[2]

    @property
    def identity(self) -> str:
        """Of its element in the page."""
        return f"{self.key}-{self.method}" if self.method else self.key

    @property
    def null_is_a_choice(self) -> bool:
        """Whether null says something that leaving the field empty does not."""
        return self.nullable and self.default is not None

    @property
    def example(self) -> str:
        """What an empty field stands for."""
        if self.required:
            return "required"
        if self.default is None:
            return "null"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, list):
            return ", ".join(map(str, self.default)) or "none"
        return "none" if self.default == {} else str(self.default)


@dataclass(frozen=True)
class Group:
    """A section of the form.

    Attributes:
        key: Dotted name of the section.
        help: What it is.
        fields: Its settings.
        methods: Names to choose from, of the section that holds the method.
    """

    key: str
    help: str
    fields: tuple[FormField, ...]
    methods: tuple[str, ...] = ()


@functools.cache
def groups() -> tuple[Group, ...]:
    """Return the form of a recipe, a group for each section and for each section in one."""
    properties = recipe_json_schema()["properties"]
    order = [*_FIRST, *(name for name in properties if name not in _FIRST)]
    return tuple(group for name in order for group in _groups_of(name, properties[name]))


@functools.cache
def fields_by_key() -> dict[tuple[str, str], FormField]:
    """Return every field by its key and its method, which is empty for most."""
    return {(field.key, field.method): field for group in groups() for field in group.fields}


def field_of(path: str, method: str) -> FormField | None:
    """Return the field that a mistake's dotted name lies in, such as ``data.train[0].path``."""
    name = path.replace("[", ".[")
    while name:
        key = name.replace(".[", "[")
        found = fields_by_key().get((key, method)) or fields_by_key().get((key, ""))
        if found is not None:
            return found
        name = name.rpartition(".")[0]
    return None


def _groups_of(key: str, node: dict[str, Any]) -> Iterator[Group]:
    """Yield the group of a section, then those of the sections in it."""
    variants = _variants(node)
    if "name" in variants[0].get("properties", {}) and len(variants) > 1:
        yield _method_group(key, node, variants)
        return
    section = variants[0]
    fields, inner = [], []
    for name, child in section["properties"].items():
        if _is_section(child):
            inner.append((f"{key}.{name}", child))
        else:
            required = name in section.get("required", ())
            fields.append(_field(f"{key}.{name}", child, required=required))
    yield Group(key, _help(node) or _help(section), tuple(fields))
    for name, child in inner:
        yield from _groups_of(name, child)


def _method_group(key: str, node: dict[str, Any], variants: list[dict[str, Any]]) -> Group:
    """Return the group of the methods: the choice of one, and the settings of each."""
    names = tuple(str(v["properties"]["name"]["const"]) for v in variants)
    helps = " ".join(
        f"{name}: {_help(variant)}" for name, variant in zip(names, variants, strict=True)
    )
    chosen = FormField(
        f"{key}.name", "choice", helps, " or ".join(names), names, names[0], False, False
    )
    fields = [chosen]
    for name, variant in zip(names, variants, strict=True):
        for child_name, child in variant["properties"].items():
            if child_name != "name":
                required = child_name in variant.get("required", ()) and "default" not in child
                fields.append(_field(f"{key}.{child_name}", child, required=required, method=name))
    return Group(key, _help(node), tuple(fields), names)


def _field(key: str, node: dict[str, Any], *, required: bool, method: str = "") -> FormField:
    variants = _variants(node)
    nullable = any(variant.get("type") == "null" for variant in variants)
    some = [variant for variant in variants if variant.get("type") != "null"]
    kind, options = _kind(some)
    return FormField(
        key=key,
        kind=kind,
        help=_help(node),
        expected=expected_phrase(node),
        options=options,
        default=_resolved(node).get("default"),
        nullable=nullable,
        required=required,
        method=method,
    )


def _kind(variants: list[dict[str, Any]]) -> tuple[Kind, tuple[str, ...]]:
    for variant in variants:
        if variant.get("type") == "array":
            items = _variants(variant["items"])
            if "enum" in items[0]:
                return "choices", tuple(map(str, items[0]["enum"]))
            numbers = any(item.get("type") in NUMERIC for item in items)
            return ("yaml" if numbers else "lines"), ()
    only = variants[0]
    if "enum" in only:
        return "choice", tuple(map(str, only["enum"]))
    if "const" in only:
        return "choice", (str(only["const"]),)
    if only.get("type") == "boolean":
        return "choice", ("true", "false")
    if only.get("type") == "object":
        return "yaml", ()
    return ("number" if only.get("type") in NUMERIC else "text"), ()


def _is_section(node: dict[str, Any]) -> bool:
    """Return whether a node is one mapping with settings of its own."""
    variants = _variants(node)
    return len(variants) == 1 and "properties" in variants[0]


def _help(node: dict[str, Any]) -> str:
    return str(node.get("description") or _resolved(node).get("description") or "")


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    return json_schema.resolved(node, recipe_json_schema())


def _variants(node: dict[str, Any]) -> list[dict[str, Any]]:
    return json_schema.variants(node, recipe_json_schema())
