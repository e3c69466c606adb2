"""OpenAI chat and fine-tuning rows -> conversations.

``{"messages": [{"role", "content", "thinking", "tool_calls", "weight"}], "tools": [...]}``: the
system (or developer) prompt becomes the developer's instructions, ``thinking`` (or
``reasoning_content``, ``reasoning``) the analysis channel, content beside a call a preamble in the
commentary channel, a call a message to ``functions.NAME``, everything else the final channel.
ShareGPT's ``conversations`` are the same messages in other spellings (``sharegpt.py``).

gpt-oss makes one call, stops at ``<|call|>`` and reads the result before it goes on. Parallel calls
are therefore laid out one after the other, each followed by its own result: what the model would
have seen when served. Calls that one turn spreads over several messages are parallel calls too.
Calls side by side would put ``<|start|>assistant`` where a server puts the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import (
    BUILTIN_TOOLS,
    Conversation,
    Header,
    Message,
)
from gptoss_tune.harmony.fields import (
    MOST_NESTED,
    join_parts,
    kind,
    nested,
    parse_json,
    shown,
    take_listed,
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
from gptoss_tune.harmony.formats.sharegpt import as_chat_message, list_of_messages
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.harmony.tools import add_tools

_ANALYSIS: Final = Header("assistant", channel="analysis")
_PREAMBLE: Final = Header("assistant", channel="commentary")
_FINAL: Final = Header("assistant", channel="final")


@dataclass(slots=True)
class _Call:
    """A call, what the assistant said before it, and its result once it is there."""

    id: str | None
    header: Header
    text: str
    weight: float
    result: str | None = None
    before: list[Message] = field(default_factory=list)


def read_chat(
    row: dict[str, Any],
    source: str,
    *,
    complete: bool = True,
    reading: ReadSettings = AS_IT_STANDS,
    places: Sequence[str] = (),
) -> Conversation:
    """Return the conversation of an OpenAI chat row, or of ShareGPT's.

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
    reader = _ChatReader(conversation)
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        where = places[index] if places else f"{column}[{index}]"
        reader.take(message, where, is_last=is_last)
    reader.finish()
    return finish(conversation, complete=complete)


class _ChatReader:
    """Walks over the messages and lays parallel calls out one by one."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.at = conversation.source
        self.calls: list[_Call] = []

    def take(self, message: object, where: str, *, is_last: bool) -> None:
        role, message = as_chat_message(message, self.conversation.reading, self.at, where)
        note_message_keys(message, role, self.conversation)
        if role == "assistant":
            self._take_assistant(message, where, is_last=is_last)
            return
        note_weight_of_others(message, role, where, self.conversation)
        if role == "tool":
            self._take_result(message, where)
            return
        self.finish(before=role)
        if role == "user":
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
            self.conversation.messages += call.before
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
        if message.get("content") is not None:
            self.conversation.add_instructions(self._content(message, where))
        add_tools(self.conversation, message.get("tools"), f"{where}.tools")

    def _take_assistant(self, message: dict[str, Any], where: str, *, is_last: bool) -> None:
        if message.get("name") is not None:
            raise DataError(
                f"{self.at}: {where}.name is {shown(message['name'])}; the server writes the "
                "assistant's header and knows no names: remove it"
            )
        weight = take_message_weight(message, self.at, where)
        thinking, message = split_thinking_parts(message, self.at, where)
        text = self._said(message, where)
        calls = self._calls(message, where, weight)
        if not (calls and any(call.result is None for call in self.calls)):
            self.finish(before="assistant")
        said = [Message(_ANALYSIS, thinking, weight)] if thinking else []
        if calls:
            said += [Message(_PREAMBLE, text, weight)] if text else []
            calls[0].before = said
            self.calls += calls
            self._refuse_equal_ids(where)
            return
        if not text and (is_last or not thinking):
            content = message.get("content")
            raise DataError(
                f"{self.at}: {where} of the assistant has neither content nor tool_calls (content "
                f"is {'null' if content is None else 'empty'}); add the reply, or remove the row"
            )
        said += [Message(_FINAL, text, weight)] if text else []
        self.conversation.messages += said

    def _said(self, message: dict[str, Any], where: str) -> str:
        """Return the content, or the refusal in its place, which is an answer like any other."""
        content, refusal = message.get("content"), message.get("refusal")
        if isinstance(content, list):
            here = f"{where}.content"
            content = [
                {"type": "text", "text": take_text(part.get("refusal"), self.at, here)}
                if isinstance(part, dict) and part.get("type") == "refusal"
                else part
                for part in content
            ]
        text = "" if content is None else join_parts(content, self.at, f"{where}.content")
        refused = "" if refusal is None else take_text(refusal, self.at, f"{where}.refusal")
        if text and refused and text != refused:
            raise DataError(f"{self.at}: {where} has content and a refusal; keep one")
        return text or refused

    def _calls(self, message: dict[str, Any], where: str, weight: float) -> list[_Call]:
        calls = take_listed(message.get("tool_calls"), self.at, f"{where}.tool_calls")
        legacy = message.get("function_call")
        if calls and legacy is not None:
            raise DataError(f"{self.at}: {where} has tool_calls and function_call; keep tool_calls")
        if legacy is not None:
            return [self._call({"function": legacy}, f"{where}.function_call", weight)]
        if calls is None:
            return []
        if not isinstance(calls, list):
            raise DataError(f"{self.at}: {where}.tool_calls is {kind(calls)}; expected a list")
        return [
            self._call(call, f"{where}.tool_calls[{index}]", weight)
            for index, call in enumerate(calls)
        ]

    def _refuse_equal_ids(self, where: str) -> None:
        ids = [call.id for call in self.calls if call.id is not None]
        if len(set(ids)) < len(ids):
            raise DataError(f"{self.at}: {where}.tool_calls uses an id twice; make them different")

    def _call(self, call: object, where: str, weight: float) -> _Call:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(call, dict) and function is None and isinstance(call.get("name"), str):
            function = call
        if not isinstance(call, dict) or not isinstance(function, dict):
            raise DataError(
                f"{self.at}: {where} has no function; expected "
                '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
            )
        id_ = call.get("id")
        if id_ is not None:
            take_text(id_, self.at, f"{where}.id")
        name = self.conversation.reading.tool_name(function.get("name"))
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
            try:
                text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            except ValueError:
                raise DataError(
                    f"{self.at}: {where} holds a number that JSON does not have; write null or text"
                ) from None
            return take_text(text, self.at, where), arguments
        text = take_text(arguments, self.at, where)
        try:
            parsed = parse_json(text, self.at, where)
        except DataError as error:
            raise DataError(f"{error}; the model would learn to write broken calls") from None
        if not isinstance(parsed, dict):
            raise DataError(f"{self.at}: {where} is {kind(parsed)} in JSON; expected an object")
        return text, parsed

    def _take_result(self, message: dict[str, Any], where: str) -> None:
        id_ = message.get("tool_call_id")
        name = self.conversation.reading.tool_name(message.get("name"))
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
