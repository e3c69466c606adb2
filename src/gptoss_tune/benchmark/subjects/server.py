"""A model behind an OpenAI-compatible server, asked through its chat API.

The server renders the prompt by its own template and tells the channels apart by its own parser:
what is measured is what a client gets. One that does not parse harmony is found out by its answers
and refused as a subject; its text would be graded with the chain of thought in it, or wrongly found
right for a word that was only thought of.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from gptoss_tune.benchmark.subjects.answer import ChatAnswer, OddAnswer, readable
from gptoss_tune.benchmark.subjects.as_chat import as_chat
from gptoss_tune.benchmark.subjects.subject import Asking, Reply, UnreadableServer
from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.export.openai_server import ModelList, OpenAIServer
from gptoss_tune.harmony.render import Renderer

_PROBE: Final = {
    "messages": [{"role": "user", "content": "Which is the third planet from the Sun?"}],
    "reasoning_effort": "low",
    "temperature": 0,
    "max_tokens": 64,
}
_ENOUGH: Final = 3
"""Answers with channels in their text, and none parsed, after which a server is given up."""
_FOREIGN: Final = ("chat_template_kwargs", "reasoning_effort", "seed", "top_p")
"""Fields that some servers refuse, in the order in which they are left out."""


@dataclass
class ChatServer(OpenAIServer):
    """A server with OpenAI's chat API."""

    endpoint: ClassVar[str] = "chat/completions"
    gives: ClassVar[str] = "answer"
    option: ClassVar[str] = "--subjects"
    name_option: ClassVar[str] = "#NAME behind the address"


class Served:
    """A model behind a server.

    Attributes:
        name: What the table calls it.
        protocol: How it is asked, for people.
        notes: What was found about the server, a line each.
    """

    protocol = "chat completions"

    def __init__(
        self,
        name: str,
        server: ChatServer,
        renderer: Renderer,
        *,
        concurrency: int = 4,
    ) -> None:
        """Ask ``server``, ``concurrency`` questions at a time."""
        self.name, self._server, self._renderer = name, server, renderer
        self._concurrency = concurrency
        self._encode = readable(renderer.vocabulary)
        self._left_out: set[str] = set()
        self._identity: dict[str, Any] | None = None
        self._has_parsed = False
        self._longer_prompts = 0
        self._asked = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found about the server, a line each."""
        found = [f"{self.name} takes no {field}" for field in sorted(self._left_out)]
        if self._longer_prompts:
            found.append(
                f"{self.name} rendered {self._longer_prompts} of {self._asked} prompts to another "
                "number of tokens than models in process get"
            )
        return tuple(found)

    @property
    def identity(self) -> dict[str, Any]:
        """Address and name, and what it answers to one fixed question.

        Another model under the same name is another subject where it answers that otherwise.

        Raises:
            MachineError: It does not answer.
        """
        if self._identity is None:
            answer = self._answer_to(_PROBE)
            told = json.dumps([answer.content, answer.reasoning, answer.calls])
            self._identity = {
                "kind": "server",
                "address": self._server.address,
                "model": self._server.model,
                "probe": hashlib.sha256(told.encode("utf-8", "replace")).hexdigest(),
            }
        return self._identity

    def ask(self, questions: Sequence[Question], asking: Asking) -> Iterator[tuple[int, Reply]]:
        """Yield answers as they come.

        Raises:
            UnreadableServer: It hands channels over as one text.
            DataError: A question cannot be put to a chat API.
            MachineError: It did not answer.
        """
        requests = [self._request(question, asking) for question in questions]
        glued: list[tuple[int, ChatAnswer]] = []
        for number, answer in self._answers(requests):
            self._asked += 1
            self._has_parsed |= answer.is_parsed
            expected = len(questions[number].prompt_ids)
            self._longer_prompts += answer.prompt_tokens not in (None, expected)
            if answer.is_glued and not self._has_parsed:
                glued.append((number, answer))
                if len(glued) >= _ENOUGH:
                    raise self._unreadable(glued[0][1])
                continue
            yield number, self._reply(answer)
        if glued and not self._has_parsed:
            raise self._unreadable(glued[0][1])
        # It does tell channels apart: what stands in these texts, the model wrote there.
        for number, answer in glued:
            yield number, self._reply(answer)

    def close(self) -> None:
        """Nothing is held."""

    def _request(self, question: Question, asking: Asking) -> dict[str, Any]:
        drawn = {"top_p": asking.top_p, "seed": asking.seed} if asking.temperature else {}
        chat = as_chat(question, self._renderer)
        # vLLM, SGLang and llama.cpp read the field of the API, transformers only the template's.
        template = {"chat_template_kwargs": {"reasoning_effort": question.effort}}
        limits = {"max_tokens": asking.max_new_tokens, "temperature": asking.temperature}
        return {**chat, **template, **limits, **drawn}

    def _answers(self, requests: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, ChatAnswer]]:
        """Yield each answer with its number, several asked at a time.

        The threads are left behind where the caller goes away: each ends with its answer.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(requests)):
            waiting.put(number)
        done: queue.SimpleQueue[tuple[int, ChatAnswer | BaseException]] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((number, self._answer_to(requests[number])))
                except BaseException as error:
                    done.put((number, error))

        for _ in range(min(self._concurrency, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in requests:
                number, answer = done.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield number, answer
        finally:
            stop.set()

    def _answer_to(self, wanted: Mapping[str, Any]) -> ChatAnswer:
        """Return one answer; a field that the server refuses is left out from then on.

        Raises:
            MachineError: No answer, or one of another shape.
        """
        while True:
            kept = {key: value for key, value in wanted.items() if key not in self._left_out}
            try:
                told = self._server.asked({**kept, "model": self._server.model})
            except urllib.error.HTTPError as error:
                refusal = self._server.refused(error)
                named = [f for f in _FOREIGN if f in kept and f in str(refusal)]
                if error.code not in (400, 422) or not named:
                    raise refusal from None
                self._left_out.add(named[0])
                continue
            try:
                return ChatAnswer(told)
            except OddAnswer as error:
                raise self._server.odd(str(error), told) from None

    def _reply(self, answer: ChatAnswer) -> Reply:
        read = answer.as_answer(self._encode)
        thought = answer.reasoning_tokens
        return Reply(
            answer=read,
            tokens=answer.tokens,
            analysis_tokens=read.analysis_tokens if thought is None else thought,
        )

    def _unreadable(self, answer: ChatAnswer) -> UnreadableServer:
        text = " ".join((answer.content or "").split())
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        return UnreadableServer(
            f"{self._server.address}: does not parse harmony, it hands channels over as text "
            f"('{shown}'); its answers are not graded. vLLM, SGLang and llama.cpp parse it (see "
            "`gptoss-tune serve-config`); transformers serve does for a model that `gptoss-tune "
            "merge` wrote"
        )


def served_model(url: str, key: str | None) -> str:
    """Return the name of the only model that a server lists.

    Raises:
        MachineError: It lists none or several, or does not answer.
    """
    listed = _Models(url, "", key).names()
    if len(listed) != 1:
        shown = ", ".join(listed[:8]) or "none"
        raise MachineError(
            f"{url}: serves {shown}; name the one to ask behind the address, {url}#NAME"
        )
    return listed[0]


@dataclass
class _Models(ModelList):
    """The list of a server's models."""

    option: ClassVar[str] = ChatServer.option
    name_option: ClassVar[str] = ChatServer.name_option
