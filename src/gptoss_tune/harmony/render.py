"""Conversation -> Examples: token ids, the weight of predicting each, and where each came from.

Each trained turn is rendered in the context the model sees when it is served: the chain of thought
(and the built-in tool calls) of earlier turns is gone, that of the turn itself stays through its
calls. A turn whose thoughts must go for the next one closes a sample; turns without thoughts share
the row of the next, since nothing is dropped between them. So n turns give up to n Examples.

What is trained is what the model writes: from the channel (or recipient) to the end token, and
``<|start|>assistant`` only where the model itself goes on to a next message after ``<|end|>``; the
one that opens a generation is the server's. The last answer ends in ``<|return|>``, a call in
``<|call|>``. In a shared row an earlier answer ends in ``<|end|>``, as history does, and the
prediction of that token has weight 0, for served the model writes ``<|return|>`` there.

Headers, system messages and tools are rendered by openai-harmony, once for each that differs; text
is encoded by ``Vocabulary.encode``. The tests compare the result with the library's own
rendering of the whole conversation. Its ``render_conversation_for_training`` is not used: by
default it drops the chain of thought of the very turn to be trained, and with the dropping off it
keeps those of all earlier ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

import numpy as np

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import (
    CHANNELS,
    TEXT,
    Conversation,
    Header,
    Message,
    cut_turns,
)
from gptoss_tune.harmony.document import Document
from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.tools import developer_text, system_content
from gptoss_tune.harmony.vocabulary import END, ENDOFTEXT, MESSAGE, RETURN, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_CHANNEL: Final = 0
CHANNEL_NUMBERS: Final = {name: number for number, name in enumerate((*CHANNELS, TEXT), start=1)}

LONGEST_WHITE_SPACE: Final = 100_000
"""Longest run of white space the tokenizer takes; its regular expression overflows past it."""

# Looked for at the start of a run only, so that many long runs take no quadratic time.
_TOO_MUCH_WHITE_SPACE = re.compile(rf"(?<!\s)\s{{{LONGEST_WHITE_SPACE + 1}}}")
_MOST_KEPT: Final = 4096
"""Headers, and sets of tools, that are kept rendered."""

_Value = TypeVar("_Value")

_SERVER_TOKENS: Final = 2
"""``<|start|>assistant``: written by the server at the start of a generation."""


class Span(NamedTuple):
    """One message in an Example: its tokens are ``[start, end)``, its text ``[body, end - 1)``."""

    start: int
    body: int
    end: int
    role: str
    label: str
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One sample, ready to be padded or packed.

    For a question and a trained answer ``4`` of length n::

        input_ids     <|start|> user <|message|> 2+2 <|end|> <|start|> assistant <|channel|> ...
        loss_weights      0      0       0        0     0        0         0          1      ...
        channels          0      0       0        0     0        3         3          3      ...

    Attributes:
        input_ids: ``[n]`` int32.
        loss_weights: ``[n]`` float32, the weight of PREDICTING token i; 0 for context.
        channels: ``[n]`` int8; 1 analysis, 2 commentary, 3 final for the assistant, 4 for raw
            text, else 0.
        spans: The messages, in order.
        source: ``file:line`` of the row.
    """

    input_ids: NDArray[np.int32]
    loss_weights: NDArray[np.float32]
    channels: NDArray[np.int8]
    spans: tuple[Span, ...]
    source: str


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """What the recipe says about rendering; its data section has the same names."""

    reasoning_effort: Effort = "medium"
    date: str = "2025-06-28"
    channel_weights: tuple[tuple[str, float], ...] = tuple(
        (name, 1.0) for name in (*CHANNELS, TEXT)
    )
    turns: Literal["all", "last"] = "all"


class _Heading(NamedTuple):
    """A rendered header: the ids before the text, the one after it, and its names for people."""

    ids: list[int]
    end: int
    role: str
    label: str


class _Piece(NamedTuple):
    """A rendered message; ``opens``: the server wrote its ``<|start|>assistant``."""

    ids: list[int]
    body: int
    header: Header
    role: str
    label: str
    weight: float = 0.0
    opens: bool = False


