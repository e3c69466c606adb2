"""Rows in harmony's own shape -> conversations.

Each message says its channel, recipient and content type, as ``openai_harmony.Message.to_dict``
writes them: what a served gpt-oss produced can be trained on as it is. A message of the system
holds ``system_content``, one of the developer ``developer_content``, or plain text for the
instructions.

The recipe fixes the date, and identity and cutoff stay as released, so a row that says otherwise is
refused rather than overruled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, get_args

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import (
    BUILTIN_TOOLS,
    CHANNELS,
    CONTENT_TYPES,
    IDENTITY,
    KNOWLEDGE_CUTOFF,
    Conversation,
    Header,
    Message,
    Role,
    add_builtin_tools,
)
from gptoss_tune.harmony.fields import (
    join_parts,
    kind,
    parse_json,
    shown,
    take_effort,
    take_name,
    take_text,
)
from gptoss_tune.harmony.formats.finish import finish
from gptoss_tune.harmony.formats.keys import (
    note_message_keys,
    note_weight_of_others,
    split_thinking_parts,
    take_message_weight,
)
from gptoss_tune.harmony.formats.row_settings import read_settings
from gptoss_tune.harmony.formats.sharegpt import list_of_messages
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.harmony.tools import add_tools, read_tool

NATIVE_KEYS: Final = ("channel", "recipient", "content_type", "author")
"""A message with one of these is harmony's own."""

_ROLES: Final = ("system", *get_args(Role))


def is_native(messages: object) -> bool:
    """Return whether messages are in harmony's own shape."""
    if not isinstance(messages, list):
        return False
    for message in messages:
        if not isinstance(message, dict):
            continue
        for key in NATIVE_KEYS:
            if message.get(key) is not None:
                return True
        content = message.get("content")
        if isinstance(content, list) and any(
            isinstance(part, dict) and part.get("type") in ("system_content", "developer_content")
            for part in content
        ):
            return True
    return False


def read_native(
    row: dict[str, Any],
    source: str,
    *,
    complete: bool = True,
    reading: ReadSettings = AS_IT_STANDS,
    places: Sequence[str] = (),
) -> Conversation:
    """Return the conversation of a row whose messages name their channels.

    Args:
        row: The parsed row.
        source: ``file:line``, the start of every message about it.
        complete: False for a prompt that the assistant has not answered yet.
        reading: How the recipe has rows read.
        places: Where each message stands, when other columns than ``messages`` hold them.

    Raises:
        DataError: The row cannot be trained on; the message says where and what to do.
    """
    conversation = Conversation(source, reading=reading)
    column, messages = list_of_messages(row, source)
    read_settings(row, column, conversation)
    for index, message in enumerate(messages):
        where = places[index] if places else f"{column}[{index}]"
        if not isinstance(message, dict):
            raise DataError(f"{source}: {where} is {kind(message)}; expected an object")
        role, name = _author(message, conversation, where)
        note_message_keys(message, role, conversation)
        if role == "assistant":
            _take_assistant(conversation, message, name, where)
            continue
        note_weight_of_others(message, role, where, conversation)
        if role in ("system", "developer"):
            _take_block(conversation, message, role, where)
            add_tools(conversation, message.get("tools"), f"{where}.tools")
        else:
            _take_other(conversation, message, role, name, where)
    return finish(conversation, complete=complete)


def _author(message: dict[str, Any], conversation: Conversation, where: str) -> tuple[str, object]:
    author = message.get("author")
    holder = author if isinstance(author, dict) else message
    role = conversation.reading.role(holder.get("role"))
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(
            f"{conversation.source}: {where}.role is {shown(role)}; expected one of "
            f"{', '.join(_ROLES)}"
        )
    return role, holder.get("name")


def _take_assistant(
    conversation: Conversation, message: dict[str, Any], name: object, where: str
) -> None:
    at = conversation.source
    if name is not None:
        raise DataError(
            f"{at}: {where}.name is {shown(name)}; the server writes the assistant's header and "
            "knows no names: remove it"
        )
    channel = message.get("channel")
    if channel not in CHANNELS:
        raise DataError(
            f"{at}: {where}.channel is {shown(channel)}; the assistant's messages need one of "
            f"{', '.join(CHANNELS)}"
        )
    unread = [key for key in ("tool_calls", "function_call", "refusal") if message.get(key)]
    if unread:
        raise DataError(
            f"{at}: {where} has a channel and {' and '.join(unread)}; write it as a message of its "
            "own with channel, recipient and content, or leave all channels out"
        )
    recipient = message.get("recipient")
    if recipient == "all":
        recipient = None
    if recipient is not None and channel == "final":
        raise DataError(
            f"{at}: {where} is a call in channel 'final'; calls of functions go to 'commentary', "
            "of built-in tools to 'analysis'"
        )
    if recipient is not None:
        recipient = take_text(recipient, at, f"{where}.recipient")
    weight = take_message_weight(message, at, where)
    recipient = _renamed(recipient, conversation)
    header = Header("assistant", None, recipient, channel, _content_type(message, at, where))
    thinking, message = split_thinking_parts(message, at, where)
    if channel == "analysis" and recipient is None and thinking:
        text = "" if message.get("content") is None else _content(message, at, where)
        if text and text != thinking:
            raise DataError(f"{at}: {where} has different texts in content and thinking; keep one")
        text = thinking
    else:
        text = _content(message, at, where)
        if thinking:
            before = Message(Header("assistant", channel="analysis"), thinking, weight)
            conversation.messages.append(before)
    if recipient is not None and recipient.split(".")[0] not in BUILTIN_TOOLS:
        arguments = parse_json(text, at, f"{where}.content")
        if not isinstance(arguments, dict):
            raise DataError(
                f"{at}: {where}.content is {kind(arguments)} in JSON; expected an object, the "
                "arguments of the call"
            )
    conversation.messages.append(Message(header, text, weight))


