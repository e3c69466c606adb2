"""Examples as people read them: text in pieces, each with the weight its tokens are trained with.

Of preferences both answers are read, as branches of one prompt.

A character may take several tokens and a token may end inside a character, so a piece is the
fewest tokens that spell whole characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from typing import TypeVar

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.kinds import Rows, SampleKind
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.dataset.pair_renderer import PairRenderer
from gptoss_tune.harmony.dataset.pair_statistics import SIDES
from gptoss_tune.harmony.dataset.row_renderer import RowRenderer, Sample
from gptoss_tune.harmony.document import Document
from gptoss_tune.harmony.render import Example, Span
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.sources.rows import Located
from gptoss_tune.harmony.vocabulary import ORDINARY_TOKENS, Vocabulary
from gptoss_tune.recipe import DataSection, DataSource

_Renderer = TypeVar("_Renderer", bound=RowRenderer)
_Value = TypeVar("_Value")

_MOST_ROWS_READ = 1000
"""Rows that are looked at for samples to show, where most are too long or refused."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole characters and the tokens that spell them.

    Attributes:
        text: The characters, or the name of a special token.
        ids: The tokens.
        weight: Loss weight of predicting them; the largest, where they differ.
        special: Whether it is a special token.
    """

    text: str
    ids: tuple[int, ...]
    weight: float
    special: bool


def pieces(example: Example, span: Span, vocabulary: Vocabulary) -> Iterator[Piece]:
    """Yield the pieces of one message of an example."""
    held: list[int] = []
    raw, weight = b"", 0.0
    for place in range(span.start, span.end):
        token = int(example.input_ids[place])
        token_weight = float(example.loss_weights[place])
        if token >= ORDINARY_TOKENS:
            if held:
                yield Piece(raw.decode("utf-8", "replace"), tuple(held), weight, False)
                held, raw, weight = [], b"", 0.0
            yield Piece(vocabulary.decode([token]), (token,), token_weight, True)
            continue
        held.append(token)
        raw += vocabulary.text.decode_single_token_bytes(token)
        weight = max(weight, token_weight)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue  # the next token completes the character
        yield Piece(text, tuple(held), weight, False)
        held, raw, weight = [], b"", 0.0
    if held:
        yield Piece(raw.decode("utf-8", "replace"), tuple(held), weight, False)


def first_examples(
    data: DataSection, sources: Sequence[DataSource], vocabulary: Vocabulary, count: int
) -> list[Example]:
    """Return the first samples of the sources in turn, one row of each after the other.

    They are those of training: too long ones are passed over or cut, as the recipe says, documents
    are in pieces. Rows that cannot be trained on are passed over; the census names them.
    """
    rows = [
        _with(RowRenderer(vocabulary, sample_settings(data, source=source)), source)
        for source in sources
    ]
    examples: list[Example] = []
    for renderer, (at, raw) in islice(chain.from_iterable(_in_turn(rows)), _MOST_ROWS_READ):
        if len(examples) >= count:
            break
        try:
            row, _ = clean_row(raw, at)
            found = renderer.read(row, at, RowCounts())
        except DataError:
            continue
        # The first piece of a long document, so that those of one file do not fill the page.
        pieces = 1 if isinstance(found.conversation, Document) else None
        examples += [sample.example for sample in found.samples[:pieces]]
    return examples[:count]


@dataclass(frozen=True, slots=True)
class ShownBranch:
    """One answer of a preference.

    Attributes:
        name: ``chosen``, ``rejected``, ``good`` or ``bad``.
        sign: 1 for the first of each two, -1 for the other: which way its tokens are moved.
        documents: One for each context that a turn of it is served in.
    """

    name: str
    sign: int
    documents: tuple[Example, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the documents, prompts included."""
        return sum(len(one.input_ids) for one in self.documents)

    @property
    def counted(self) -> int:
        """Tokens that enter the loss."""
        return sum(int((one.loss_weights > 0).sum()) for one in self.documents)


