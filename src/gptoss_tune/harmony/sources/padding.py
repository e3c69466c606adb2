"""Null keys that a table put into a row: told from nulls that an author wrote, and left out.

A column of structs gives every row the keys of all rows, null where a row had none; written back
as JSON, a tool's schema has gained the parameters of every other tool, and a call their names.
Which null is padding is decided by the row itself:

* In a declaration or the schema of an answer, a key that is null is padding: JSON schema knows no
  such key. ``default`` and ``const`` may be null; they go where other nulls show that the
  declarations of this row were padded.
* In the arguments of a call, a null is padding where the tool declares no such parameter, or
  declares one that is neither required nor may be null. What may be null (its type or default says
  so, or no type that JSON schema has) stays, and so do all nulls of a call whose declaration is not
  understood, and a null inside an object whose keys are not declared.
* Arguments that are JSON text are what the author wrote; no table can pad them.

Looking at all rows of a file first was the alternative: a stream could not be read then, and one
row would change what another means.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.files.strict_json import parse
from gptoss_tune.harmony.conversation import BUILTIN_TOOLS
from gptoss_tune.harmony.declarations import (
    SCHEMA_KEYS,
    properties_by_name,
    required_names,
    shaped,
)
from gptoss_tune.harmony.sources.rows import Raw, parse_object

_MAY_BE_NULL: Final = ("default", "const")
_DATA: Final = (*_MAY_BE_NULL, "enum", "examples", "example")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SEVEN: Final = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_FURTHER: Final = (
    *("additionalProperties", "patternProperties", "unevaluatedProperties", "dependentSchemas"),
    *("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then", "else"),
)
"""Keywords by which an object can take what its own properties do not name."""
_BUILT_IN: Final = tuple(name for names in BUILTIN_TOOLS.values() for name in names)
_CONVERSATIONS: Final = (
    *("messages", "conversations", "prompt", "completion"),
    *("chosen", "rejected"),
)


def clean_row(raw: Raw, at: str) -> tuple[dict[str, Any], int]:
    """Return the row in what a source yielded, and how many null keys of padding it had.

    Raises:
        DataError: There is no row.
    """
    if isinstance(raw, DataError):
        raise raw
    if isinstance(raw, bytes):
        row = parse_object(raw, at)
        return without_padding(row) if b"null" in raw else (row, 0)
    return without_padding(raw)


def without_padding(row: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a row without the null keys that are padding, and how many they were."""
    cleaner = _Cleaner()
    try:
        return cleaner.row(row), cleaner.left_out
    except RecursionError:
        return row, 0  # nested deeper than any reader takes, which says so


