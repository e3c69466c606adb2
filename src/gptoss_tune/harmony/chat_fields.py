"""A conversation as the fields of a chat request: the way back from harmony's messages.

Thought, preamble and call of a turn become one message of the assistant, as OpenAI's chat API and
the rows of training have them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, Message

_FUNCTIONS: Final = "functions."
_INSTRUCTIONS: Final = "# Instructions\n\n"
_FORMAT: Final = re.compile(
    r"# Response Formats\n\n## (?P<name>[^\n]+)\n\n?(?P<about>(?:// ?[^\n]*\n)*)(?P<schema>.+)",
    re.DOTALL,
)


def chat_fields(conversation: Conversation) -> dict[str, Any]:
    """Return ``messages``, and ``tools`` and ``response_format`` where there are any.

    A thought that no answer and no call follows has no message to stand in and is left out.

    Raises:
        DataError: The answer format is not one of a chat API.
    """
    messages = _Messages()
    if conversation.instructions is not None:
        messages.made.append({"role": "developer", "content": conversation.instructions})
    for message in conversation.messages:
        messages.take(message)
    messages.end_turn()
    chat: dict[str, Any] = {"messages": messages.made}
    functions = conversation.namespaces.get("functions", {}).get("tools", ())
    if functions:
        chat["tools"] = [{"type": "function", "function": dict(tool)} for tool in functions]
    if conversation.response_formats is not None:
        chat["response_format"] = _response_format(conversation.response_formats)
    return chat


def _response_format(section: str) -> dict[str, Any]:
    match = _FORMAT.fullmatch(section)
    if match is None:
        raise DataError(f"the answer format {section[:40]!r} is not one of a chat API")
    described = [line[2:].removeprefix(" ") for line in match["about"].splitlines()]
    inner: dict[str, Any] = {"name": match["name"], "schema": json.loads(match["schema"])}
    if described:
        inner["description"] = "\n".join(described)
    return {"type": "json_schema", "json_schema": inner}


@dataclass
class _Messages:
    """Lays harmony's messages together: thought, preamble and call of a turn are one message."""

    made: list[dict[str, Any]] = field(default_factory=list)
    _thought: list[str] = field(default_factory=list)
    _preamble: list[str] = field(default_factory=list)
    _called: str = ""

    def take(self, message: Message) -> None:
        """Add one message."""
        header, text = message.header, message.text
        if header.role == "assistant":
            self._take_assistant(message)
            return
        self.end_turn()
        if header.role == "tool":
            self.made.append({"role": "tool", "tool_call_id": self._called, "content": text})
        elif header.role == "developer":
            instructions = text.removeprefix(_INSTRUCTIONS)
            self.made.append({"role": "developer", "content": instructions})
        else:
            name = {} if header.name is None else {"name": header.name}
            self.made.append({"role": "user", "content": text, **name})

    def end_turn(self) -> None:
        """Say a preamble that nothing followed; a thought alone goes no further."""
        if self._preamble:
            self._say(_joined(self._preamble))
        self._thought, self._preamble = [], []

    def _take_assistant(self, message: Message) -> None:
        header, text = message.header, message.text
        if header.recipient is not None:
            self._called = f"call_{len(self.made)}"
            function = {"name": header.recipient.removeprefix(_FUNCTIONS), "arguments": text}
            call = {"id": self._called, "type": "function", "function": function}
            self._say(_joined(self._preamble) or None, tool_calls=[call])
        elif header.channel == "analysis":
            self._thought.append(text)
        elif header.channel == "commentary":
            self._preamble.append(text)
        else:
            self._say(_joined([*self._preamble, text]))

    def _say(self, content: str | None, **more: Any) -> None:
        thought = _joined(self._thought)
        # As templates of gpt-oss name it, and as vLLM and transformers do.
        thinking = {"thinking": thought, "reasoning_content": thought} if thought else {}
        self.made.append({"role": "assistant", "content": content, **thinking, **more})
        self._thought, self._preamble = [], []


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(texts)
