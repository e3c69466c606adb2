"""OpenAI chat and fine-tuning rows -> conversations.

``{"messages": [{"role", "content", "thinking", "tool_calls", "weight"}], "tools": [...]}``: the
system (or developer) prompt becomes the developer's instructions, ``thinking`` (or
``reasoning_content``, ``reasoning``) the analysis channel, content beside a call a preamble in the
commentary channel, a call a message to ``functions.NAME``, everything else the final channel.

gpt-oss makes one call, stops at ``<|call|>`` and reads the result before it goes on. Parallel calls
are therefore laid out one after the other, each followed by its own result: what the model would
have seen when served. Calls side by side would put ``<|start|>assistant`` where a server puts the
result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import (
    BUILTIN_TOOLS,
    Conversation,
    Header,
    Message,
    check_structure,
    take_settings,
)
from gptoss_tune.harmony.fields import (
    MOST_NESTED,
    join_parts,
    kind,
    nested,
    shown,
    take_name,
    take_text,
    take_weight,
)
from gptoss_tune.harmony.tools import response_formats, take_tools

_THINKING_KEYS: Final = ("thinking", "reasoning_content", "reasoning")
_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")

_ANALYSIS = Header("assistant", channel="analysis")
_PREAMBLE = Header("assistant", channel="commentary")
_FINAL = Header("assistant", channel="final")


@dataclass(slots=True)
class _Call:
    id: str | None
    header: Header
    text: str
    weight: float
    result: str | None = None


def read_chat(row: dict[str, Any], source: str, *, complete: bool = True) -> Conversation:
    """Return the conversation of an OpenAI chat row.

    Args:
        row: The parsed row.
        source: ``file:line``, the start of every message about it.
        complete: False for a prompt that the assistant has not answered yet.

    Raises:
        DataError: The row cannot be trained on; the message says where and what to do.
    """
    conversation = Conversation(source)
    take_settings(row, conversation)
    take_tools(row, conversation)
    conversation.response_formats = response_formats(row.get("response_format"), source)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{source}: messages is {shown(messages)}; expected a list of messages")
    reader = _ChatReader(conversation)
    for index, message in enumerate(messages):
        reader.take(message, f"messages[{index}]", is_last=index == len(messages) - 1)
    reader.finish()
    check_structure(conversation, complete=complete)
    return conversation


class _ChatReader:
    """Walks over the messages and lays parallel calls out one by one."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.at = conversation.source
        self.calls: list[_Call] = []

    def take(self, message: object, where: str, *, is_last: bool) -> None:
        if not isinstance(message, dict):
            raise DataError(f"{self.at}: {where} is {kind(message)}; expected an object")
        role = message.get("role")
        if role not in _ROLES:
            raise DataError(
                f"{self.at}: {where}.role is {shown(role)}; expected one of {', '.join(_ROLES)}"
            )
        if role in ("tool", "function"):
            self._take_result(message, where)
            return
        self.finish(before=role)
        if role == "assistant":
            self._take_assistant(message, where, is_last=is_last)
        elif role == "user":
            name = message.get("name")
            header = Header(
                "user", name=None if name is None else take_name(name, self.at, f"{where}.name")
            )
            self._add(header, self._content(message, where), 0.0)
        else:
            self._take_instructions(message, where)

    def finish(self, before: str = "") -> None:
        """Lay out the calls collected so far, each with its result."""
        for index, call in enumerate(self.calls):
            self._add(call.header, call.text, call.weight)
            if call.result is not None:
                name = call.header.recipient
                channel = call.header.channel
                self._add(Header("tool", name, "assistant", channel), call.result, 0.0)
            elif before or index < len(self.calls) - 1:
                raise DataError(
                    f"{self.at}: the call {call.id or index + 1} of {call.header.recipient!r} has "
                    "no result; add a message of role 'tool' with its tool_call_id (gpt-oss "
                    "reads each result before it makes the next call)"
                )
        self.calls = []

    def _add(self, header: Header, text: str, weight: float) -> None:
        self.conversation.messages.append(Message(header, text, weight))

    def _content(self, message: dict[str, Any], where: str) -> str:
        return join_parts(message.get("content"), self.at, f"{where}.content")

    def _take_instructions(self, message: dict[str, Any], where: str) -> None:
        if self.conversation.messages:
            raise DataError(
                f"{self.at}: {where} has role {message['role']!r} in the middle of the "
                "conversation; gpt-oss reads its instructions at the start: move it there, or "
                "make it a message of the user"
            )
        text = self._content(message, where)
        known = self.conversation.instructions
        self.conversation.instructions = text if known is None else f"{known}\n\n{text}"

    def _take_assistant(self, message: dict[str, Any], where: str, *, is_last: bool) -> None:
        if message.get("name") is not None:
            raise DataError(
                f"{self.at}: {where}.name is {shown(message['name'])}; the server writes the "
                "assistant's header and knows no names: remove it"
            )
        weight = message.get("weight")
        weight = 1.0 if weight is None else take_weight(weight, self.at, f"{where}.weight")
        thinking = self._thinking(message, where)
        if thinking:
            self._add(_ANALYSIS, thinking, weight)
        content = message.get("content")
        text = "" if content is None else self._content(message, where)
        calls = self._calls(message, where, weight)
        if calls:
            if text:
                self._add(_PREAMBLE, text, weight)
            self.calls = calls
        elif text:
            self._add(_FINAL, text, weight)
        else:
            raise DataError(
                f"{self.at}: {where} of the assistant has neither content nor tool_calls (content "
                f"is {'null' if content is None else 'empty'}); add the reply, or remove the row"
            )

    def _thinking(self, message: dict[str, Any], where: str) -> str:
        found = [key for key in _THINKING_KEYS if message.get(key) is not None]
        texts = {take_text(message[key], self.at, f"{where}.{key}") for key in found}
        if len(texts) > 1:
            raise DataError(
                f"{self.at}: {where} has different texts in {' and '.join(found)}; keep one"
            )
        return texts.pop() if texts else ""

    def _calls(self, message: dict[str, Any], where: str, weight: float) -> list[_Call]:
        calls = message.get("tool_calls")
        legacy = message.get("function_call")
        if calls is not None and legacy is not None:
            raise DataError(f"{self.at}: {where} has tool_calls and function_call; keep tool_calls")
        if legacy is not None:
            return [self._call({"function": legacy}, f"{where}.function_call", weight)]
        if calls is None:
            return []
        if not isinstance(calls, list):
            raise DataError(f"{self.at}: {where}.tool_calls is {kind(calls)}; expected a list")
        read = [
            self._call(call, f"{where}.tool_calls[{index}]", weight)
            for index, call in enumerate(calls)
        ]
        ids = [call.id for call in read if call.id is not None]
        if len(set(ids)) < len(ids):
            raise DataError(f"{self.at}: {where}.tool_calls uses an id twice; make them different")
        return read

    def _call(self, call: object, where: str, weight: float) -> _Call:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict):
            raise DataError(
                f"{self.at}: {where} has no function; expected "
                '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
            )
        id_ = call.get("id")
        if id_ is not None:
            take_text(id_, self.at, f"{where}.id")
        name = function.get("name")
        arguments, parsed = self._arguments(function.get("arguments"), f"{where}.arguments")
        announced = {n for tool in self.conversation.builtin_tools for n in BUILTIN_TOOLS[tool]}
        if isinstance(name, str) and name in announced:
            if name == "python":
                arguments = take_text(parsed.get("code"), self.at, f"{where}.arguments.code")
            header = Header("assistant", None, name, "analysis", "code")
            return _Call(id_, header, arguments, weight)
        name = take_name(name, self.at, f"{where}.name")
        header = Header("assistant", None, f"functions.{name}", "commentary", "<|constrain|>json")
        return _Call(id_, header, arguments, weight)

    def _arguments(self, arguments: object, where: str) -> tuple[str, dict[str, Any]]:
        if isinstance(arguments, dict):
            if nested(arguments) > MOST_NESTED:
                raise DataError(f"{self.at}: {where} is nested over {MOST_NESTED} levels deep")
            text = json.dumps(arguments, ensure_ascii=False)
            return take_text(text, self.at, where), arguments
        text = take_text(arguments, self.at, where)
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(
                f"{self.at}: {where} is not JSON ({reason}): {shown(text)}; the model would learn "
                "to write broken calls"
            ) from None
        if not isinstance(parsed, dict):
            raise DataError(f"{self.at}: {where} is {kind(parsed)} in JSON; expected an object")
        return text, parsed

    def _take_result(self, message: dict[str, Any], where: str) -> None:
        id_, name = message.get("tool_call_id"), message.get("name")
        waiting = [call for call in self.calls if call.result is None]
        if id_ is not None:
            waiting = [call for call in waiting if call.id == id_]
        elif name is not None:
            waiting = [call for call in waiting if _called(call) == name]
        if not waiting:
            label = f"id {shown(id_)}" if id_ is not None else f"name {shown(name)}"
            raise DataError(
                f"{self.at}: {where} answers a call with {label} that is not open; give it the "
                "tool_call_id of a call before it that has no result yet"
            )
        if name is not None and _called(waiting[0]) != name:
            raise DataError(
                f"{self.at}: {where}.name is {shown(name)}, the call was of "
                f"{_called(waiting[0])!r}; make them equal"
            )
        waiting[0].result = self._content(message, where)


def _called(call: _Call) -> str:
    return (call.header.recipient or "").removeprefix("functions.")