@dataclass(frozen=True, slots=True)
class ShownPreference:
    """A pair, or one answer with its label.

    Attributes:
        source: ``file:line`` of the row.
        branches: The chosen answer and the rejected one, or the only answer.
        prompt: The messages before the answers, in the first document of each branch.
        weight: What the row's loss is multiplied by.
        notes: What it teaches beside its preference.
    """

    source: str
    branches: tuple[ShownBranch, ...]
    prompt: tuple[Span, ...]
    weight: float
    notes: tuple[str, ...]

    def following(self, document: Example) -> tuple[int, list[Span]]:
        """Return the tokens at a document's start that are the prompt's, and the other messages."""
        first = self.branches[0].documents[0].input_ids
        same = list(
            takewhile(
                lambda both: (
                    both[0][:3] == both[1][:3]
                    and (document.input_ids[: both[1].end] == first[: both[0].end]).all()
                ),
                zip(self.prompt, document.spans, strict=False),
            )
        )
        return (same[-1][1].end if same else 0), list(document.spans[len(same) :])


NOTES = {
    "lost_analysis": "the chosen answer has no chain of thought, the rejected one has: "
    "the model learns not to think",
    "differ_in_length": "the answers differ in length alone",
}
"""What is said of a pair beside its tokens, by what is counted of it."""


def first_preferences(
    data: DataSection,
    sources: Sequence[DataSource],
    vocabulary: Vocabulary,
    count: int,
    kind: SampleKind,
) -> list[ShownPreference]:
    """Return the first pairs, or labelled answers, of the sources in turn.

    They are rendered as for training. Rows that cannot be trained on, and those that are dropped,
    are passed over; the census counts them.
    """
    rows = [
        _with(PairRenderer(vocabulary, sample_settings(data, kind, source)), source)
        for source in sources
    ]
    shown: list[ShownPreference] = []
    for renderer, (at, raw) in chain.from_iterable(_in_turn(rows)):
        if len(shown) >= count:
            break
        report = RowCounts()
        try:
            row, _ = clean_row(raw, at)
            samples = renderer.read(row, at, report).samples
        except DataError:
            continue
        notes = tuple(said for name, said in NOTES.items() if report.counts[name])
        shown += [_shown(sample, kind.rows, at, notes) for sample in samples]
    return shown


def _shown(sample: Sample, rows: Rows, at: str, notes: tuple[str, ...]) -> ShownPreference:
    documents, start = [], 0
    for length in sample.documents:
        documents.append(_part(sample.example, start, start + length))
        start += length
    signs = dict.fromkeys(sample.branches)
    branches = tuple(
        ShownBranch(
            SIDES[rows][sign < 0],
            sign,
            tuple(one for one, of in zip(documents, sample.branches, strict=True) if of == sign),
        )
        for sign in signs
    )
    prompt = tuple(span for span in documents[0].spans if span.end <= sample.prompt)
    return ShownPreference(at, branches, prompt, float(sample.example.loss_weights.max()), notes)


def _part(example: Example, start: int, end: int) -> Example:
    """Return one of several documents that are laid end to end."""
    spans = tuple(
        span._replace(start=span.start - start, body=span.body - start, end=span.end - start)
        for span in example.spans
        if start <= span.start < end
    )
    return Example(
        example.input_ids[start:end],
        example.loss_weights[start:end],
        example.channels[start:end],
        spans,
        example.source,
    )


def _with(renderer: _Renderer, source: DataSource) -> Iterator[tuple[_Renderer, Located]]:
    """Yield the rows of a source, each with what renders it."""
    return ((renderer, located) for located in open_source(source).rows())


def _in_turn(iterators: list[Iterator[_Value]]) -> Iterator[list[_Value]]:
    while iterators:
        taken: list[_Value] = []
        for iterator in list(iterators):
            following = next(iterator, None)
            if following is None:
                iterators.remove(iterator)
            else:
                taken.append(following)
        yield taken