class _Cleaner:
    """Cleans one row and counts what it leaves out."""

    def __init__(self) -> None:
        self.left_out = 0
        self.parameters: dict[str, dict[str, Any] | None] = {}
        """Schema of each tool's arguments, by its name; None where it is not understood."""

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        row = dict(row)
        for key in ("tools", "functions"):
            if row.get(key) is not None:
                row[key] = self._tools(row[key])
        answer = row.get("response_format")
        inner = answer.get("json_schema") if isinstance(answer, dict) else None
        if isinstance(answer, dict) and isinstance(inner, dict) and inner.get("schema"):
            cleaned = {**inner, "schema": self._declared(inner["schema"], _schema)}
            row["response_format"] = {**answer, "json_schema": cleaned}
        for key in _CONVERSATIONS:
            if isinstance(row.get(key), list):
                row[key] = [self._message(message) for message in row[key]]
            elif isinstance(row.get(key), dict):  # one message may stand without its list
                row[key] = self._message(row[key])
        return row

    def _tools(self, told: Any) -> Any:
        listed = _value(told)
        listed = [listed] if isinstance(listed, dict) else listed
        if not isinstance(listed, list):
            return told  # whoever reads it says what is wrong
        before = self.left_out
        cleaned = self._declared(listed, _declarations)
        for entry in map(_value, cleaned):
            function = entry.get("function", entry) if isinstance(entry, dict) else None
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                self.parameters[function["name"]] = _held(function)
        return cleaned if self.left_out > before or listed is told else told

    def _declared(self, value: Any, clean: Any) -> Any:
        """Clean once; where that finds padding, again without the defaults that are null."""
        found: list[str] = []
        cleaned = clean(value, found, padded=False)
        if found:
            found = []
            cleaned = clean(value, found, padded=True)
        self.left_out += len(found)
        return cleaned

    def _message(self, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        message = dict(message)
        if isinstance(message.get("content"), list):
            message["content"] = [self._block(block) for block in message["content"]]
        if message.get("tools") is not None:
            message["tools"] = self._tools(message["tools"])
        legacy = message.get("function_call")
        if isinstance(legacy, dict):
            if all(value is None for value in legacy.values()):
                self.left_out += len(legacy)
                del message["function_call"]
            else:
                message["function_call"] = self._call(legacy)
        if isinstance(message.get("tool_calls"), list):
            message["tool_calls"] = [
                {**call, "function": self._call(call["function"])}
                if isinstance(call, dict) and isinstance(call.get("function"), dict)
                else self._call(call)
                for call in message["tool_calls"]
            ]
        return message

    def _block(self, block: Any) -> Any:
        """Harmony's own developer content declares tools by namespace."""
        namespaces = block.get("tools") if isinstance(block, dict) else None
        if not isinstance(namespaces, dict):
            return block
        cleaned = {
            name: {**namespace, "tools": self._tools(namespace["tools"])}
            if isinstance(namespace, dict) and isinstance(namespace.get("tools"), list)
            else namespace
            for name, namespace in namespaces.items()
        }
        return {**block, "tools": cleaned}

    def _call(self, function: Any) -> Any:
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
            return function
        name = function.get("name")
        if name in _BUILT_IN and name not in self.parameters:  # none of theirs can be null
            kept = {key: item for key, item in function["arguments"].items() if item is not None}
            self.left_out += len(function["arguments"]) - len(kept)
            return {**function, "arguments": kept}
        if not isinstance(name, str) or name not in self.parameters:
            return function  # a call of an undeclared tool is refused by its reader
        schema = self.parameters[name]
        if schema is None:
            return function
        return {**function, "arguments": self._arguments(function["arguments"], schema)}

    def _arguments(self, value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        if schema.get("properties") is None:
            schema = {**schema, "properties": {}}
        try:
            declared, required = properties_by_name(schema, "", ""), required_names(schema, "", "")
        except DataError:
            return value
        others = any(_takes_others(schema.get(key)) for key in _FURTHER)
        kept: dict[str, Any] = {}
        for key, item in value.items():
            known = key in declared
            allowed = _admits_null(declared[key]) if known else others
            if item is None and key not in required and not allowed:
                self.left_out += 1
                continue
            kept[key] = self._nested(item, declared[key]) if known else item
        return kept

    def _nested(self, value: Any, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return value
        if isinstance(value, list):
            return [self._nested(item, schema.get("items")) for item in value]
        if isinstance(value, dict) and schema.get("properties") is not None:
            return self._arguments(value, schema)
        return value


def _value(told: Any) -> Any:
    """Return what a text of JSON holds, None where it is none; anything else as it is."""
    if not isinstance(told, str):
        return told
    try:
        return parse(told.encode("utf-8", "surrogatepass"))
    except ValueError:
        return None


def _held(function: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a tool's arguments, empty without any; None: it is not understood."""
    held = [function[key] for key in SCHEMA_KEYS if function.get(key) is not None]
    if len(held) > 1:
        return None
    try:
        return (shaped(held[0], "", "") or {}) if held else {}
    except DataError:
        return None


def _takes_others(said: Any) -> bool:
    """Whether a keyword lets an object have further keys; choices of what is required do not."""
    if isinstance(said, list):
        return any(not isinstance(one, dict) or one.keys() - {"required"} for one in said)
    return said is not None and said is not False


def _admits_null(schema: Any) -> bool:
    """Return whether a parameter may be null; one whose schema does not clearly say may."""
    if not isinstance(schema, dict) or schema.get("nullable") not in (None, False):
        return True
    if any(key in schema and schema[key] is None for key in _MAY_BE_NULL):
        return True
    said = schema.get("type")
    types = said if isinstance(said, list) else [] if said is None else [said]
    if not all(isinstance(one, str) and one in _SEVEN for one in types):
        return True  # Optional[str], str | None, any, and whatever else programs write
    if isinstance(schema.get("enum"), list):
        return None in schema["enum"]
    if types:
        return "null" in types
    options = schema.get("anyOf") or schema.get("oneOf")
    return not isinstance(options, list) or any(map(_admits_null, options))


def _declarations(listed: list[Any], found: list[str], *, padded: bool) -> list[Any]:
    cleaned: list[Any] = []
    for entry in listed:
        function = entry.get("function") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and isinstance(function, dict):
            cleaned.append({**entry, "function": _declaration(function, found, padded=padded)})
        else:
            cleaned.append(_declaration(entry, found, padded=padded))
    return cleaned


def _declaration(function: Any, found: list[str], *, padded: bool) -> Any:
    if not isinstance(function, dict):
        return function
    return {
        key: _schema(value, found, padded=padded) if key in SCHEMA_KEYS else value
        for key, value in function.items()
    }


def _schema(schema: Any, found: list[str], *, padded: bool) -> Any:
    """Return a schema without its null keys; ``found`` gets their names."""
    if isinstance(schema, list):
        return [_schema(item, found, padded=padded) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if value is None:
            if key in _MAY_BE_NULL and not padded:
                kept[key] = value
            else:
                found.append(key)
        elif key in _NAMED and isinstance(value, dict):
            kept[key] = _named(value, found, padded=padded)
        elif key in _DATA:
            kept[key] = value
        else:
            kept[key] = _schema(value, found, padded=padded)
    return kept


def _named(schemas: dict[str, Any], found: list[str], *, padded: bool) -> dict[str, Any]:
    """Names may be those of keywords; a schema of nulls alone was a row without that name."""
    kept: dict[str, Any] = {}
    for name, schema in schemas.items():
        is_null = schema is None or (
            isinstance(schema, dict)
            and len(schema) > 0
            and all(value is None for value in schema.values())
        )
        if is_null:
            found.append(name)
        else:
            kept[name] = _schema(schema, found, padded=padded)
    return kept
