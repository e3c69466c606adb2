"""What a chat server sends of one answer -> text with its channels, as it comes.

Servers differ in where the chain of thought stands (``reasoning``, ``reasoning_content``,
``thinking``), in whether they count, and in how they say that something went wrong in the middle.
Some answer whole although a stream was asked for. Every value is looked at before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

from gptoss_tune.evaluate.channels import Delta, Ended
from gptoss_tune.harmony.conversation import Header, Message

LARGEST_EVENT: Final = 1 << 20  # bytes
_MOST_TEXT: Final = 1 << 24  # characters of one answer
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
Ends = Ended | Literal["other"]
"""Why an answer ended; ``other``: a server ended it, and says so in a word of its own."""
_REFUSAL: Final = "refusal"
_ENDS: Final[dict[str, Ends]] = {
    "stop": "stop",
    "tool_calls": "call",
    "function_call": "call",
    "length": "length",
}


class OddEvent(ValueError):
    """What came has another shape than a chat API's; the message says what was expected.

    Attributes:
        told: What came.
    """

    def __init__(self, expected: str, told: Any) -> None:
        """Say what was expected of ``told``."""
        super().__init__(expected)
        self.told = told


def read_events(lines: Iterable[bytes]) -> Iterator[Any]:
    """Yield the JSON of each event up to ``[DONE]`` or the end.

    A body that is no stream of events is one event: the whole answer.

    Raises:
        ValueError: An event is no JSON.
    """
    whole = b""
    for line in lines:
        text = line.strip()
        if text.startswith(b"data:"):
            data = text.removeprefix(b"data:").strip()
            if is_done(line):
                return
            if data:
                yield json.loads(data)
        elif text and (whole or text.startswith((b"{", b"["))):
            whole += line
            if len(whole) > LARGEST_EVENT:
                raise ValueError(f"more than {LARGEST_EVENT} bytes")
    if whole:
        yield json.loads(whole)


def is_done(line: bytes) -> bool:
    """Return whether a line of a stream says that nothing more comes."""
    return line.strip().removeprefix(b"data:").strip() == b"[DONE]"


class ServedReader:
    """Reads the events of one answer.

    Attributes:
        finished: Why the server ended it; ``None`` so far.
        reason: The server's own word for it; ``None`` so far.
        usage: What it counted, as it says it.
    """

    def __init__(self) -> None:
        """Nothing was said yet."""
        self.finished: Ends | None = None
        self.reason: str | None = None
        self.usage: dict[str, Any] = {}
        self._said: list[tuple[str, str | None, str]] = []
        self._calls: dict[int, int] = {}
        self._length = 0

    def take(self, event: Any) -> Iterator[Delta]:
        """Yield what one event says.

        Raises:
            OddEvent: It has another shape.
        """
        if not isinstance(event, dict) or event.get("error"):
            raise OddEvent("an event with choices", event)
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        choices = event.get("choices")
        if choices is None and self.usage:
            return
        if not isinstance(choices, list):
            raise OddEvent("an event with choices", event)
        if not choices:
            return
        choice = choices[0]
        said = None
        if isinstance(choice, dict):
            said = choice.get("delta") or choice.get("message") or {}
        if not isinstance(said, dict):
            raise OddEvent("choices[0].delta, a mapping", event)
        yield from self._take(said, event)
        finish = choice.get("finish_reason")
        if finish:
            self.reason = finish if isinstance(finish, str) else json.dumps(finish)
            self.finished = _ENDS.get(self.reason, "other")

    def _take(self, said: dict[str, Any], event: Any) -> Iterator[Delta]:
        thoughts = (_text(said, key, event) for key in _REASONING)
        if thought := next(filter(None, thoughts), ""):
            yield self._add("analysis", None, thought, event)
        if content := _text(said, "content", event):
            yield self._add("final", None, content, event)
        if refusal := _text(said, _REFUSAL, event):
            yield self._add(_REFUSAL, None, refusal, event)
        calls = said.get("tool_calls") or ()
        if not isinstance(calls, list | tuple):
            raise OddEvent("tool_calls, a list", event)
        for place, call in enumerate(calls):
            yield self._call(call, place, event)

    def _add(self, channel: str, recipient: str | None, text: str, event: Any) -> Delta:
        last = self._said[-1] if self._said else None
        if last is not None and last[:2] == (channel, recipient) and channel != "commentary":
            self._said[-1] = (channel, recipient, last[2] + text)
        else:
            self._said.append((channel, recipient, text))
        return self._delta(len(self._said) - 1, text, event)

    def _call(self, call: Any, place: int, event: Any) -> Delta:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise OddEvent("tool_calls[].function, a mapping", event)
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        arguments = arguments if isinstance(arguments, str) else ""
        number = call.get("index")
        number = number if type(number) is int else place
        if number in self._calls:
            at = self._calls[number]
            channel, recipient, before = self._said[at]
            self._said[at] = (channel, recipient, before + arguments)
            return self._delta(at, arguments, event)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise OddEvent("tool_calls[].function.name, a text", event)
        self._calls[number] = len(self._said)
        return self._add("commentary", f"functions.{name}", arguments, event)

    def _delta(self, at: int, text: str, event: Any) -> Delta:
        self._length += len(text)
        if self._length > _MOST_TEXT:
            raise OddEvent(f"an answer of at most {_MOST_TEXT:,} characters", event)
        channel, recipient, _ = self._said[at]
        return Delta(channel, recipient, text, at)

    def messages(self) -> list[Message]:
        """Return what was said so far, for the conversation to go on with.

        A refusal, which no channel of harmony is for, is said to the user as an answer is.
        """
        found = []
        for channel, recipient, text in self._said:
            kind = "<|constrain|>json" if recipient else None
            channel = "final" if channel == _REFUSAL else channel
            found.append(Message(Header("assistant", None, recipient, channel, kind), text))
        return found


def _text(said: dict[str, Any], key: str, event: Any) -> str:
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise OddEvent(f"{key}, a text", event)
    return value or ""
