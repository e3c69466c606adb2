"""The system and developer message: declared tools, answer formats, instructions.

Declarations become openai-harmony's JSON, which the library turns into the TypeScript-like text
that gpt-oss was trained on. An answer format has no class in the library: its section ends the
developer message, as the harmony guide lays it out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import (
    BUILTIN_TOOLS,
    CHANNELS,
    IDENTITY,
    KNOWLEDGE_CUTOFF,
    Conversation,
    add_builtin_tools,
)
from gptoss_tune.harmony.declarations import SCHEMA_KEYS, lost_parts, read_parameters
from gptoss_tune.harmony.fields import (
    MOST_NESTED,
    Effort,
    kind,
    nested,
    parse_json,
    shown,
    take_listed,
    take_name,
    take_text,
)

_DECLARATION_KEYS: Final = frozenset({"type", "function", "name", "description", "strict"})


def take_tools(row: dict[str, Any], conversation: Conversation) -> None:
    """Read ``tools`` (or the older ``functions``) into the conversation's namespaces.

    Raises:
        DataError: A declaration that is not a function's, or two of one name.
    """
    key = "tools" if row.get("tools") is not None else "functions"
    add_tools(conversation, row.get(key), key)


def add_tools(conversation: Conversation, value: object, where: str) -> None:
    """Add declared functions to those of the conversation; the very same once more say nothing.

    Tables hold lists as JSON text, a list of JSON texts, or one declaration without its list.

    Raises:
        DataError: A declaration that is not a function's, or two of one name.
    """
    at = conversation.source
    listed = take_listed(value, at, where)
    if listed is None:
        return
    if isinstance(listed, dict) and ("name" in listed or "function" in listed):
        listed = [listed]
    if not isinstance(listed, list):
        raise DataError(f"{at}: {where} is {kind(listed)}; expected a list of declarations")
    functions = conversation.namespaces.get("functions", {}).get("tools", [])
    tools: list[dict[str, Any]] = []
    for index, entry in enumerate(listed):
        here = f"{where}[{index}]"
        read = take_listed(entry, at, here)
        if isinstance(read, dict) and read.get("type") in tuple(BUILTIN_TOOLS):
            add_builtin_tools(conversation, [read["type"]])
            continue
        tools.append(read_tool(read, conversation, here))
    tools = [tool for tool in tools if tool not in functions] if functions else tools
    names = [tool["name"] for tool in [*functions, *tools]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{at}: the tool {twice!r} is declared twice; keep one declaration")
    if tools:
        conversation.namespaces["functions"] = {"name": "functions", "tools": [*functions, *tools]}


def read_tool(entry: object, conversation: Conversation, where: str) -> dict[str, Any]:
    """Return one function declaration as openai-harmony's JSON.

    Raises:
        DataError: It has no usable name, description or JSON schema.
    """
    at = conversation.source
    function = entry.get("function", entry) if isinstance(entry, dict) else entry
    if not isinstance(function, dict):
        raise DataError(f"{at}: {where} is {kind(function)}; expected a function declaration")
    name = take_name(conversation.reading.tool_name(function.get("name")), at, f"{where}.name")
    description = function.get("description")
    tool: dict[str, Any] = {
        "name": name,
        "description": ""
        if description is None
        else take_text(description, at, f"{where}.description"),
    }
    held = [key for key in SCHEMA_KEYS if function.get(key) is not None]
    if len(held) > 1:
        raise DataError(f"{at}: {where} has a schema in {' and '.join(held)}; keep one")
    if held:
        here = f"{where}.{held[0]}"
        parameters = read_parameters(function[held[0]], at, here)
        if parameters is not None:
            take_text(json.dumps(parameters, ensure_ascii=False), at, here)
            tool["parameters"] = parameters
    _note_declaration(function, held, tool.get("parameters"), conversation)
    return tool


def _note_declaration(
    function: dict[str, Any],
    held: list[str],
    parameters: dict[str, Any] | None,
    conversation: Conversation,
) -> None:
    unread = sorted(
        key
        for key, value in function.items()
        if key not in _DECLARATION_KEYS and key not in held and value
    )
    for key in unread:
        if key not in conversation.reading.ignored_keys:
            conversation.notes.warnings[
                f"the key {shown(key)} of a tool's declaration is not read; remove it, or name "
                "it in data.ignored_keys"
            ] += 1
    if parameters is None:
        return
    told = function[held[0]] if held else None
    if isinstance(told, str):
        told = parse_json(told, conversation.source, held[0])
    if held and parameters != told:
        conversation.notes.remarks[
            "a declaration's parameters were no JSON schema and are translated; declare the same "
            "when you serve"
        ] += 1
    for lost in sorted(lost_parts(parameters)):
        conversation.notes.remarks[
            f"a declaration has {lost}, which openai-harmony leaves out or renders as any, here "
            "and on servers"
        ] += 1


def response_formats(response_format: object, at: str) -> str | None:
    """Return the developer message's section for a JSON schema that the answer must follow.

    Raises:
        DataError: It is not OpenAI's ``{"type": "json_schema", "json_schema": {...}}``.
    """
    if response_format is None or response_format == {"type": "text"}:
        return None
    inner = response_format.get("json_schema") if isinstance(response_format, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
        raise DataError(
            f"{at}: response_format is not understood; expected "
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
        )
    if nested(inner["schema"]) > MOST_NESTED:
        raise DataError(f"{at}: response_format is nested over {MOST_NESTED} levels deep")
    name = take_name(inner.get("name"), at, "response_format.json_schema.name")
    lines = ["# Response Formats", "", f"## {name}", ""]
    if inner.get("description") is not None:
        described = take_text(inner["description"], at, "response_format.json_schema.description")
        lines += [f"// {line}" for line in described.splitlines()]
    schema = json.dumps(inner["schema"], ensure_ascii=False, separators=(",", ":"))
    lines.append(take_text(schema, at, "response_format.json_schema.schema"))
    return "\n".join(lines)


def system_content(effort: Effort, date: str, builtin_tools: Sequence[str]) -> dict[str, Any]:
    """Return openai-harmony's JSON of the system message, identity and cutoff as released."""
    content: dict[str, Any] = {
        "type": "system_content",
        "model_identity": IDENTITY,
        "reasoning_effort": effort.capitalize(),
        "conversation_start_date": date,
        "knowledge_cutoff": KNOWLEDGE_CUTOFF,
        "channel_config": {"valid_channels": list(CHANNELS), "channel_required": True},
    }
    if builtin_tools:
        content["tools"] = {name: _builtin_namespace(name) for name in builtin_tools}
    return content


def developer_text(conversation: Conversation, tools: str) -> str:
    """Return the text of the developer message, empty for none.

    The library joins the sections with empty lines and tokenises the whole, so that is done here;
    only the section of the tools, ``tools``, is the library's own text.
    """
    sections: list[str] = []
    if conversation.instructions is not None and conversation.instructions.strip():
        sections += ["# Instructions", conversation.instructions]
    if tools:
        sections.append(tools)
    if conversation.response_formats is not None:
        sections.append(conversation.response_formats)
    return "\n\n".join(sections)


@lru_cache(maxsize=len(BUILTIN_TOOLS))
def _builtin_namespace(name: str) -> dict[str, Any]:
    from openai_harmony import ToolNamespaceConfig

    factory = {"browser": ToolNamespaceConfig.browser, "python": ToolNamespaceConfig.python}
    return factory[name]().model_dump(exclude_none=True)
