"""The body of a chat request -> a row to ask, and how; every mistake in it in one message.

What would change the answer and is not here (penalties, log probabilities, a forced tool) is
refused. What changes nothing (a user's name, where to store, a penalty of 0) is passed over, since
every page sends some of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

from gptoss_tune.evaluate.generate import Sampling

_MOST_STOPS: Final = 16
_MOST_TOKENS: Final = 131_072
_ROW: Final = ("messages", "tools", "functions", "response_format")
# Settings that have no effect here, with the values that ask for none.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (0, 1),
    "logit_bias": ({}, []),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "top_k": (0, -1),
    "min_p": (0,),
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": ({},),
    "prediction": ({},),
    "web_search_options": ({},),
}


class BadRequest(Exception):
    """A request that cannot be answered, as OpenAI's API says it.

    Attributes:
        message: What was got, what was expected.
        param: The key it is about, if it is about one.
        code: A word for programs.
        status: Of HTTP.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        """Keep what to say."""
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def body(self) -> dict[str, Any]:
        """Return the JSON of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks.

    Attributes:
        row: Messages, tools and answer format, as a row of data has them.
        sampling: How the answer is drawn.
        stop: Texts that end the final answer; they are not part of it.
        stream: Send the answer as it comes.
        usage: Send the counts at the end of a stream.
    """

    row: dict[str, Any]
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    usage: bool


def read_request(
    body: Any, *, served: str, usual: Sampling, instructions: str | None = None
) -> ChatRequest:
    """Return what the JSON ``body`` of ``/v1/chat/completions`` asks.

    Args:
        body: The parsed JSON.
        served: Name of the model.
        usual: What a request leaves open.
        instructions: Developer instructions of a request that has none.

    Raises:
        BadRequest: It lists every mistake.
    """
    if not isinstance(body, dict):
        raise BadRequest(f"the body is {_kind(body)}; expected an object with messages")
    model = body.get("model", served)
    if model != served:
        raise BadRequest(
            f"the model {str(model)[:80]!r} is not served here; expected {served!r}",
            "model",
            "model_not_found",
            404,
        )
    reader = _Reader(body)
    sampling = replace(
        usual,
        temperature=reader.number("temperature", 0, 100, usual.temperature),
        top_p=reader.number("top_p", 0, 1, usual.top_p),
        seed=reader.whole("seed", -(2**63), 2**63 - 1, usual.seed),
        max_new_tokens=reader.longest(usual.max_new_tokens),
    )
    stop, stream, usage = reader.stops(), reader.switch("stream", body), reader.usage()
    row = reader.row(instructions)
    reader.refuse_others()
    if reader.mistakes:
        param = reader.params[0] if len(set(reader.params)) == 1 else None
        raise BadRequest("; ".join(reader.mistakes), param)
    return ChatRequest(row, sampling, stop, stream, usage)


class _Reader:
    """Takes a body's settings one by one and keeps what is wrong with them."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.mistakes: list[str] = []
        self.params: list[str] = []

    def wrong(self, key: str, expected: str) -> None:
        shown = repr(self.body.get(key))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        self.mistakes.append(f"{key} is {shown}; expected {expected}")
        self.params.append(key)

    def number(self, key: str, least: float, most: float, usual: float) -> float:
        value = self.body.get(key)
        if value is None:
            return usual
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(value) or not least <= value <= most:
            self.wrong(key, f"a number from {least:g} to {most:g}")
            return usual
        return float(value)

    def whole(self, key: str, least: int, most: int, usual: Any) -> Any:
        value = self.body.get(key)
        if value is None:
            return usual
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.wrong(key, f"a whole number from {least:,} to {most:,}")
            return usual
        return value

    def longest(self, usual: int) -> int:
        found = [
            self.whole(key, 1, _MOST_TOKENS, usual)
            for key in ("max_completion_tokens", "max_tokens")
            if self.body.get(key) is not None
        ]
        return min(found, default=usual)

    def switch(self, key: str, where: dict[str, Any]) -> bool:
        value = where.get(key)
        if value is not None and not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value is True

    def usage(self) -> bool:
        options = self.body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            self.wrong("stream_options", '{"include_usage": true}')
            return False
        return self.switch("include_usage", options or {})

    def stops(self) -> tuple[str, ...]:
        value = self.body.get("stop")
        listed = [value] if isinstance(value, str) else value or []
        texts = isinstance(listed, list) and all(isinstance(t, str) and t for t in listed)
        if not texts or len(listed) > _MOST_STOPS:
            self.wrong("stop", f"a text, or up to {_MOST_STOPS} of them")
            return ()
        return tuple(listed)

    def row(self, instructions: str | None) -> dict[str, Any]:
        messages = self.body.get("messages")
        row = {key: self.body[key] for key in _ROW if self.body.get(key) is not None}
        if not isinstance(messages, list) or not messages:
            self.wrong("messages", "a list of messages, at least one")
            return row
        if not all(isinstance(message, dict) for message in messages):
            self.wrong("messages", "objects with role and content in the list")
            return row
        roles = {str(message.get("role")) for message in messages}
        if instructions is not None and not roles & {"system", "developer"}:
            row["messages"] = [{"role": "developer", "content": instructions}, *messages]
        effort, reasoning = self.body.get("reasoning_effort"), self.body.get("reasoning")
        if effort is None and isinstance(reasoning, dict):  # as the responses API has it
            effort = reasoning.get("effort")
        if effort is not None:
            if effort not in ("low", "medium", "high"):
                self.wrong("reasoning_effort", "low, medium or high")
            row["reasoning_effort"] = effort
        self._choose_tools(row, called="tool" in roles)
        return row

    def _choose_tools(self, row: dict[str, Any], *, called: bool) -> None:
        choice = self.body.get("tool_choice")
        if choice not in (None, "auto", "none"):
            self.wrong("tool_choice", "auto or none: no call can be forced")
        if choice == "none" and not called:  # calls that were made stay declared
            row.pop("tools", None)
            row.pop("functions", None)
        if row.get("response_format") == {"type": "json_object"}:
            self.wrong("response_format", "json_schema with a schema, or text")

    def refuse_others(self) -> None:
        for key, neutral in _NEUTRAL.items():
            value = self.body.get(key)
            if value is not None and value not in neutral:
                self.wrong(key, f"{neutral[0]!r}, or leave it out: it has no effect here")


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
