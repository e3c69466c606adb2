"""What a client gets: deltas of an answer -> OpenAI's chat completion, whole or in chunks.

The final channel is the content, the analysis channel the reasoning (under both names that pages
read), a call of a function a tool call. Text outside of any channel is content: a model that lost
the format should be seen to have lost it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gptoss_tune.evaluate.channels import Delta, Ended


class Completion:
    """One answer on its way to a client.

    Attributes:
        stopped: One of the ``stop`` texts came; nothing more is wanted of the model.
    """

    def __init__(self, model: str, prompt_tokens: int, stop: Sequence[str] = ()) -> None:
        """Answer as ``model``; end the content before any text of ``stop``."""
        self.stopped = False
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._prompt_tokens, self._stop = prompt_tokens, tuple(stop)
        self._content, self._reasoning, self._held = "", "", ""
        self._calls: dict[int, dict[str, Any]] = {}
        self._last_message: dict[str, int] = {}

    def take(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Add new text; yield what a stream says of it, as the ``delta`` of a chunk."""
        if self.stopped:
            return
        if delta.recipient is not None:
            yield self._called(delta)
        elif delta.channel == "analysis":
            text = self._parted("reasoning", delta)
            self._reasoning += text
            yield {"reasoning_content": text, "reasoning": text}
        else:
            if text := self._before_stop(self._parted("content", delta)):
                self._content += text
                yield {"content": text}

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield text that waited, in case it was the beginning of a stop text."""
        if self._held and not self.stopped:
            text, self._held = self._held, ""
            self._content += text
            yield {"content": text}

    def whole(self, ended: Ended, tokens: int) -> dict[str, Any]:
        """Return the completion of a request that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": self._content, "refusal": None}
        if self._reasoning:
            message |= {"reasoning_content": self._reasoning, "reasoning": self._reasoning}
        if self._calls:
            message["content"] = self._content or None
            message["tool_calls"] = [
                {key: call[key] for key in ("id", "type", "function")}
                for call in self._calls.values()
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._reason(ended),
        }
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": [choice], "usage": self.usage(tokens)}

    def chunk(self, delta: dict[str, Any], ended: Ended | None = None) -> dict[str, Any]:
        """Return one chunk of a stream; the last one says why the answer ended."""
        reason = None if ended is None else self._reason(ended)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, tokens: int) -> dict[str, Any]:
        """Return the chunk of the counts, which has no choices."""
        head = {**self._head, "object": "chat.completion.chunk"}
        return {**head, "choices": [], "usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, Any]:
        """Return the counts of an answer of ``tokens`` tokens."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
        }

    def _reason(self, ended: Ended) -> str:
        if ended == "length" and not self.stopped:
            return "length"
        return "tool_calls" if self._calls else "stop"

    def _called(self, delta: Delta) -> dict[str, Any]:
        """Return the delta of a call: its name once, its arguments as they come."""
        call = self._calls.get(delta.message)
        if call is not None:
            call["function"]["arguments"] += delta.text
            part = {"index": call["index"], "function": {"arguments": delta.text}}
            return {"tool_calls": [part]}
        name = (delta.recipient or "").removeprefix("functions.")
        function = {"name": name, "arguments": delta.text}
        head = {"index": len(self._calls), "id": f"call_{secrets.token_hex(12)}"}
        self._calls[delta.message] = {**head, "type": "function", "function": function}
        return {"tool_calls": [{**head, "type": "function", "function": dict(function)}]}

    def _parted(self, kind: str, delta: Delta) -> str:
        """Return the text, after an empty line where another message of its kind came before."""
        before = self._last_message.get(kind, delta.message)
        self._last_message[kind] = delta.message
        return delta.text if before == delta.message else f"\n\n{delta.text}"

    def _before_stop(self, text: str) -> str:
        """Return what can be shown: up to a stop text, or to what may become one."""
        text, self._held = self._held + text, ""
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        for at in range(max(0, len(text) - max(map(len, self._stop), default=0) + 1), len(text)):
            if any(stop.startswith(text[at:]) for stop in self._stop):
                self._held = text[at:]
                return text[:at]
        return text
