"""One row -> samples: read, checked, rendered, fitted to the length, and counted.

A sample is what is drawn, mixed and packed as one: the context and answers that end in one trained
turn. What a row is to other methods than supervised fine-tuning stands in ``pair_renderer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import (
    CHANNEL_NAMES,
    CHANNELS,
    TEXT,
    Conversation,
    count_special_text,
)
from gptoss_tune.harmony.dataset.counts import MOST_LISTED, RowCounts
from gptoss_tune.harmony.dataset.kinds import CONVERSATIONS, SampleKind
from gptoss_tune.harmony.document import Document
from gptoss_tune.harmony.fields import EFFORTS
from gptoss_tune.harmony.fit_length import cut_document, truncate
from gptoss_tune.harmony.formats.detect import format_of
from gptoss_tune.harmony.formats.registry import read_known
from gptoss_tune.harmony.formats.thinking_tags import spells_thoughts
from gptoss_tune.harmony.guards.answers import NO_ANSWER, Answer, answer_of
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.harmony.render import (
    Example,
    Renderer,
    RenderSettings,
)
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.sources.rows import Located
from gptoss_tune.harmony.vocabulary import LONGEST_TOKEN_BYTES, Vocabulary

NO_EFFORT: Final = -1
"""In the place of an effort's number: raw text is read without a system message."""


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """What decides how a row becomes samples; part of the key of the cache."""

    render: RenderSettings
    max_length: int
    too_long: Literal["drop", "truncate", "error"]
    nothing_to_train: Literal["skip", "error"]
    reading: ReadSettings = AS_IT_STANDS
    kind: SampleKind = CONVERSATIONS


@dataclass(frozen=True, slots=True)
class Columns:
    """The samples of a chunk; sample i is ``[offsets[i]:offsets[i + 1]]`` of the token columns.

    ``documents`` are the lengths of the documents of all samples, ``branches`` whether each is
    preferred (1) or not (-1), ``document_counts`` how many each sample has, and ``prompt_tokens``
    where the answer begins; all empty for conversations, each of which is one document.
    """

    input_ids: NDArray[np.int32]
    loss_weights: NDArray[np.float32]
    channels: NDArray[np.int8]
    lengths: NDArray[np.int32]
    efforts: NDArray[np.int8]
    row_keys: NDArray[np.uint64]
    prompt_keys: NDArray[np.uint64]
    repeated_tokens: NDArray[np.int32]
    special_text: NDArray[np.int32]
    without_thoughts: NDArray[np.int8]
    answer_keys: NDArray[np.uint64]
    answer_characters: NDArray[np.int32]
    answer_tokens: NDArray[np.int32]
    documents: NDArray[np.int32]
    branches: NDArray[np.int8]
    document_counts: NDArray[np.int32]
    prompt_tokens: NDArray[np.int32]
    sources: list[str]
    report: RowCounts


class Sample(NamedTuple):
    """One sample of a row.

    Attributes:
        example: Its tokens, documents laid end to end.
        repeated: How many of them another sample or branch of the row holds too.
        documents: Tokens of each document, where the sample is not one.
        branches: Of each document, 1 for the preferred answer and -1 for the other.
        prompt: Tokens before the answer, in the first document.
    """

    example: Example
    repeated: int
    documents: tuple[int, ...] = ()
    branches: tuple[int, ...] = ()
    prompt: int = 0


class ReadRow(NamedTuple):
    """A row that was read: (preferred) conversation or document, hashes, special texts, samples."""

    conversation: Conversation | Document
    keys: tuple[int, int]
    special: int
    samples: list[Sample]


