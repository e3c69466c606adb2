"""Parameters of a tool: the spellings people have -> the JSON schema that openai-harmony renders.

The library renders what it does not understand as ``any``: a call would be trained whose arguments
no declaration names. Spellings that are no JSON schema and can mean one thing only are translated
(``type: dict``, ``List[str]``, a flat map of parameters, properties in a list or in JSON text);
what can mean nothing is refused. A sound schema stays as it is, also where the library loses a part
of it, such as ``anyOf``: a server renders it alike, so that is told and not repaired.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import MOST_NESTED, kind, nested, parse_json, shown

SCHEMA_KEYS: Final = (
    *("parameters", "inputSchema", "input_schema", "parametersJsonSchema"),
    *("parameters_json_schema", "json_schema", "schema", "args_schema", "parameter", "arguments"),
)
"""Where a declaration holds its schema: OpenAI, MCP, Anthropic, Gemini, and kin."""

_TYPES: Final = {
    **dict.fromkeys(("string", "str", "text", "char", "date", "datetime", "uuid"), "string"),
    **dict.fromkeys(("integer", "int", "int32", "int64", "long"), "integer"),
    **dict.fromkeys(("number", "float", "double", "decimal"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "list", "tuple", "set", "sequence"), "array"),
    **dict.fromkeys(("object", "dict", "map", "mapping", "hashmap", "json"), "object"),
    **dict.fromkeys(("null", "none", "nonetype"), "null"),
}
_ANY: Final = ("any", "object_any")
_SOUND: Final = frozenset(_TYPES.values())
_WORDS: Final = frozenset(
    {"properties", "items", "anyOf", "oneOf", "allOf", "$ref", "enum", "const", "$defs"}
)
"""Keywords that say something of the value: a mapping with one of them is a schema."""
_ANNOTATIONS: Final = ("description", "title", "$schema", "$id", "$comment")
_LITERALS: Final = {str: "string", int: "integer", bool: "boolean"}
_GENERIC: Final = re.compile(r"(\w+)\s*\[(.*)\]", re.DOTALL)
_OPTIONAL: Final = re.compile(r"\s*(?:,\s*|\()(?:optional|default\b[^,]*)\)?\s*$", re.IGNORECASE)


def read_parameters(value: object, at: str, where: str) -> dict[str, Any] | None:
    """Return a schema of type object, None where a tool takes no arguments.

    Raises:
        DataError: It is no JSON schema, in any spelling that is known.
    """
    value = shaped(value, at, where)
    if value is None:
        return None
    schema = _schema(value, at, where)
    said = schema.get("type")
    if isinstance(said, list) and set(said) <= {"object", "null"} and "object" in said:
        said = schema["type"] = "object"
    if said is not None and said != "object":
        raise DataError(
            f"{at}: {where}.type is {shown(value.get('type'))}; the arguments of a call are an "
            'object: write {"type": "object", "properties": {...}}'
        )
    return schema


def shaped(value: object, at: str, where: str) -> dict[str, Any] | None:
    """Return parameters as one object schema, its types as they are spelled; None for none.

    Texts of JSON are read, and parameters in a list or a flat map stand under ``properties``.

    Raises:
        DataError: It is no object, or nested too deep.
    """
    if isinstance(value, str):
        value = parse_json(value, at, where) if value.strip() else None
    if isinstance(value, list):
        value = {"type": "object", "properties": value}
    if value is None or value == {}:
        return None
    if isinstance(value, dict) and all(_annotates(key, said) for key, said in value.items()):
        return None
    if not isinstance(value, dict):
        raise DataError(f"{at}: {where} is {kind(value)}; expected a JSON schema")
    if nested(value) > MOST_NESTED:
        raise DataError(f"{at}: {where} is nested over {MOST_NESTED} levels deep")
    beside = {key: said for key, said in value.items() if _stands_beside(key, said)}
    flat = {key: said for key, said in value.items() if key not in beside}
    if flat and not isinstance(value.get("type"), (str, list)) and not _is_keyed(flat):
        value = {**_from_flat(flat), **beside}
    elif "type" not in value and "properties" in value:
        value = {"type": "object", **value}
    return value


def _stands_beside(key: str, said: object) -> bool:
    """Whether a key of a flat map is a keyword and no parameter: ``required: [city]``."""
    if key == "required":
        return isinstance(said, list) or (isinstance(said, str) and said.strip().startswith("["))
    return _annotates(key, said) or (key == "additionalProperties" and isinstance(said, bool))


def _annotates(key: str, said: object) -> bool:
    return key in _ANNOTATIONS and isinstance(said, str) and _typed(said) is None


def _from_flat(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of ``{name: {type, description, default}}``, as xlam's sets have it.

    A parameter is required that says so; where none does, those that have no default and are not
    of a type such as ``str, optional``.
    """
    said = any(isinstance(one, dict) and "required" in one for one in parameters.values())
    required = [
        name
        for name, one in parameters.items()
        if not said and not (isinstance(one, dict) and "default" in one) and not _is_optional(one)
    ]
    return {"type": "object", "properties": parameters, "required": required}


