"""What a chat API answered -> an answer with its channels apart, or the finding that they are not.

A server that knows no harmony hands the channels over as one text: ``analysisWe need ...
assistantfinal42`` where it leaves special tokens out, ``<|channel|>analysis<|message|>...`` where
it keeps them. The right word may stand in it, and a grader might find it; so such an answer is told
from one that was parsed, and never graded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

from gptoss_tune.evaluate.parse import Answer, Ended, Said
from gptoss_tune.harmony.vocabulary import Vocabulary

_REASONING: Final = ("reasoning", "reasoning_content", "thinking")
_MARKER: Final = re.compile(r"<\|(?:start|channel|message|end|return|call|constrain)\|>")
_GLUED: Final = re.compile(
    r"(?:analysis|commentary|final(?!ly\b|s\b|e\b|ist|ity|i[sz]))(?=[^\s:.,;!?)-])"
    r"|commentary to=|.*assistant(?:final|commentary|analysis)",
    re.DOTALL,
)
"""A channel's name with the first word of its message right behind it."""
_ENDS: Final[dict[str, Ended]] = {
    "stop": "return",
    "tool_calls": "call",
    "function_call": "call",
    "length": "length",
}


class OddAnswer(ValueError):
    """An answer of another shape than a chat API's; the message says what was expected."""


class ChatAnswer:
    """One answer of a chat API.

    Attributes:
        content: Its text; ``None`` without one.
        reasoning: The chain of thought, where the server hands it over apart.
        calls: ``(name, arguments)`` in order.
        ended: Why it ended.
        tokens: All that were generated, where the server counts.
        reasoning_tokens: Of the chain of thought, where it counts those.
        prompt_tokens: Of the prompt as the server rendered it, where it counts.
    """

    def __init__(self, answer: Any) -> None:
        """Read the parsed JSON of an answer.

        Raises:
            OddAnswer: It has another shape.
        """
        choice = _one(_field(answer, "choices", list), "choices[0]")
        message = _field(choice, "message", dict, "choices[0].message")
        self.content: str | None = _text(message, "content")
        said = [text for key in _REASONING if (text := _text(message, key))]
        self.reasoning = said[0] if said else ""
        self.calls = tuple(map(_call, message.get("tool_calls") or ()))
        finish = choice.get("finish_reason")
        if finish not in _ENDS:
            expected = "finish_reason, one of " + ", ".join(_ENDS)
            raise OddAnswer(f"choices[0].{expected}")
        self.ended: Ended = "call" if self.calls and finish == "stop" else _ENDS[finish]
        usage = answer.get("usage")
        self.tokens = _count(usage, "completion_tokens")
        self.prompt_tokens = _count(usage, "prompt_tokens")
        details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
        self.reasoning_tokens = _count(details, "reasoning_tokens") or None

    @property
    def is_parsed(self) -> bool:
        """Whether the server told a channel from the text: it gave a thought or a call apart."""
        return bool(self.reasoning or self.calls)

    @property
    def is_glued(self) -> bool:
        """Whether channels stand in the text of the answer."""
        text = self.content or ""
        if _MARKER.search(text):
            return True
        return not self.is_parsed and _GLUED.match(text.lstrip()) is not None

    def as_answer(self, encode: Callable[[str], list[int]]) -> Answer:
        """Return the same as an answer in process has it; tokens of texts are counted anew."""
        said: list[tuple[str, str | None, str]] = []
        if self.reasoning:
            said.append(("analysis", None, self.reasoning))
        if self.content and self.calls:
            said.append(("commentary", None, self.content))
        said += [("commentary", f"functions.{name}", text) for name, text in self.calls]
        if not self.calls and (self.content or self.ended == "return"):
            said.append(("final", None, self.content or ""))
        messages = tuple(Said(channel, to, text, tuple(encode(text))) for channel, to, text in said)
        ids = tuple(token for message in messages for token in message.token_ids)
        return Answer(ids, messages, self.ended, ())


def readable(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """Return what encodes a text that came from anywhere; broken surrogates are replaced."""
    return lambda text: vocabulary.encode(text.encode("utf-8", "replace").decode())


def _field(holder: Any, key: str, kind: type, where: str | None = None) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, kind):
        raise OddAnswer(f"{where or key}, a {'list' if kind is list else 'mapping'}")
    return value


def _one(values: list[Any], where: str) -> dict[str, Any]:
    if not values or not isinstance(values[0], dict):
        raise OddAnswer(f"{where}, a mapping")
    return values[0]


def _text(message: dict[str, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise OddAnswer(f"choices[0].message.{key}, a text or null")
    return value


def _call(call: Any) -> tuple[str, str]:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise OddAnswer("choices[0].message.tool_calls[].function with name and arguments")
    return name.removeprefix("functions."), arguments


def _count(holder: Any, key: str) -> int | None:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if type(value) is int and 0 <= value < 10**9 else None