class RowRenderer:
    """Turns rows into samples and counts what happens to them."""

    def __init__(self, vocabulary: Vocabulary, settings: SampleSettings) -> None:
        """Keep the settings and prepare a renderer."""
        self.settings = settings
        self.renderer = Renderer(vocabulary, settings.render)

    def columns(self, chunk: list[Located]) -> Columns:
        """Return the samples of a chunk; rows that cannot be used are in its report."""
        report = RowCounts()
        samples: list[Sample] = []
        about: list[tuple[int, ...]] = []
        answers: list[Answer] = []
        for at, raw in chunk:
            report.counts["rows"] += 1
            try:
                row, padding = clean_row(raw, at)
                if padding:
                    report.counts["padding"] += padding
                read = self.read(row, at, report)
            except DataError as error:
                report.reject(str(error), at)
                continue
            conversation, special = read.conversation, read.special
            effort, thoughtless, answer = NO_EFFORT, 0, NO_ANSWER
            if isinstance(conversation, Conversation):
                effort, thoughtless = self._effort(conversation, len(read.samples), report)
                if read.samples and self.settings.kind.rows == "conversation":
                    answer = answer_of(conversation, read.samples[-1].example)
            for sample in read.samples:
                samples.append(sample)
                about.append((effort, *read.keys, special, thoughtless))
                answers.append(answer)
                special, thoughtless, answer = 0, 0, NO_ANSWER  # once a row, with its first sample
        return _columns(samples, about, answers, report)

    def _effort(
        self, conversation: Conversation, samples: int, report: RowCounts
    ) -> tuple[int, int]:
        """Return the number of a row's effort, and 1 where it should think and does not."""
        effort = conversation.effort or self.settings.render.reasoning_effort
        report.efforts[effort] += samples
        thoughtless = effort != "low" and conversation.effort is None and not conversation.thinks
        if thoughtless and not spells_thoughts(conversation):
            report.count_at("without_thoughts", conversation.source)
            return EFFORTS.index(effort), 1
        return EFFORTS.index(effort), 0

    def read(self, row: dict[str, Any], at: str, report: RowCounts) -> ReadRow:
        """Return a row's samples; what is dropped or worth telling goes into ``report``.

        Raises:
            DataError: The row cannot be used.
        """
        name = format_of(row, at)
        report.formats[name] += 1
        conversation = read_known(name, row, at, self.settings.reading)
        special = self.count_special_text(conversation, report)
        if isinstance(conversation, Document):
            samples = self._pieces(conversation, report)
        else:
            samples = self._samples(conversation, report)
        report.note(conversation.notes, at)
        return ReadRow(conversation, conversation.keys(), special, samples)

    def _pieces(self, document: Document, report: RowCounts) -> list[Sample]:
        """Return the samples of a document, of which nothing is left out for its length."""
        examples = self.renderer.render(document)
        if not examples:
            self.nothing_to_train(document.source, report)
            return []
        pieces = cut_document(examples[0], self.settings.max_length)
        report.counts["documents"] += 1
        report.counts["cut_documents"] += len(pieces) > 1
        # A piece begins with the last token of the one before.
        report.counts["repeated_tokens"] += len(pieces) - 1
        return [Sample(piece, int(number > 0)) for number, piece in enumerate(pieces)]

    def _samples(self, conversation: Conversation, report: RowCounts) -> list[Sample]:
        """Return the samples of a row, each with how many of its tokens an earlier one had too."""
        at, settings = conversation.source, self.settings
        if settings.too_long == "drop" and _surely_longer(conversation, settings.max_length):
            self.drop(at, report)
            return []
        examples = self.renderer.render(conversation)
        if not examples:
            self.nothing_to_train(at, report)
            return []
        if settings.render.turns == "all":
            report.counts["shared_turns"] += conversation.turn_count() - len(examples)
        kept: list[Sample] = []
        for example, repeated in zip(examples, _repeated_tokens(examples), strict=True):
            fitted = self._fitted(example, report)
            kept += [Sample(one, min(repeated, len(one.input_ids))) for one in fitted]
        report.counts["repeated_tokens"] += sum(sample.repeated for sample in kept)
        return kept

    def nothing_to_train(self, at: str, report: RowCounts) -> None:
        """Count a row whose every token has loss weight 0.

        Raises:
            DataError: The recipe does not skip such rows.
        """
        if self.settings.nothing_to_train == "error":
            raise DataError(
                f"{at}: every token has loss weight 0; give a message or its channel a weight, "
                "or set data.nothing_to_train to skip"
            )
        report.count_at("nothing_to_train", at)

    def _fitted(self, example: Example, report: RowCounts) -> list[Example]:
        limit = self.settings.max_length
        if len(example.input_ids) <= limit:
            return [example]
        if self.settings.too_long == "error":
            raise DataError(
                f"{example.source}: a sample has {len(example.input_ids):,} tokens, over "
                f"data.max_length {limit:,}; raise it, shorten the row, or set "
                "data.too_long to drop"
            )
        if self.settings.too_long == "drop":
            self.drop(example.source, report, len(example.input_ids))
            return []
        shorter = truncate(example, limit)
        if shorter is None:
            self.drop(example.source, report, len(example.input_ids))
            return []
        report.count_at("truncated", example.source)
        return [shorter]

    def drop(self, at: str, report: RowCounts, tokens: int = 0) -> None:
        """Count a sample that is too long, of ``tokens`` tokens; 0: it was not even tokenised."""
        report.counts["too_long"] += 1
        if tokens:
            report.shortest_too_long = min(report.shortest_too_long or tokens, tokens)
        if len(report.too_long) < MOST_LISTED:
            report.too_long.append(at)

    def count_special_text(self, conversation: Conversation | Document, report: RowCounts) -> int:
        """Return how often the row's texts spell special tokens, counted in ``report``."""
        found = sum(map(count_special_text, conversation.texts()))
        if found:
            report.counts["special_text"] += found
            if len(report.special_text) < MOST_LISTED:
                report.special_text.append(conversation.source)
        return found