class Renderer:
    """Renders conversations with one vocabulary and one set of settings.

    It keeps the headers, system messages and tools it has seen, because a dataset has few of them
    and the library takes longer for one than for a page of text.
    """

    def __init__(self, vocabulary: Vocabulary, settings: RenderSettings) -> None:
        """Keep the vocabulary and the settings; nothing is rendered yet."""
        self.vocabulary = vocabulary
        self.settings = settings
        self._headings: dict[Header, _Heading] = {}
        self._systems: dict[tuple[object, ...], _Piece] = {}
        self._tools_texts: dict[str, str] = {}

    def render(self, conversation: Conversation | Document) -> list[Example]:
        """Return the Examples of a conversation, one per turn or group of turns.

        Turns with nothing to train give no Example: the list can be empty. A document of raw text
        gives one, however long it is (``fit_length``).

        Raises:
            DataError: openai-harmony refuses the tools, or a text cannot be tokenised.
        """
        if isinstance(conversation, Document):
            return self._document(conversation)
        pieces = self._pieces(conversation)
        prefix = self._prefix(conversation)
        turns = cut_turns([piece.header for piece in pieces])
        if self.settings.turns == "last":
            groups = [range(len(turns) - 1, len(turns))]
        else:
            groups = _groups(pieces, turns)
        examples: list[Example] = []
        for group in groups:
            context = [
                piece
                for turn in turns[: group.start]
                for piece in pieces[turn.start : turn.stop]
                if piece.header.channel != "analysis"
            ]
            trained = pieces[turns[group.start].start : turns[group.stop - 1].stop]
            example = self._assemble(conversation, [*prefix, *context], trained)
            if example is not None:
                examples.append(example)
        return examples

    def render_prompt(self, conversation: Conversation) -> list[int]:
        """Return the ids a server would send: the conversation and ``<|start|>assistant``.

        The chain of thought of finished turns is dropped, that of a turn in progress stays.

        Raises:
            DataError: As ``render``.
        """
        ids = [token for _, ids in self.prompt_messages(conversation) for token in ids]
        return [*ids, *self.opening]

    def prompt_messages(self, conversation: Conversation) -> list[tuple[str | None, list[int]]]:
        """Return the messages of ``render_prompt``, each with its channel and its ids.

        Raises:
            DataError: As ``render``.
        """
        pieces = self._pieces(conversation)
        turns = cut_turns([piece.header for piece in pieces])
        dropped = {
            index
            for turn in turns[:-1]
            for index in turn
            if pieces[index].header.channel == "analysis"
        }
        kept = [piece for index, piece in enumerate(pieces) if index not in dropped]
        return [(p.header.channel, p.ids) for p in [*self._prefix(conversation), *kept]]

    def message_ids(self, message: Message, source: str) -> list[int]:
        """Return the ids of one message that stands in no conversation yet.

        Raises:
            DataError: As ``render``; it begins with ``source``.
        """
        heading = self._heading(message.header)
        return [*heading.ids, *self._encode(message.text, source), heading.end]

    @property
    def opening(self) -> list[int]:
        """``<|start|>assistant``, after which the model writes."""
        return self._heading(Header("assistant")).ids[:_SERVER_TOKENS]

    def _document(self, document: Document) -> list[Example]:
        weight = document.weight * dict(self.settings.channel_weights)[TEXT]
        if not weight:
            return []
        ids = [*self._encode(document.text, document.source), ENDOFTEXT]
        loss_weights = np.full(len(ids), weight, dtype=np.float32)
        loss_weights[0] = 0  # nothing stands before it that could predict it
        span = Span(0, 0, len(ids), "document", "document", TEXT)
        return [
            Example(
                np.fromiter(ids, np.int32, len(ids)),
                loss_weights,
                np.full(len(ids), CHANNEL_NUMBERS[TEXT], dtype=np.int8),
                (span,),
                document.source,
            )
        ]

    def _pieces(self, conversation: Conversation) -> list[_Piece]:
        pieces: list[_Piece] = []
        goes_on = False
        for header, text, weight in conversation.messages:
            heading = self._heading(header)
            ids = heading.ids + self._encode(text, conversation.source)
            ids.append(heading.end)
            body = len(heading.ids)
            if header.role == "assistant":
                known = (header, heading.role, heading.label, weight, not goes_on)
                pieces.append(_Piece(ids, body, *known))
                goes_on = header.recipient is None
            else:
                pieces.append(_Piece(ids, body, header, heading.role, heading.label))
                goes_on = False
        return pieces

    def _prefix(self, conversation: Conversation) -> list[_Piece]:
        functions = conversation.namespaces.get("functions")
        has_functions = functions is not None and bool(functions["tools"])
        effort = conversation.effort or self.settings.reasoning_effort
        key = (effort, conversation.builtin_tools, has_functions)
        system = self._systems.get(key)
        if system is None:
            content = system_content(effort, self.settings.date, conversation.builtin_tools)
            ids = self._library_render({"role": "system", "content": [content]}, has_functions)
            body = ids.index(MESSAGE) + 1
            system = _Piece(ids, body, Header("developer"), "system", "system")
            self._systems[key] = system
        text = developer_text(conversation, self._tools_text(conversation))
        if not text and conversation.instructions is None:
            return [system]
        header = Header("developer")
        heading = self._heading(header)
        ids = [*heading.ids, *self._encode(text, conversation.source), heading.end]
        return [system, _Piece(ids, len(heading.ids), header, "developer", "developer")]

    def _tools_text(self, conversation: Conversation) -> str:
        """Return the library's text for the function tools: its rendering, read back."""
        key = conversation.namespaces_json
        if not key:
            return ""
        known = self._tools_texts.get(key)
        if known is not None:
            return known
        content = {"type": "developer_content", "tools": conversation.namespaces}
        try:
            ids = self._library_render({"role": "developer", "content": [content]}, True)
        except ValueError as error:
            raise DataError(
                f"{conversation.source}: openai-harmony cannot render the tools ({error}); check "
                "their declarations"
            ) from None
        text = self.vocabulary.encoding.decode_utf8(ids[ids.index(MESSAGE) + 1 : -1])
        return _kept(self._tools_texts, key, text)

    def _heading(self, header: Header) -> _Heading:
        known = self._headings.get(header)
        if known is not None:
            return known
        fields = {name: value for name, value in header._asdict().items() if value is not None}
        *ids, end = self._library_render({**fields, "content": ""}, False)
        return _kept(self._headings, header, _Heading(ids, end, header.role, _label(header)))

    def _library_render(self, message: dict[str, Any], functions: bool) -> list[int]:
        # The library's own class would parse the JSON into pydantic objects and dump it again.
        inner = self.vocabulary.encoding._inner
        options = {"conversation_has_function_tools": functions}
        return inner.render(message_json=json.dumps(message), render_options=options)

    def _encode(self, text: str, at: str) -> list[int]:
        if len(text) > LONGEST_WHITE_SPACE and _TOO_MUCH_WHITE_SPACE.search(text):
            raise DataError(
                f"{at}: a text holds over {LONGEST_WHITE_SPACE:,} white-space characters in a row, "
                "more than the tokenizer takes; remove them"
            )
        return self.vocabulary.encode(text)

    def _assemble(
        self, conversation: Conversation, context: list[_Piece], trained: list[_Piece]
    ) -> Example | None:
        weights = {**dict(self.settings.channel_weights), **conversation.channel_weights}
        ids: list[int] = []
        spans: list[Span] = []
        for piece in context:
            start = len(ids)
            ids += piece.ids
            channel = piece.header.channel
            spans.append(
                Span(start, start + piece.body, len(ids), piece.role, piece.label, channel)
            )
        weighted: list[tuple[int, int, float]] = []
        for piece in trained:
            start = len(ids)
            ids += piece.ids
            channel = piece.header.channel
            spans.append(
                Span(start, start + piece.body, len(ids), piece.role, piece.label, channel)
            )
            if piece.role == "assistant":
                weight = piece.weight * conversation.weight * weights[channel or "final"]
                first = start + (_SERVER_TOKENS if piece.opens else 0)
                # An answer that history follows ends in <|end|>, which is not to be learned.
                shared = channel == "final" and piece is not trained[-1]
                if weight:
                    weighted.append((first, len(ids) - shared, weight))
        if not weighted:
            return None
        if ids[-1] == END and trained[-1].header.channel == "final":
            ids[-1] = RETURN
        return _example(ids, spans, weighted, conversation.source)