def _content(message: dict[str, Any], at: str, where: str) -> str:
    return join_parts(message.get("content"), at, f"{where}.content")


def _renamed(recipient: str | None, conversation: Conversation) -> str | None:
    """Return the recipient of a call under the name that the recipe gives to the tool."""
    if recipient is None or not conversation.reading.tool_names:
        return recipient
    namespace, _, name = recipient.partition(".")
    if namespace in BUILTIN_TOOLS or not name:
        return recipient
    return f"{namespace}.{conversation.reading.tool_name(name)}"


def _take_other(
    conversation: Conversation, message: dict[str, Any], role: str, name: object, where: str
) -> None:
    at = conversation.source
    content_type = _content_type(message, at, where)
    text = _content(message, at, where)
    if role == "tool":
        before = conversation.messages[-1] if conversation.messages else None
        called = before.header if before is not None and before.is_call else None
        name = _renamed(take_text(name, at, f"{where}.name"), conversation)
        channel = message.get("channel") or (called.channel if called else "commentary")
        recipient = message.get("recipient") or "assistant"
        if channel not in ("analysis", "commentary") or recipient != "assistant":
            raise DataError(
                f"{at}: {where} has channel {shown(channel)} and recipient {shown(recipient)}; a "
                "tool answers 'assistant' in the channel of the call"
            )
        if called is None or called.recipient != name:
            raise DataError(
                f"{at}: {where} is a result of {shown(name)} that follows no call of it; put it "
                "after the assistant's call, or remove it"
            )
        header = Header("tool", name, "assistant", channel, content_type)
    else:
        if message.get("channel") is not None or message.get("recipient") is not None:
            raise DataError(
                f"{at}: {where} of the user has a channel or recipient; only the assistant and "
                "the tools have them: remove it"
            )
        checked = None if name is None else take_name(name, at, f"{where}.name")
        header = Header("user", checked, None, None, content_type)
    conversation.messages.append(Message(header, text, 0.0))


def _content_type(message: dict[str, Any], at: str, where: str) -> str | None:
    content_type = message.get("content_type")
    if content_type is not None and content_type not in CONTENT_TYPES:
        raise DataError(
            f"{at}: {where}.content_type is {shown(content_type)}; expected one of "
            f"{', '.join(CONTENT_TYPES)}, or none"
        )
    return content_type


def _take_block(conversation: Conversation, message: dict[str, Any], role: str, where: str) -> None:
    at = conversation.source
    content = message.get("content")
    blocks = content if isinstance(content, list) else [content]
    structured = f"{role}_content"
    for index, block in enumerate(blocks):
        here = f"{where}.content[{index}]"
        if isinstance(block, dict) and block.get("type") == structured:
            if conversation.messages:
                raise DataError(
                    f"{at}: {here} stands in the middle of the conversation; put it at the start"
                )
            if role == "system":
                _take_system_content(conversation, block, here)
            else:
                _take_developer_content(conversation, block, here)
        else:
            part = [block] if isinstance(content, list) else block
            conversation.add_instructions(join_parts(part, at, here))


def _take_system_content(conversation: Conversation, block: dict[str, Any], where: str) -> None:
    at = conversation.source
    fixed = {
        "model_identity": (IDENTITY, "the identity stays as released; write it as instructions"),
        "knowledge_cutoff": (KNOWLEDGE_CUTOFF, "the cutoff stays as released; remove it"),
        "conversation_start_date": (None, "the recipe fixes the date (data.date); remove it"),
    }
    for key, (expected, todo) in fixed.items():
        if block.get(key) is not None and block[key] != expected:
            raise DataError(f"{at}: {where}.{key} is {shown(block[key])}; {todo}")
    channels = block.get("channel_config")
    if channels is not None:
        valid = channels.get("valid_channels") if isinstance(channels, dict) else None
        if valid != list(CHANNELS):
            raise DataError(f"{at}: {where}.channel_config is not {list(CHANNELS)}; remove it")
    if block.get("reasoning_effort") is not None:
        conversation.effort = take_effort(block["reasoning_effort"], at)
    tools = block.get("tools")
    if tools is not None:
        if not isinstance(tools, dict):
            raise DataError(f"{at}: {where}.tools is {kind(tools)}; expected an object")
        add_builtin_tools(conversation, list(tools))


def _take_developer_content(conversation: Conversation, block: dict[str, Any], where: str) -> None:
    at = conversation.source
    if block.get("instructions") is not None:
        text = take_text(block["instructions"], at, f"{where}.instructions")
        conversation.add_instructions(text)
    tools = block.get("tools")
    if tools is None:
        return
    if not isinstance(tools, dict):
        raise DataError(f"{at}: {where}.tools is {kind(tools)}; expected namespaces of tools")
    for namespace, content in tools.items():
        here = f"{where}.tools.{shown(namespace)}"
        take_name(namespace, at, here)
        if namespace in BUILTIN_TOOLS:
            raise DataError(
                f"{at}: {here} has the name of a built-in tool, whose calls are no JSON; announce "
                "the built-in tool in builtin_tools, or give the namespace another name"
            )
        listed = content.get("tools") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(listed, list):
            raise DataError(f"{at}: {here} has no list of tools; expected {{'tools': [...]}}")
        read = [
            read_tool(tool, conversation, f"{here}.tools[{i}]") for i, tool in enumerate(listed)
        ]
        conversation.namespaces[namespace] = {"name": namespace, "tools": read}
        if content.get("description") is not None:
            described = take_text(content["description"], at, f"{here}.description")
            conversation.namespaces[namespace]["description"] = described