def _is_optional(parameter: object) -> bool:
    type_ = parameter.get("type") if isinstance(parameter, dict) else parameter
    return isinstance(type_, str) and (
        _OPTIONAL.search(type_[:200]) is not None or type_.lower().startswith("optional[")
    )


def _is_keyed(value: dict[str, Any]) -> bool:
    """Whether a mapping without a type is a schema; a parameter's own name can be a keyword."""
    return any(
        key in value and not (key in ("properties", "items") and _is_parameter(value[key]))
        for key in _WORDS
    ) or not all(isinstance(inner, (dict, str)) for inner in value.values())


def _is_parameter(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _schema(value: object, at: str, where: str) -> dict[str, Any]:
    if isinstance(value, str) and _typed(value) is not None:
        return dict(_typed(value) or {})
    if value is True:
        return {}
    if not isinstance(value, dict):
        raise DataError(
            f'{at}: {where} is {shown(value)}; expected a JSON schema such as {{"type": "string"}}'
        )
    schema = dict(value)
    _translate_type(schema, at, where)
    if isinstance(schema.get("properties"), (str, list, dict)):
        _translate_properties(schema, at, where)
    elif schema.get("properties") is not None:
        raise DataError(
            f"{at}: {where}.properties is {kind(schema['properties'])}; expected an object"
        )
    items = schema.get("items")
    if isinstance(items, list):
        if len(items) == 1:
            schema["items"] = _schema(items[0], at, f"{where}.items")
    elif items is not None and not isinstance(items, bool):
        schema["items"] = _schema(items, at, f"{where}.items")
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            schema[key] = [
                _schema(inner, at, f"{where}.{key}[{number}]")
                for number, inner in enumerate(schema[key])
            ]
    return schema


def _translate_type(schema: dict[str, Any], at: str, where: str) -> None:
    said = schema.get("type")
    if said is None or (isinstance(said, str) and said in _SOUND):
        return
    if isinstance(said, list) and said and all(isinstance(name, str) for name in said):
        names = [_TYPES.get(name.strip().lower()) for name in said]
        if None not in names:
            schema["type"] = names
            return
    found = _typed(said) if isinstance(said, str) else None
    if found is None:
        raise DataError(
            f"{at}: {where}.type is {shown(said)}; expected one of {', '.join(sorted(_SOUND))}"
        )
    if not found:
        del schema["type"]
    schema.update(
        {key: inner for key, inner in found.items() if key == "type" or key not in schema}
    )


def _typed(said: str) -> dict[str, Any] | None:
    """Return the schema of a type as programs write it, ``{}`` for any; None for no type."""
    said = _OPTIONAL.sub("", said[:200]).strip()
    plain = said.lower().removeprefix("typing.")
    if plain in _ANY:
        return {}
    if plain in _TYPES:
        return {"type": _TYPES[plain]}
    generic = _GENERIC.fullmatch(said.removeprefix("typing."))
    if generic is None:
        return _united([_typed(part) for part in said.split("|")]) if "|" in said else None
    outer, inner = generic[1].lower(), generic[2]
    if outer == "optional":
        return _typed(inner)
    if outer == "union":
        return _united([_typed(part) for part in _arguments(inner)])
    if outer == "literal":
        return _literal(inner)
    if _TYPES.get(outer) == "array":
        items = [_typed(part) for part in _arguments(inner) if part.strip() != "..."]
        alike = bool(items) and all(item == items[0] for item in items)
        return {"type": "array", **({"items": items[0]} if alike and items[0] else {})}
    return {"type": "object"} if _TYPES.get(outer) == "object" else None


def _literal(inner: str) -> dict[str, Any] | None:
    """Return the schema of ``Literal``'s values, all of one type; null beside them says nothing."""
    if "\\" in inner:
        return None
    try:
        values = ast.literal_eval(f"[{inner}]")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    values = [value for value in values if value is not None]
    types = {_LITERALS.get(type(value)) for value in values}
    return None if len(types) != 1 or None in types else {"type": types.pop(), "enum": values}


def _arguments(inner: str) -> list[str]:
    """Split ``a, b[c, d]`` at the commas outside brackets."""
    parts, depth = [""], 0
    for character in inner:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _united(types: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    found = [one for one in types if one is not None and one != {"type": "null"}]
    if None in types or not found:
        return None
    if len(found) == 1:
        return found[0]
    plain = [one["type"] for one in found if set(one) == {"type"}]
    return {"type": plain} if len(plain) == len(found) else {"oneOf": found}


def _translate_properties(schema: dict[str, Any], at: str, where: str) -> None:
    named = properties_by_name(schema, at, where)
    required = required_names(schema, at, where)
    schema["properties"] = {
        name: _property(inner, at, f"{where}.properties.{name[:60]}")
        for name, inner in named.items()
    }
    if required or "required" in schema:
        schema["required"] = required


def properties_by_name(schema: dict[str, Any], at: str, where: str) -> dict[str, Any]:
    """Return the properties of a schema by name; they may stand in a list, or in a text of JSON.

    Raises:
        DataError: They are something else, or two have one name.
    """
    here = f"{where}.properties"
    listed = schema.get("properties")
    if isinstance(listed, str):
        listed = parse_json(listed, at, here) if listed.strip() else {}
    if isinstance(listed, list):
        named: dict[str, Any] = {}
        for number, entry in enumerate(listed):
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or not isinstance(name, str) or name in named:
                raise DataError(
                    f"{at}: {here}[{number}] is {kind(entry)} without a name of its own; expected "
                    'an object of schemas by name, {"city": {"type": "string"}}'
                )
            named[name] = {key: value for key, value in entry.items() if key != "name"}
        return named
    if not isinstance(listed, dict):
        raise DataError(f"{at}: {here} is {kind(listed)}; expected an object of schemas by name")
    return listed


def required_names(schema: dict[str, Any], at: str, where: str) -> list[str]:
    """Return which properties are required, by the schema's list or by their own word.

    Raises:
        DataError: The list is none of names.
    """
    required = _required(schema.get("required"), at, where)
    named = properties_by_name(schema, at, where)
    return required + [
        n for n, inner in named.items() if _says_required(inner) and n not in required
    ]


def _property(inner: object, at: str, where: str) -> dict[str, Any]:
    if isinstance(inner, dict) and _switch(inner) is not None:
        inner = {key: value for key, value in inner.items() if key != "required"}
    return _schema(inner, at, where)


def _says_required(inner: object) -> bool:
    """Whether a parameter says itself that it is required: ``required: true``."""
    return isinstance(inner, dict) and _switch(inner) is True


def _switch(parameter: dict[str, Any]) -> bool | None:
    said = parameter.get("required")
    if isinstance(said, str):
        return {"true": True, "yes": True, "false": False, "no": False}.get(said.lower())
    return said if isinstance(said, bool) else None


def _required(value: object, at: str, where: str) -> list[str]:
    if isinstance(value, str) and value.strip().startswith("["):
        value = parse_json(value, at, f"{where}.required")
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{at}: {where}.required is {shown(value)}; expected a list of names")
    return list(value)


def lost_parts(schema: dict[str, Any]) -> set[str]:
    """Return what of a sound schema openai-harmony 0.0.8 renders as ``any`` or leaves out."""
    return {lost for inner in _inside(schema) for lost in _lost(inner)}


def _inside(schema: object) -> Iterator[dict[str, Any]]:
    waiting: list[Any] = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        yield one
        properties = one.get("properties")
        choices = one.get("oneOf")
        waiting += properties.values() if isinstance(properties, dict) else []
        waiting += choices if isinstance(choices, list) else []
        waiting.append(one.get("items"))


def _lost(schema: dict[str, Any]) -> Iterator[str]:
    said = schema.get("type")
    words = [key for key in ("anyOf", "allOf", "$ref", "const") if key in schema]
    yield from words
    values = schema.get("enum")
    if isinstance(values, list) and (
        said != "string" or not all(isinstance(value, str) for value in values)
    ):
        yield "an enum that is not of texts with type: string"
    elif said is None and not words and "oneOf" not in schema:
        yield "a parameter without a type"
    if isinstance(said, list) and ("properties" in schema or "items" in schema):
        yield "properties or items beside a list of types"
    if isinstance(schema.get("additionalProperties"), dict):
        yield "additionalProperties"
    if said == "array" and not (isinstance(schema.get("items"), dict) and schema["items"]):
        yield "an array without one schema for its items"


def declared_names(parameters: dict[str, Any] | None) -> set[str]:
    """Return the arguments that the rendered declaration names."""
    if parameters is None:
        return set()
    if isinstance(parameters.get("oneOf"), list):
        schemas = [one for one in parameters["oneOf"] if isinstance(one, dict)]
    else:
        schemas = [parameters]
    names: set[str] = set()
    for schema in schemas:
        if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
            names.update(schema["properties"])
    return names
