"""Generated tokens -> an answer with its channels apart, read by openai-harmony's own parser.

The parser is lenient: it takes any word for a channel or a recipient and keeps a control token
inside a message as text. So what it read is written down together with what a served model would
never write (``faults``), for ``health`` to judge; nothing is repaired here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openai_harmony import HarmonyEncoding, HarmonyError, Role, StreamableParser, StreamState

from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.harmony.vocabulary import (
    CALL,
    CHANNEL,
    END,
    ENDOFTEXT,
    ORDINARY_TOKENS,
    RETURN,
    START,
)

Ended = Literal["return", "call", "endoftext", "length"]

STOP_IDS = (RETURN, CALL, ENDOFTEXT)
"""Tokens after which nothing is generated."""
_ENDS: dict[int, Ended] = {RETURN: "return", CALL: "call", ENDOFTEXT: "endoftext"}


@dataclass(frozen=True)
class Said:
    """One message of an answer.

    Attributes:
        channel: ``analysis``, ``commentary`` or ``final`` as a rule; ``None`` for text that is in
            no message, or in one that names no channel.
        recipient: Whom a call is addressed to.
        content: Its text.
        token_ids: The tokens of the text.
    """

    channel: str | None
    recipient: str | None
    content: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        token_ids: All generated tokens, the one that ended it included.
        messages: In order.
        ended: The token that ended it; ``length`` when there was none.
        faults: What is not harmony about it, one line each.
    """

    token_ids: tuple[int, ...]
    messages: tuple[Said, ...]
    ended: Ended
    faults: tuple[str, ...]

    @property
    def final(self) -> str | None:
        """Text of the last message in the final channel; ``None`` without one."""
        finals = [said.content for said in self.messages if said.channel == "final"]
        return finals[-1] if finals else None

    @property
    def analysis_tokens(self) -> int:
        """Tokens of the chain of thought."""
        return sum(len(said.token_ids) for said in self.messages if said.channel == "analysis")

    def given(self) -> Given:
        """Return what graders see of it."""
        calls = [s for s in self.messages if s.recipient is not None]
        return Given(
            final=self.final,
            calls=tuple(
                Call((s.recipient or "").removeprefix("functions."), s.content) for s in calls
            ),
            analysis="\n\n".join(s.content for s in self.messages if s.channel == "analysis"),
        )

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the messages as the evaluation file holds them."""
        return [
            {"channel": said.channel, "recipient": said.recipient, "content": said.content}
            for said in self.messages
        ]


def read_answer(token_ids: Sequence[int], encoding: HarmonyEncoding) -> Answer:
    """Return the answer that the tokens after ``<|start|>assistant`` spell.

    Args:
        token_ids: Generated ids, cut after the first of ``STOP_IDS``.
        encoding: The harmony encoding.
    """
    reader = _Reader(encoding)
    for token in token_ids:
        reader.take(token)
    ended = _ENDS.get(token_ids[-1], "length") if token_ids else "length"
    reader.end(cut_off=ended == "length")
    return Answer(tuple(token_ids), tuple(reader.said), ended, tuple(dict.fromkeys(reader.faults)))


class _Reader:
    """Feeds the parser and keeps the tokens of each message apart."""

    def __init__(self, encoding: HarmonyEncoding) -> None:
        self.said: list[Said] = []
        self.faults: list[str] = []
        self._encoding = encoding
        self._parser = StreamableParser(encoding, Role.ASSISTANT)
        self._body: list[int] = []
        self._stray: list[int] = []
        self._lost = False

    def take(self, token: int) -> None:
        if self._lost:
            self._stray.append(token)
            return
        in_body = self._parser.state == StreamState.CONTENT
        if token == ENDOFTEXT:
            # The parser would keep it as text; whatever was being said ends here.
            return
        try:
            self._parser.process(token)
        except HarmonyError as error:
            self._lost = True
            self.faults.append(f"is not harmony: {str(error).splitlines()[0]}")
            self._stray.append(token)
            return
        if not in_body:
            self._stray.append(token)  # of a header, until its message begins
            if self._parser.state == StreamState.CONTENT:
                self._stray = []
        elif token not in (RETURN, CALL, END):
            self._body.append(token)
            if token >= ORDINARY_TOKENS:
                self.faults.append(f"has {self._encoding.decode([token])} inside a message")
        else:
            self._close()

    def end(self, *, cut_off: bool) -> None:
        if not self._lost and self._parser.state == StreamState.CONTENT:
            channel, recipient = self._parser.current_channel, self._parser.current_recipient
            text, body = self._encoding.decode(self._body), tuple(self._body)
            self._judge_header("assistant", channel)
            self.said.append(Said(channel, recipient, text, body))
            return
        if not self._lost and self._stray and self._stray[0] in (START, CHANNEL):
            if not cut_off:
                self.faults.append("ends inside a header")
        elif self._stray:
            self.faults.append("has text outside of any message")
            text = self._encoding.decode([*self._body, *self._stray])
            self.said.append(Said(None, None, text, (*self._body, *self._stray)))

    def _close(self) -> None:
        message = self._parser.messages[-1]
        self._judge_header(message.author.role.value, message.channel)
        text = self._encoding.decode(self._body)
        self.said.append(Said(message.channel, message.recipient, text, tuple(self._body)))
        self._body = []

    def _judge_header(self, role: str, channel: str | None) -> None:
        if role != "assistant":
            self.faults.append(f"goes on as the role {role!r}")
        elif channel is None:
            self.faults.append("has a message without a channel")
