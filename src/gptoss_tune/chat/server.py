"""A model behind an OpenAI-compatible server, as one that answers a conversation as it goes on.

The server renders the prompt and tells the channels apart: its date, its template, its context. It
is asked for a stream, so that an answer is seen as it comes, and the connection is closed where the
answer is cut: servers end what nobody waits for.
"""

from __future__ import annotations

import http.client
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from gptoss_tune.chat.events import (
    LARGEST_EVENT,
    Ends,
    OddEvent,
    ServedReader,
    is_done,
    read_events,
)
from gptoss_tune.display import one_line
from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.evaluate.answering.sampling import Sampling
from gptoss_tune.evaluate.channels import Delta
from gptoss_tune.export.openai_server import OpenAIServer, opened
from gptoss_tune.harmony.chat_fields import chat_fields
from gptoss_tune.harmony.conversation import Conversation, Message

_SILENCE_S: Final = 600.0
"""Longest wait for the next piece of an answer: a server may load the model first."""
_OPTIONAL: Final = ("chat_template_kwargs", "stream_options")
"""Fields that some servers refuse, and without which an answer is the same."""
_MOST_NAMES: Final = 12
_LONGEST_QUOTE: Final = 80


@dataclass
class ChatServer(OpenAIServer):
    """A server with OpenAI's chat API."""

    endpoint: ClassVar[str] = "chat/completions"
    gives: ClassVar[str] = "answer"
    option: ClassVar[str] = "MODEL"
    name_option: ClassVar[str] = "--served-name"


@dataclass
class _Models(ChatServer):
    """The list of a server's models."""

    endpoint: ClassVar[str] = "models"
    gives: ClassVar[str] = "list of models"
    of_model: ClassVar[bool] = False

    def listed(self) -> dict[str, int | None]:
        """Return the names that it serves, each with its context where that is told.

        Raises:
            MachineError: It does not answer, or with another shape.
        """
        try:
            told = self.asked(None)
        except urllib.error.HTTPError as error:
            raise self.refused(error) from None
        data = told.get("data") if isinstance(told, dict) else None
        if not isinstance(data, list):
            raise self.odd("data, a list of models", told)
        models = [one for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)]
        return {one["id"]: _context(one) for one in models}


def _context(model: Mapping[str, Any]) -> int | None:
    """Return the tokens of a model's context, as vLLM, SGLang and this program, or llama.cpp say.

    llama.cpp tells what the model was made for as ``n_ctx_train``, which is no promise of how much
    the server has; only ``n_ctx`` is.
    """
    meta = model.get("meta")
    told = [model.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None]
    found = [value for value in told if type(value) is int and value > 0]
    return found[0] if found else None


def open_served(
    url: str,
    name: str | None,
    key: str | None,
    say: Callable[[str], None] = lambda text: None,
) -> ServedModel:
    """Return the model of a server that is talked to.

    Args:
        url: Address, with or without ``/v1``.
        name: The one it serves it under; ``None``: the only one that it lists.
        key: Bearer token, if it wants one.
        say: Called with a sentence where a server that is busy or loading is waited for.

    Raises:
        MachineError: It does not answer, serves none or several, or none of that name.
        CheckpointError: The address is none.
    """
    models = _Models(url, name or "", key, say=say)
    listed = models.listed()
    shown = ", ".join(one_line(one) for one in list(listed)[:_MOST_NAMES]) or "no model"
    if len(listed) > _MOST_NAMES:
        shown += f" and {len(listed) - _MOST_NAMES} more"
    if name is None and len(listed) != 1:
        raise MachineError(
            f"{url}: serves {shown}; name the one to talk to with --served-name NAME"
        )
    chosen = next(iter(listed)) if name is None else name
    if chosen not in listed:
        raise MachineError(f"{url}: serves {shown}; expected '{one_line(chosen)}' among them")
    server = ChatServer(url, chosen, key, timeout_s=_SILENCE_S, say=say)
    return ServedModel(server, listed[chosen])


