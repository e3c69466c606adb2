"""Samples token by token in a terminal: one after the other, or both answers of a pair abreast.

Colour says the loss weight of a token; where there is no colour (a pipe, NO_COLOR) trained text
stands between marks instead. The lines of an answer begin with the sign of its weights, so that
both are told apart without colour too. Columns are laid out here, line by line: a table of rich
would cut what a terminal that wraps softly is to show whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from gptoss_tune.display import can_show, visible

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.harmony.render import Example, Span
    from gptoss_tune.harmony.vocabulary import Vocabulary
    from gptoss_tune.report.token_view import Piece, ShownBranch, ShownPreference

_TRAINED_MARKS, _PLAIN_MARKS = ("\u27e6", "\u27e7"), ("[[", "]]")
_RULE, _PLAIN_RULE = "\u2502", "|"
NARROWEST: Final = 100
"""Columns of a terminal from which on two answers stand side by side."""

# Strongest, middle and weakest ground of what is trained, by the sign of its weight.
_GROUNDS: Final = {1: ("#0f5132", "#3b5323", "#5c4a12"), -1: ("#7a1c22", "#6b3a1f", "#5c4a12")}
_SIGNS: Final = {1: "+", -1: "-"}
_WORD: Final = re.compile(r"<\|[a-z_]+\|>|\s+|[^\s<]+|<")
"""A special token, white space, or what stands between them."""
_INKS: Final = {1: "green", -1: "red"}


def print_sample(console: Console, number: int, example: Example, vocabulary: Vocabulary) -> None:
    """Print a sample of a conversation."""
    trained = int((example.loss_weights > 0).sum())
    size = f"{len(example.input_ids):,} tokens, {trained:,} trained"
    title = f"Sample {number}  {visible(example.source)}  ({size})"
    console.print(Text(title, style="bold"))
    largest = float(example.loss_weights.max())
    for line in _messages(console, example, example.spans, vocabulary, largest):
        console.print(Text("  ").append_text(line))
    console.print()


def print_preference(
    console: Console, number: int, shown: ShownPreference, vocabulary: Vocabulary
) -> None:
    """Print a pair: the prompt once, then both answers, side by side where there is room.

    Of a labelled answer there is one alone.
    """
    console.print(Text(_heading(number, shown), style="bold"))
    for note in shown.notes:
        console.print(Text(f"  {visible(note)}", style="yellow"))
    first = shown.branches[0].documents[0]
    for line in _messages(console, first, shown.prompt, vocabulary, shown.weight):
        console.print(Text("  ").append_text(line))
    abreast = len(shown.branches) > 1 and console.is_terminal and console.width >= NARROWEST
    if abreast:
        rule = _RULE if can_show(_RULE, console.encoding) else _PLAIN_RULE
        width = (console.width - len(f"   {rule} ")) // 2
        sides = [_branch(console, one, shown, vocabulary, width) for one in shown.branches]
        for left, right in zip_longest(*sides, fillvalue=Text()):
            line = Text("  ").append_text(left)
            line.append(" " * max(0, width - left.cell_len)).append(f" {rule} ", style="dim")
            console.print(line.append_text(right))
    else:
        # What is read from a pipe has its lines whole.
        width = console.width - len("  ") if console.is_terminal else None
        for one in shown.branches:
            for line in _branch(console, one, shown, vocabulary, width):
                console.print(Text("  ").append_text(line))
    console.print()


def _heading(number: int, shown: ShownPreference) -> str:
    sizes = "; ".join(
        f"{one.name} {one.tokens:,} tokens, {one.counted:,} counted" for one in shown.branches
    )
    what = "Pair" if len(shown.branches) > 1 else "Answer"
    return f"{what} {number}  {visible(shown.source)}  ({sizes})"


def _branch(
    console: Console,
    branch: ShownBranch,
    shown: ShownPreference,
    vocabulary: Vocabulary,
    width: int | None,
) -> list[Text]:
    """Return the lines of an answer, each begun by its sign; ``width``: as wide at most."""
    ink, sign = _INKS[branch.sign], f"{_SIGNS[branch.sign]} "
    weight = "" if shown.weight == 1 else f", weight {branch.sign * shown.weight:+g}"
    lines = [Text(f"{branch.name}{weight}", style=f"bold {ink}")]
    count = len(branch.documents)
    for place, document in enumerate(branch.documents, start=1):
        same, spans = shown.following(document)
        if count > 1:
            again = f", after {same:,} tokens of the prompt" if place > 1 else ""
            lines.append(Text(f"context {place} of {count}{again}", style=f"italic {ink}"))
        lines += _messages(
            console,
            document,
            spans,
            vocabulary,
            shown.weight,
            sign=branch.sign,
            width=None if width is None else width - len(sign),
        )
    return [Text.assemble((sign, ink), line) for line in lines]


def _messages(
    console: Console,
    example: Example,
    spans: Iterable[Span],
    vocabulary: Vocabulary,
    largest: float,
    *,
    sign: int = 1,
    width: int | None = None,
) -> Iterator[Text]:
    """Yield the lines of messages: what each is called, then its text, further in."""
    from gptoss_tune.report.token_view import pieces

    for span in spans:
        label = Text(visible(span.label), style="bold cyan")
        yield from [label] if width is None else _wrapped(label, width)
        text = _message(console, pieces(example, span, vocabulary), largest, sign)
        rest = None if width is None else width - 2
        for line in text.split("\n", allow_blank=True) if rest is None else _wrapped(text, rest):
            yield Text("  ").append_text(line)


def _wrapped(text: Text, width: int) -> Iterator[Text]:
    """Yield the lines of a text, none wider than a column; special tokens stay whole."""
    for line in text.split("\n", allow_blank=True):
        line.expand_tabs(4)
        for part in line.divide(_breaks(line.plain, width)):
            # White space may stand over the edge, where the next word would not fit.
            spaces = len(part.plain) - len(part.plain.rstrip())
            over = min(spaces, part.cell_len - width)
            if over > 0:
                part.right_crop(over)
            yield part


def _breaks(line: str, width: int) -> Iterator[int]:
    """Yield the places at which a line is broken: before words, inside those that are too wide."""
    filled = 0
    for match in _WORD.finditer(line):
        word = match.group()
        cells = cell_len(word)
        if word.isspace():
            filled += cells
            continue
        if filled and filled + cells > width:
            yield match.start()
            filled = 0
        if cells <= width:
            filled += cells
            continue
        for place, character in enumerate(word, start=match.start()):
            wide = cell_len(character)
            if filled + wide > width:
                yield place
                filled = 0
            filled += wide


def _message(console: Console, message: Iterable[Piece], largest: float, sign: int) -> Text:
    coloured = console.color_system is not None
    text = Text()
    marked = False
    shown = can_show("".join(_TRAINED_MARKS), console.encoding)
    marks = _TRAINED_MARKS if shown else _PLAIN_MARKS
    for piece in message:
        trained = piece.weight > 0
        if not coloured and trained != marked:
            text.append(marks[marked])
            marked = trained
        text.append(visible(piece.text), style=_style(piece, largest, sign))
    if marked:
        text.append(marks[1])
    return text


def _style(piece: Piece, largest: float, sign: int) -> str:
    """Green or red for what is trained, the stronger the larger its weight; special tokens bold."""
    bold = "bold " if piece.special else ""
    if not piece.weight:
        return f"{bold}magenta" if piece.special else "dim"
    share = piece.weight / largest
    ground = _GROUNDS[sign][0 if share > 0.99 else 1 if share > 0.4 else 2]
    return f"{bold}white on {ground}"
