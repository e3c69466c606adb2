"""``gptoss-tune preview | check-data``: see what is trained, and whether all of it can be.

Both read the cached rendering that training reads. Colour says the loss weight of a token; where
there is no colour (a pipe, NO_COLOR) trained text stands between marks instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gptoss_tune.cli.arguments import AsJson, Overrides, RecipePath
from gptoss_tune.display import can_show, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gptoss_tune.harmony.dataset.statistics import DataStatistics, Overlap, SplitStatistics
    from gptoss_tune.harmony.render import Example
    from gptoss_tune.harmony.vocabulary import Vocabulary
    from gptoss_tune.report.token_view import Piece

_WIDEST_BAR = 40
_MOST_LISTED = 10
_TRAINED_MARKS, _PLAIN_MARKS = ("\u27e6", "\u27e7"), ("[[", "]]")
_BLOCK, _PLAIN_BLOCK = "\u2588", "#"


def preview(
    recipe: RecipePath,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("--n", min=0, max=1000, help="Samples to show.")] = 5,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one self-contained page instead.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Samples of train or eval.", metavar="train|eval")
    ] = "train",
) -> None:
    """Show what a recipe trains, token by token, and what its data amount to.

    Tokens are coloured by loss weight, special tokens visible.

    Rows that cannot be trained on are listed, not an error: see check-data.
    """
    from rich.console import Console

    from gptoss_tune.errors import RecipeError
    from gptoss_tune.harmony.dataset.load import split_sources
    from gptoss_tune.harmony.dataset.statistics import data_statistics
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.report.token_view import first_examples

    resolved = load_recipe(recipe, overrides or [])
    if split not in ("train", "eval"):
        raise RecipeError(f"--split is {split!r}; expected train or eval")
    chosen: Literal["train", "eval"] = "eval" if split == "eval" else "train"
    sources = split_sources(resolved.data, chosen)
    vocabulary = load_vocabulary()
    census = data_statistics(resolved.data, vocabulary, seed=resolved.train.seed)
    examples = first_examples(resolved.data, sources, vocabulary, n)
    console = Console(highlight=False, soft_wrap=True)
    if html is not None:
        _write_page(html, census, examples, vocabulary, str(recipe))
        console.print(f"{html}: {len(examples)} samples, {html.stat().st_size:,} bytes")
        return
    for number, example in enumerate(examples, start=1):
        _print_example(console, number, example, vocabulary)
    _print_census(console, census)


def check_data(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the JSON report to this file.")
    ] = None,
    as_json: AsJson = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on warnings too: duplicates, leakage, drops.")
    ] = False,
) -> None:
    """Check every row of a recipe's data; write a JSON report.

    Exit code 0 when all rows can be trained on, 2 when not.
    """
    from rich.console import Console

    from gptoss_tune.harmony.dataset.statistics import data_statistics
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    census = data_statistics(resolved.data, load_vocabulary(), seed=resolved.train.seed)
    report = {"recipe": str(recipe), **census.to_json()}
    if strict:
        report["ok"] = not (census.problems() or census.warnings())
    text = json.dumps(report, indent=2)
    if out is not None:
        _write(out, text + "\n")
    if as_json:
        typer.echo(text)
    else:
        _print_census(Console(highlight=False, soft_wrap=True), census, strict=strict)
    if not report["ok"]:
        raise typer.Exit(2)


def _write_page(
    path: Path, census: DataStatistics, examples: list[Example], vocabulary: Vocabulary, title: str
) -> None:
    from gptoss_tune.report.preview_page import preview_page

    _write(path, preview_page(census, examples, vocabulary, title=title))


def _write(path: Path, text: str) -> None:
    from gptoss_tune.files.atomic import write_text

    write_text(path, text)


def _print_example(console: Console, number: int, example: Example, vocabulary: Vocabulary) -> None:
    from rich.text import Text

    from gptoss_tune.report.token_view import pieces

    trained = int((example.loss_weights > 0).sum())
    size = f"{len(example.input_ids):,} tokens, {trained:,} trained"
    title = f"Sample {number}  {visible(example.source)}  ({size})"
    console.print(Text(title, style="bold"))
    largest = float(example.loss_weights.max())
    for span in example.spans:
        console.print(Text(f"  {visible(span.label)}", style="bold cyan"))
        text = _message(console, pieces(example, span, vocabulary), largest)
        for line in text.split("\n", allow_blank=True):
            console.print(Text("    ").append_text(line))
    console.print()


def _message(console: Console, message: object, largest: float) -> Text:
    from collections.abc import Iterable
    from typing import cast

    from rich.text import Text

    coloured = console.color_system is not None
    text = Text()
    marked = False
    shown = can_show("".join(_TRAINED_MARKS), console.encoding)
    marks = _TRAINED_MARKS if shown else _PLAIN_MARKS
    for piece in cast("Iterable[Piece]", message):
        trained = piece.weight > 0
        if not coloured and trained != marked:
            text.append(marks[marked])
            marked = trained
        text.append(visible(piece.text), style=_style(piece, largest))
    if marked:
        text.append(marks[1])
    return text


def _style(piece: Piece, largest: float) -> str:
    """Green for what is trained, the stronger the larger its weight; special tokens bold."""
    bold = "bold " if piece.special else ""
    if not piece.weight:
        return f"{bold}magenta" if piece.special else "dim"
    share = piece.weight / largest
    ground = "#0f5132" if share > 0.99 else "#3b5323" if share > 0.4 else "#5c4a12"
    return f"{bold}white on {ground}"


def _print_census(console: Console, census: DataStatistics, *, strict: bool = False) -> None:
    from rich.text import Text

    for name, split in census.splits.items():
        _print_split(console, name, split)
    _print_overlap(console, "held-out rows that training sees too", census.leaked)
    _print_overlap(console, "held-out rows whose question training sees too", census.leaked_prompts)
    for heading, style, lines in (
        ("By the way", "dim", census.remarks()),
        ("To know", "yellow", census.warnings()),
        ("Problems", "bold red", census.problems()),
    ):
        if lines:
            console.print(Text(heading, style=style))
            for line in lines:
                console.print(Text(f"  {visible(line)}"))
    if strict and census.warnings():
        console.print(Text("Under --strict what is to know fails.", style="bold red"))
    elif not census.problems():
        console.print(Text("All rows can be trained on.", style="green"))


def _print_split(console: Console, name: str, split: SplitStatistics) -> None:
    from rich.text import Text

    from gptoss_tune.harmony.dataset.counts import grouped

    counts = split.report.counts
    console.print(Text(name, style="bold cyan"))
    again = f"{counts['repeated_tokens'] / max(1, counts['tokens']):.1%} of them context again"
    facts = [
        ("rows", f"{counts['rows']:,} read, {counts['rejected']:,} rejected"),
        ("samples", f"{split.samples:,} with {split.tokens:,} tokens, {again}"),
        ("trained", f"{split.trained_share:.1%} of the tokens: {_channels(split)}"),
    ]
    if split.filled is not None:
        facts.append(("packed", f"{split.packed_rows:,} rows, {split.filled:.1%} filled"))
    if len(split.sources) > 1:
        facts += [
            ("source", f"{visible(path)}: {report.counts['rows']:,} rows, weight {weight:g}")
            for path, weight, report in split.sources
        ]
    for label, fact in facts:
        console.print(Text.assemble((f"  {label:<9}", "dim"), fact))
    highest = max((count for _, _, count in split.histogram), default=1)
    widest = max((len(f"{high:,}") for _, high, _ in split.histogram), default=1)
    block = _BLOCK if can_show(_BLOCK, console.encoding) else _PLAIN_BLOCK
    for low, high, count in split.histogram:
        bar = block * round(_WIDEST_BAR * count / highest) if count else ""
        label = f"  {low:>{widest},} to {high - 1:>{widest},} "
        console.print(Text.assemble((label, "dim"), (bar, "blue"), f" {count:,}"))
    for line in grouped(split.report.rejected)[:_MOST_LISTED]:
        console.print(Text(f"  rejected {visible(line)}", style="red"))
    _print_overlap(console, "rows equal to an earlier one", split.duplicates)


def _channels(split: SplitStatistics) -> str:
    trained = max(1, split.report.counts["trained_tokens"])
    return ", ".join(
        f"{channel} {count / trained:.0%}" for channel, count in split.report.channels.items()
    )


def _print_overlap(console: Console, what: str, overlap: Overlap) -> None:
    from rich.text import Text

    if overlap.rows:
        what = what.replace("rows", "row", 1) if overlap.rows == 1 else what
        shown = ", ".join(map(visible, overlap.places[:_MOST_LISTED]))
        more = ", ..." if overlap.rows > _MOST_LISTED else ""
        console.print(Text(f"  {overlap.rows:,} {what}: {shown}{more}", style="yellow"))
