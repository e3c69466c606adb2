"""The recipe's JSON Schema: for editors, and as the source of the "expected ..." in messages.

One description of every setting serves the checks, the editor's completion and the messages, so
the three cannot disagree. Hand-written phrases beside each field were the alternative; they go
stale at the first changed bound. What a setting is stands below it in the source, and is read from
there only where it is shown: pydantic would read it at each start, for an eighth of a second.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from gptoss_tune.recipe.mistakes import KeyPath
from gptoss_tune.recipe.recipe import Recipe
from gptoss_tune.recipe.schema.value_types import Section

_MOST_NAMES = 3


@functools.cache
def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe file; the same object on each call."""
    schema = copy.deepcopy(_bare_schema())
    for section in _sections_below(Section):
        node = schema if section is Recipe else schema["$defs"].get(section.__name__, {})
        for name, text in setting_descriptions(section).items():
            if name in node.get("properties", {}):
                node["properties"][name]["description"] = text
    return schema


def setting_descriptions(section: type[Section]) -> dict[str, str]:
    """Return what each setting of a section is: the text below it in the source, by its name."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        found |= _texts_below(kind.__module__).get(kind.__name__, {})
    return {name: found[name] for name in section.model_fields if name in found}


def _sections_below(kind: type[Section]) -> Iterator[type[Section]]:
    for section in kind.__subclasses__():
        yield section
        yield from _sections_below(section)


@functools.cache
def _texts_below(module: str) -> dict[str, dict[str, str]]:
    """Return by class the texts that stand below annotated names in a module of this package."""
    if not module.startswith("gptoss_tune."):
        return {}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {})
            for above, below in itertools.pairwise(node.body):
                match above, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        texts[name] = inspect.cleandoc(text)
    return found


@functools.cache
def _bare_schema() -> dict[str, Any]:
    """Return the schema without what the settings are, which is all that a message needs."""
    schema = Recipe.model_json_schema()
    schema.pop("title", None)
    schema.pop("description", None)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gptoss-tune recipe",
        "description": "What is trained, on what, how, and where it goes. Paths are relative to "
        "the current directory; what a recipe does not say has the default.",
    }
    return head | {key: _without_titles(value) for key, value in schema.items()}


def _without_titles(node: Any) -> Any:
    """Drop pydantic's titles ("Max Length"): an editor shows the key itself."""
    if isinstance(node, dict):
        return {
            key: _without_titles(value)
            for key, value in node.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_without_titles(entry) for entry in node] if isinstance(node, list) else node


def node_at(path: KeyPath, method: str | None = None) -> dict[str, Any] | None:
    """Return the schema of the value at ``path``, references resolved; None: no such setting.

    Args:
        path: From the top of a recipe.
        method: Whose setting is meant below ``method``, where several have one of that name; None:
            the first one's.
    """
    node: dict[str, Any] = _bare_schema()
    for depth, part in enumerate(path):
        if depth == 1 and path[0] == "method" and part != "name":
            own = [v for v in variants(node) if v["properties"]["name"].get("const") == method]
            node = own[0] if own else node
        named = [v["properties"][part] for v in variants(node) if part in v.get("properties", {})]
        if len(named) > 1 and all("const" in each for each in named):
            # The name of a method, of which each has a schema of its own.
            node = named[0] | {"enum": [each["const"] for each in named]}
            continue
        for variant in variants(node):
            if isinstance(part, int) and "items" in variant:
                node = variant["items"]
                break
            if isinstance(part, str) and part in variant.get("properties", {}):
                node = variant["properties"][part]
                break
            if isinstance(part, str) and _has_key(variant, part):
                node = variant["additionalProperties"]
                break
        else:
            return None
    return resolved(node)


def settings_below(path: KeyPath) -> list[str]:
    """Return the keys that the mapping at ``path`` can have, in their order; [] for a scalar."""
    node = node_at(path) or {}
    known = [key for variant in variants(node) for key in variant.get("properties", ())]
    if known:
        return list(dict.fromkeys(known))
    for variant in variants(node):
        if "enum" in variant.get("propertyNames", {}):
            return list(variant["propertyNames"]["enum"])
    return []


def _has_key(mapping: dict[str, Any], key: str) -> bool:
    """Return whether a mapping of names to values of one kind may have ``key``."""
    if not isinstance(mapping.get("additionalProperties"), dict):
        return False
    names = mapping.get("propertyNames", {})
    return key in names["enum"] if "enum" in names else True


def expected_phrase(node: dict[str, Any], *, plural: bool = False) -> str:
    """Return what a schema takes, in words: ``a whole number from 1 to 1024, or null``."""
    kinds = variants(node)
    for kind in kinds:
        one_of_them = [v for v in kinds if v is not kind and v.get("type") != "null"]
        if kind.get("type") == "array" and variants(kind["items"]) == one_of_them:
            single = expected_phrase({"anyOf": one_of_them}, plural=plural)
            null = ", or null" if {"type": "null"} in kinds else ""
            return f"{single}, or a list of them{null}"
    phrases = [_phrase(v, plural=plural) for v in kinds if v.get("type") != "null"]
    text = " or ".join(dict.fromkeys(phrases))
    return text if len(phrases) == len(kinds) else f"{text}, or null"


def resolved(node: dict[str, Any], schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a node with what it refers to in its place.

    Args:
        node: Of the schema.
        schema: Whose definitions are meant; None: the one without descriptions of settings.
    """
    if "$ref" not in node:
        return node
    target = (schema or _bare_schema())["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return target | {key: value for key, value in node.items() if key != "$ref"}


def variants(node: dict[str, Any], schema: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return what a value may be, one node for each kind, as ``resolved`` does."""
    node = resolved(node, schema)
    for several in ("anyOf", "oneOf"):
        if several in node:
            return [resolved(variant, schema) for variant in node[several]]
    return [node]


def _phrase(node: dict[str, Any], *, plural: bool) -> str:
    if "enum" in node:
        *others, last = (str(word) for word in node["enum"])
        return f"{', '.join(others)} or {last}"
    if "const" in node:
        return str(node["const"])
    one = "" if plural else "a "
    s = "s" if plural else ""
    match node.get("type"):
        case "integer":
            return f"{one}whole number{s}{_bounds(node)}"
        case "number":
            return f"{one}number{s}{_bounds(node)}"
        case "boolean":
            return "true or false"
        case "array":
            size = " of at least one entry:" if node.get("minItems") else " of"
            return f"{one}list{s}{size} {expected_phrase(node['items'], plural=True)}"
        case "object":
            names = list(node.get("properties", node.get("propertyNames", {}).get("enum", ())))
            if not names:
                values = expected_phrase(node["additionalProperties"], plural=True)
                return f"{one}mapping{s} of names to {values}"
            more = ", ..." if len(names) > _MOST_NAMES else ""
            return f"{one}mapping{s} with {', '.join(names[:_MOST_NAMES])}{more}"
        case _:
            like = f" like {node['examples'][0]}" if "pattern" in node else ""
            return f"{one}text{s}{like}"


def _bounds(node: dict[str, Any]) -> str:
    low = f"from {node['minimum']}" if "minimum" in node else ""
    if "exclusiveMinimum" in node:
        low = f"above {node['exclusiveMinimum']}"
    high = f"to {node['maximum']}" if "maximum" in node else ""
    if "exclusiveMaximum" in node:
        high = f"and below {node['exclusiveMaximum']}"
    elif high and low.startswith("above"):
        high = f"and at most {node['maximum']}"
    return "".join(f" {part}" for part in (low, high) if part)
