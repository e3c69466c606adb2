"""Examples as people read them: text in pieces, each with the weight its tokens are trained with.

A character may take several tokens and a token may end inside a character, so a piece is the
fewest tokens that spell whole characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.render import Example, Renderer, Span
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.sources.rows import Located
from gptoss_tune.harmony.vocabulary import ORDINARY_TOKENS, Vocabulary
from gptoss_tune.recipe import DataSection, DataSource


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

    Rows that cannot be trained on are passed over; the census names them.
    """
    settings = sample_settings(data)
    renderer = Renderer(vocabulary, settings.render)
    rows = [open_source(source).rows() for source in sources]
    examples: list[Example] = []
    for at, raw in chain.from_iterable(_in_turn(rows)):
        if len(examples) >= count:
            break
        try:
            row, _ = clean_row(raw, at)
            examples += renderer.render(read_row(row, at, settings.reading))
        except DataError:
            continue
    return examples[:count]


def _in_turn(iterators: list[Iterator[Located]]) -> Iterator[list[Located]]:
    while iterators:
        taken: list[Located] = []
        for iterator in list(iterators):
            following = next(iterator, None)
            if following is None:
                iterators.remove(iterator)
            else:
                taken.append(following)
        yield taken