class ServedModel:
    """A model behind a server, which ``Answers``.

    Attributes:
        name: The name it is served under.
        url: Address of the server.
        context: Tokens of its context; ``None``: it does not tell.
    """

    def __init__(self, server: ChatServer, context: int | None) -> None:
        """Ask ``server``."""
        self.name, self.url, self.context = server.model, server.url, context
        self._server = server
        self._left_out: set[str] = set()

    def open(
        self,
        conversation: Conversation,
        sampling: Sampling,
        should_stop: Callable[[], bool],
        begun: Any = None,
    ) -> ServedAnswer:
        """Return the answer; the rest is as in ``Answers``.

        Raises:
            DataError: It is to go on: a chat API answers, it continues nothing.
            MachineError: The server does not answer, or refuses.
        """
        if begun is not None:
            raise DataError(
                "a server's chat API cannot continue an answer; ask it to go on, or /retry with a "
                "larger /max-new-tokens"
            )
        response = self._opened(_request(conversation, sampling))
        return ServedAnswer(self._server, response, should_stop)

    def _opened(self, wanted: dict[str, Any]) -> http.client.HTTPResponse:
        """Return a response; what a server refuses and nothing depends on is left out from then on.

        Raises:
            MachineError: No answer, or a refusal.
        """
        server = self._server
        while True:
            kept = {key: value for key, value in wanted.items() if key not in self._left_out}
            fields = {**kept, "model": server.model, "stream": True}
            try:
                return server.patiently(
                    lambda asked=fields: opened(
                        server.address, asked, key=server.key, timeout_s=server.timeout_s
                    )
                )
            except urllib.error.HTTPError as error:
                refusal = server.refused(error)
                named = [f for f in _OPTIONAL if f in kept and f in str(refusal)]
                if error.code not in (400, 422) or not named:
                    raise refusal from None
                self._left_out.add(named[0])


def _request(conversation: Conversation, sampling: Sampling) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        **chat_fields(conversation),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream_options": {"include_usage": True},
    }
    if sampling.seed is not None:
        wanted["seed"] = sampling.seed
    if conversation.effort is not None:
        # vLLM, SGLang and llama.cpp read the field of the API, transformers only the template's.
        wanted["reasoning_effort"] = conversation.effort
        wanted["chat_template_kwargs"] = {"reasoning_effort": conversation.effort}
    return wanted


class ServedAnswer:
    """One answer of a server in the making: iterate over it once.

    Attributes:
        usage: What the server counted, as it says it; empty where it does not.
    """

    def __init__(
        self,
        server: ChatServer,
        response: http.client.HTTPResponse,
        should_stop: Callable[[], bool],
    ) -> None:
        """Read ``response`` until it ends or ``should_stop`` says so."""
        self._server, self._response, self._should_stop = server, response, should_stop
        self._reader = ServedReader()
        self._stopped = False
        self._begins, self._last, self._seen = b"", b"", False

    def __iter__(self) -> Iterator[Delta]:
        """Yield new text as it comes; the connection is closed at the end, whatever ends it.

        Raises:
            MachineError: The server says that something went wrong, goes silent or away.
        """
        server = self._server
        with closing(self._response):
            try:
                for event in read_events(self._lines()):
                    self._seen = True
                    yield from self._reader.take(event)
                    if self._should_stop():
                        self._stopped = True
                        return
            except OddEvent as error:
                raise server.odd(str(error), error.told) from None
            except TimeoutError:
                raise server.no_answer(f"silent for {server.timeout_s:g} s") from None
            except ValueError as error:
                raise server.no_answer(f"a part of the answer is no JSON: {error}") from None
            except (OSError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
                raise server.no_answer(f"the connection broke: {said}") from None
        if self._reader.finished is None:
            if not (self._seen and is_done(self._last)):
                raise server.no_answer(self._why_none())
            self._reader.finished = "stop"  # it says that this is all, if not why

    def _lines(self) -> Iterator[bytes]:
        while line := self._response.readline(LARGEST_EVENT + 1):
            if len(line) > LARGEST_EVENT:
                raise ValueError(f"an event of more than {LARGEST_EVENT} bytes")
            self._begins, self._last = self._begins or line.strip(), line
            yield line

    def _why_none(self) -> str:
        """Return what came instead of a whole answer."""
        if self._seen:
            return "the connection ended in the middle of the answer"
        if not self._begins:
            return "the connection ended before anything of the answer came"
        kind = one_line(self._response.headers.get("content-type") or "not told")
        begins = one_line(self._begins.decode("utf-8", "replace"))[:_LONGEST_QUOTE]
        return f"neither a stream of events nor JSON; its type is {kind}, it begins with {begins!r}"

    def cut(self) -> list[Delta]:
        """End the answer here: the connection is closed, which ends it on the server."""
        self._response.close()
        self._stopped = True
        return []

    @property
    def usage(self) -> dict[str, Any]:
        """What the server counted, as it says it."""
        return self._reader.usage

    @property
    def messages(self) -> list[Message]:
        """What was said so far."""
        return self._reader.messages()

    @property
    def reason(self) -> str | None:
        """Why the server ended it, in its own word."""
        return self._reader.reason

    @property
    def ended(self) -> Ends:
        """Why it ended: as the server says, or ``interrupt``."""
        if self._stopped or self._reader.finished is None:
            return "interrupt"
        called = any(message.is_call for message in self.messages)
        return "call" if called and self._reader.finished == "stop" else self._reader.finished
