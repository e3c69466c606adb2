"""Validates a JSON value against a JSON schema; runs in the process that can be killed.

A pattern in a schema is searched by Python's ``re``, which cannot be stopped; a schema may refer
to itself without end. References to other documents are not looked up: the registry is empty and
has nothing that fetches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema.exceptions import SchemaError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry, Resource
from referencing.exceptions import NoSuchAnchor, PointerToNowhere, Unresolvable
from referencing.jsonschema import DRAFT202012

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def judge(task: dict[str, Any]) -> dict[str, Any]:
    """Return ``wrong``: what is wrong, ``None`` if nothing is.

    Args:
        task: ``schema``, and ``value`` to validate; without a value the schema is checked alone.
    """
    schema = task["schema"]
    kind = validator_for(schema, default=Draft202012Validator)
    if "value" not in task:
        return {"wrong": _wrong_schema(kind, schema)}
    try:
        error = best_match(kind(schema, registry=Registry()).iter_errors(task["value"]))
    except Unresolvable as missing:
        return {"error": f"the schema refers to {missing.ref!a}, which it does not hold"}
    if error is None:
        return {"wrong": None}
    message = error.message if len(error.message) <= 160 else f"{error.message[:156]}..."
    return {"wrong": f"{error.json_path[:80]}: {message}"}


def _wrong_schema(kind: type[Validator], schema: Any) -> str | None:
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        return f"{error.json_path[:80]}: {error.message[:160]}"
    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().resolver_with_root(root)
    for reference in _references(schema):
        if not reference.startswith("#"):
            return (
                f"it refers to {reference[:80]!a}; nothing is fetched: put what it needs under "
                "$defs and refer to that with #/$defs/..."
            )
        try:
            resolver.lookup(reference)
        except (Unresolvable, NoSuchAnchor, PointerToNowhere):
            return f"it refers to {reference[:80]!a}, which it does not hold"
    return None


def _references(schema: Any) -> Iterator[str]:
    level = [schema]
    while level:
        inner = level.pop()
        if isinstance(inner, dict):
            level.extend(inner.values())
            yield from (r for key in _REFERENCES if isinstance(r := inner.get(key), str))
        elif isinstance(inner, list):
            level.extend(inner)