def _surely_longer(conversation: Conversation, max_length: int) -> bool:
    """Whether the last turn alone is too long, known from its bytes: nothing need be tokenised.

    A token is at most 128 bytes and a character at least one.
    """
    characters = sum(len(message.text) for message in conversation.messages)
    return characters > LONGEST_TOKEN_BYTES * max_length and conversation.turn_count() == 1


def _repeated_tokens(examples: list[Example]) -> list[int]:
    """Return how many tokens of each sample of a row, from its start, the one before it has too."""
    repeated = [0]
    for before, after in pairwise(examples):
        shortest = min(len(before.input_ids), len(after.input_ids))
        differs = before.input_ids[:shortest] != after.input_ids[:shortest]
        repeated.append(int(differs.argmax()) if differs.any() else shortest)
    return repeated


def _columns(
    samples: list[Sample],
    about: list[tuple[int, ...]],
    answers: list[Answer],
    report: RowCounts,
) -> Columns:
    examples = [sample.example for sample in samples]

    def joined(name: str, dtype: type) -> NDArray:
        parts = [getattr(example, name) for example in examples]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    input_ids = joined("input_ids", np.int32)
    loss_weights = joined("loss_weights", np.float32)
    channels = joined("channels", np.int8)
    efforts, rows, prompts, special, thoughtless = zip(*about, strict=True) if about else [()] * 5
    trained = np.bincount(channels[loss_weights > 0], minlength=len(CHANNEL_NAMES))
    report.counts["samples"] += len(examples)
    report.counts["tokens"] += len(input_ids)
    report.counts["trained_tokens"] += int((loss_weights > 0).sum())
    for number, channel in enumerate(CHANNELS, start=1):
        report.channels[channel] += int(trained[number])
    if trained[CHANNEL_NAMES.index(TEXT)]:
        report.channels[TEXT] += int(trained[CHANNEL_NAMES.index(TEXT)])
    split = [sample for sample in samples if sample.documents]
    return Columns(
        input_ids=input_ids,
        loss_weights=loss_weights,
        channels=channels,
        lengths=np.array([len(example.input_ids) for example in examples], dtype=np.int32),
        efforts=np.array(efforts, dtype=np.int8),
        row_keys=np.array(rows, dtype=np.uint64),
        prompt_keys=np.array(prompts, dtype=np.uint64),
        repeated_tokens=np.array([sample.repeated for sample in samples], dtype=np.int32),
        special_text=np.array(special, dtype=np.int32),
        without_thoughts=np.array(thoughtless, dtype=np.int8),
        answer_keys=np.array([answer.key for answer in answers], dtype=np.uint64),
        answer_characters=np.array([answer.characters for answer in answers], dtype=np.int32),
        answer_tokens=np.array([answer.tokens for answer in answers], dtype=np.int32),
        documents=np.array([n for sample in split for n in sample.documents], dtype=np.int32),
        branches=np.array([n for sample in split for n in sample.branches], dtype=np.int8),
        document_counts=np.array([len(sample.documents) for sample in split], dtype=np.int32),
        prompt_tokens=np.array([sample.prompt for sample in split], dtype=np.int32),
        sources=[example.source for example in examples],
        report=report,
    )