def _groups(pieces: Sequence[_Piece], turns: Sequence[range]) -> list[range]:
    """Join turns into samples: one ends at each turn with thoughts that the next would drop."""
    groups: list[range] = []
    start = 0
    for number, turn in enumerate(turns):
        thinks = any(pieces[index].header.channel == "analysis" for index in turn)
        if thinks or number == len(turns) - 1:
            groups.append(range(start, number + 1))
            start = number + 1
    return groups


def _label(header: Header) -> str:
    """Return what people call a message."""
    if header.role == "tool":
        return f"{header.name} to assistant"
    label = header.role if header.name is None else f"{header.role}:{header.name}"
    if header.channel is not None:
        label += f" {header.channel}"
    return label if header.recipient is None else f"{label} to {header.recipient}"


def _kept(known: dict[Any, _Value], key: object, value: _Value) -> _Value:
    """Remember a value; a data set whose every row differs empties the store now and then."""
    if len(known) >= _MOST_KEPT:
        known.clear()
    known[key] = value
    return value


def _example(
    ids: list[int],
    spans: list[Span],
    weighted: list[tuple[int, int, float]],
    source: str,
) -> Example:
    loss_weights = np.zeros(len(ids), dtype=np.float32)
    channels = np.zeros(len(ids), dtype=np.int8)
    for first, last, weight in weighted:
        loss_weights[first:last] = weight
    for span in spans:
        if span.role == "assistant":
            channels[span.start : span.end] = CHANNEL_NUMBERS.get(span.channel or "", NO_CHANNEL)
    return Example(
        np.fromiter(ids, np.int32, len(ids)), loss_weights, channels, tuple(spans), source
    )
