"""A question as the messages of a chat API, from the conversation that its ids were rendered from.

The way back is the proof: what is made here is read by the reader of training and rendered again,
and must give the very ids that models in process are asked with. A question for which it does not
cannot be put to a server, and is refused instead of asked otherwise. Left to the server is what its
own template decides: above all the date, which is today's there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.harmony.conversation import Conversation, Message
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.render import Renderer

_FUNCTIONS: Final = "functions."
_INSTRUCTIONS: Final = "# Instructions\n\n"
_FORMAT: Final = re.compile(
    r"# Response Formats\n\n## (?P<name>[^\n]+)\n\n?(?P<about>(?:// ?[^\n]*\n)*)(?P<schema>.+)",
    re.DOTALL,
)


def as_chat(question: Question, renderer: Renderer) -> dict[str, Any]:
    """Return the fields of a chat request that ask a question.

    ``messages``, ``reasoning_effort``, and ``tools`` and ``response_format`` where there are any.

    Args:
        question: What is asked.
        renderer: The one that made its ids.

    Raises:
        DataError: A chat API cannot be asked the same: built-in tools, or an order of messages that
            only harmony has.
    """
    conversation = question.conversation
    if conversation.builtin_tools:
        raise DataError(
            f"{question.source}: announces the built-in tools "
            f"{', '.join(conversation.builtin_tools)}, which a chat API has no field for; ask "
            "models in process, or leave the row out"
        )
    chat = _fields(conversation) | {"reasoning_effort": question.effort}
    try:
        again = renderer.render_prompt(read_prompt(chat, question.source))
    except DataError as error:
        raise _other_prompt(question, str(error)) from None
    if tuple(again) != question.prompt_ids:
        raise _other_prompt(question, "its messages read back give another prompt")
    return chat


def _other_prompt(question: Question, reason: str) -> DataError:
    return DataError(
        f"{question.source}: cannot be asked through a chat API as it is asked in process "
        f"({reason}); write it as chat messages, or compare models in process alone"
    )


def _fields(conversation: Conversation) -> dict[str, Any]:
    messages = _Messages()
    if conversation.instructions is not None:
        messages.made.append({"role": "developer", "content": conversation.instructions})
    for message in conversation.messages:
        messages.take(message)
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
        if header.role == "tool":
            self.made.append({"role": "tool", "tool_call_id": self._called, "content": text})
        elif header.role == "developer":
            instructions = text.removeprefix(_INSTRUCTIONS)
            self.made.append({"role": "developer", "content": instructions})
        else:
            name = {} if header.name is None else {"name": header.name}
            self.made.append({"role": "user", "content": text, **name})

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
            self._say(text)

    def _say(self, content: str | None, **more: Any) -> None:
        thought = _joined(self._thought)
        # As templates of gpt-oss name it, and as vLLM and transformers do.
        thinking = {"thinking": thought, "reasoning_content": thought} if thought else {}
        self.made.append({"role": "assistant", "content": content, **thinking, **more})
        self._thought, self._preamble = [], []


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(texts)
