"""Generated tokens -> text with its channel, as it comes: the reading side of a conversation.

openai-harmony's parser tells the channels apart token by token. A model that leaves the format is
read on: what it says from there on is under the channel ``RAW``.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final, Literal, NamedTuple

from openai_harmony import HarmonyEncoding, HarmonyError, Role, StreamableParser, StreamState

from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.harmony.conversation import CHANNELS, Header, Message
from gptoss_tune.harmony.vocabulary import CALL, ENDOFTEXT

RAW: Final = "not harmony"
"""Channel of text once a model has left the format."""
_NO_CHANNEL: Final = "no channel"
_RECIPIENT = re.compile(r"[\w-]{1,64}(\.[\w-]{1,64})?", re.ASCII)

_LONGEST_WAIT = 3
"""Tokens that a character may be spread over, the last one left out."""

Ended = Literal["stop", "call", "length", "interrupt"]


class Delta(NamedTuple):
    """New text of an answer.

    Attributes:
        channel: ``analysis``, ``commentary``, ``final``, another word that the model wrote, or
            ``RAW``.
        recipient: Whom a call is addressed to.
        text: What is new.
        message: Number of the message it belongs to, from 0.
    """

    channel: str
    recipient: str | None
    text: str
    message: int

    @property
    def label(self) -> str:
        """The channel, and the recipient of a call."""
        return f"{self.channel} to {self.recipient}" if self.recipient else self.channel


class ChannelReader:
    """Reads the tokens of one answer.

    Attributes:
        tokens: How many were read.
        last: The last of them.
        by_channel: How many of them were text, by its channel; the rest is headers and ends.
    """

    def __init__(self, encoding: HarmonyEncoding) -> None:
        """Read with the harmony ``encoding``."""
        self._encoding = encoding
        self._parser = StreamableParser(encoding, Role.ASSISTANT)
        self._raw: list[int] | None = None  # once the format is left
        self._unshown: list[int] | None = []  # None once anything was returned
        self._waited = 0
        self.tokens, self.last = 0, -1
        self.by_channel: Counter[str] = Counter()

    def take(self, token: int) -> list[Delta]:
        """Return what one token says, nothing for most of a header."""
        self.tokens, self.last = self.tokens + 1, token
        if token == ENDOFTEXT:
            return []  # the parser would keep it as text; whatever was being said ends here
        if self._raw is None:
            is_text = self._parser.state == StreamState.CONTENT
            try:
                self._parser.process(token)
            except HarmonyError:
                self._raw = [*(self._unshown or ())]  # an untrained model does this
                self._unshown = None
            else:
                if is_text and self._parser.state == StreamState.CONTENT:
                    self.by_channel[self._parser.current_channel or _NO_CHANNEL] += 1
                delta = self._parser.last_content_delta
                if delta and token not in STOP_IDS:
                    self._unshown = None
                    channel = self._parser.current_channel or _NO_CHANNEL
                    recipient = self._parser.current_recipient
                    return [Delta(channel, recipient, delta, len(self._parser.messages))]
                if self._unshown is not None:
                    self._unshown.append(token)
                return []
        if token in STOP_IDS:
            return []
        self.by_channel[RAW] += 1
        return self._spelled([token])

    def end(self) -> list[Delta]:
        """Close a message that was cut off; return what never became one."""
        if self._unshown:
            unshown, self._unshown = self._unshown, None
            self._raw = []
            return self._spelled(unshown)
        if self._raw is not None:
            return self._spelled([], final=True)
        if self._parser.current_content:
            self._parser.process_eos()
        return []

    def messages(self) -> list[Message]:
        """Return the messages that were harmony, for the conversation to go on with.

        A channel or recipient that no server knows cannot be rendered again; such a message is left
        out.
        """
        found = []
        for said in self._parser.messages:
            if said.channel not in CHANNELS or said.author.role != Role.ASSISTANT:
                continue
            if said.recipient is not None and not _RECIPIENT.fullmatch(said.recipient):
                continue
            kind = None
            if said.recipient is not None:
                kind = "<|constrain|>json" if said.recipient.startswith("functions.") else "code"
            text = "".join(getattr(part, "text", "") for part in said.content)
            header = Header("assistant", None, said.recipient, said.channel, kind)
            found.append(Message(header, text))
        return found

    def ended(self) -> Ended:
        """Return why the answer ended, as its last token tells."""
        if self.last == CALL:
            return "call"
        return "stop" if self.last in STOP_IDS else "length"

    def _spelled(self, tokens: list[int], *, final: bool = False) -> list[Delta]:
        """Return raw tokens as text; bytes of a character that is not whole yet wait."""
        assert self._raw is not None
        self._raw += tokens
        text = self._encoding.decode(self._raw)
        if not text or (text.endswith("\ufffd") and not final and self._waited < _LONGEST_WAIT):
            self._waited += 1
            return []
        self._raw, self._waited = [], 0
        return [Delta(RAW, None, text, len(self._parser.messages))]
