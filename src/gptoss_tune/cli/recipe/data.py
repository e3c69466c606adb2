"""``gptoss-tune preview | check-data``: see what is trained, and whether all of it can be.

Both read the cached rendering that training reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from gptoss_tune.cli.arguments import AsJson, Overrides, RecipePath
from gptoss_tune.display import can_show, visible

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.harmony.dataset.pair_statistics import PairStatistics
    from gptoss_tune.harmony.dataset.statistics import DataStatistics, SplitStatistics
    from gptoss_tune.harmony.places import Overlap
    from gptoss_tune.harmony.render import Example
    from gptoss_tune.harmony.vocabulary import Vocabulary
    from gptoss_tune.recipe import DataSection
    from gptoss_tune.recipe.schema import GrpoSection, MethodSection
    from gptoss_tune.report.token_view import ShownPreference

EnvironmentClass = Annotated[
    str | None,
    typer.Option(
        "--environment",
        metavar="MODULE:CLASS",
        help="With method grpo: a class of your own that asks and rewards.",
        show_default=False,
    ),
]
_WIDEST_BAR = 40
_MOST_LISTED = 10
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
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 2 on warnings, and on rejected rows.")
    ] = False,
    environment: EnvironmentClass = None,
) -> None:
    """Show what a recipe trains, token by token, and what its data amount to.

    Tokens are coloured by loss weight, special tokens visible. Pairs stand side by side. With
    method grpo: prompts as they are asked, with their tools, and what grades the answers.

    Rows that cannot be trained on are listed, not an error, unless --strict: see check-data.
    """
    from rich.console import Console

    from gptoss_tune.cli.recipe.preview_text import print_preference, print_sample
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.harmony.dataset.kinds import kind_of
    from gptoss_tune.harmony.dataset.load import split_sources
    from gptoss_tune.harmony.dataset.pair_statistics import NOUNS
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.recipe.schema import GrpoSection
    from gptoss_tune.report.token_view import first_examples, first_preferences

    resolved = load_recipe(recipe, overrides or [])
    if split not in ("train", "eval"):
        raise RecipeError(f"--split is {split!r}; expected train or eval")
    chosen: Literal["train", "eval"] = "eval" if split == "eval" else "train"
    sources = split_sources(resolved.data, chosen)
    kind = kind_of(resolved.method)
    if isinstance(resolved.method, GrpoSection):
        seed = resolved.train.seed
        asked = _Prompts(resolved.data, resolved.method, seed, environment)
        return _preview_prompts(asked, chosen, n, html, strict=strict)
    _refuse_environment(environment)
    vocabulary = load_vocabulary()
    census = _statistics(resolved.data, resolved.method, vocabulary, seed=resolved.train.seed)
    examples: list[Example] = []
    pairs: list[ShownPreference] = []
    if kind.rows == "conversation":
        examples = first_examples(resolved.data, sources, vocabulary, n)
    else:
        pairs = first_preferences(resolved.data, sources, vocabulary, n, kind)
    console = Console(highlight=False, soft_wrap=True)
    if html is not None:
        _write_page(html, census, [*examples, *pairs], vocabulary, str(recipe))
        shown = f"{len(examples) + len(pairs)} {NOUNS[kind.rows][0]}s"
        console.print(f"{html}: {shown}, {html.stat().st_size:,} bytes")
        if strict:
            _print_findings(console, census, strict=True)
    else:
        for number, example in enumerate(examples, start=1):
            print_sample(console, number, example, vocabulary)
        for number, pair in enumerate(pairs, start=1):
            print_preference(console, number, pair, vocabulary)
        _print_census(console, census, strict=strict)
    if strict and (census.problems() or census.warnings()):
        raise typer.Exit(2)


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
    environment: EnvironmentClass = None,
) -> None:
    """Check every row of a recipe's data; write a JSON report.

    Exit code 0 when all rows can be trained on, or played with method grpo, 2 when not.
    """
    from rich.console import Console

    from gptoss_tune.cli.recipe.prompts import print_prompt_data, prompt_data
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.recipe.schema import GrpoSection

    resolved = load_recipe(recipe, overrides or [])
    console = Console(highlight=False, soft_wrap=True)
    if isinstance(resolved.method, GrpoSection):
        prompts = prompt_data(resolved.data, resolved.method, resolved.train.seed, environment)
        report, amiss = prompts.to_json(), [*prompts.problems, *prompts.warnings]
        show = partial(print_prompt_data, console, prompts, strict=strict)
    else:
        _refuse_environment(environment)
        seed = resolved.train.seed
        census = _statistics(resolved.data, resolved.method, load_vocabulary(), seed=seed)
        report, amiss = census.to_json(), [*census.problems(), *census.warnings()]
        show = partial(_print_census, console, census, strict=strict)
    report = {"recipe": str(recipe), **report}
    if strict:
        report["ok"] = not amiss
    text = json.dumps(report, indent=2)
    if out is not None:
        _write(out, text + "\n")
    if as_json:
        typer.echo(text)
    else:
        show()
    if not report["ok"]:
        raise typer.Exit(2)


class _Prompts(NamedTuple):
    """The prompts of a recipe of grpo, and who asks them."""

    data: DataSection
    method: GrpoSection
    seed: int
    environment: str | None


def _preview_prompts(
    asked: _Prompts, split: str, count: int, html: Path | None, *, strict: bool
) -> None:
    """Show the first prompts of a recipe of grpo, and what all amount to."""
    from rich.console import Console

    from gptoss_tune.cli.recipe.prompts import print_first_prompts, print_prompt_data, prompt_data
    from gptoss_tune.errors import RecipeError

    if html is not None:
        raise RecipeError("--html is for samples that are trained; prompts are shown here alone")
    found = prompt_data(*asked)
    console = Console(highlight=False, soft_wrap=True)
    tasks, (data, method, seed, environment) = found.splits[split].tasks[:count], asked
    print_first_prompts(console, tasks, data, method, seed=seed, environment=environment)
    print_prompt_data(console, found, strict=strict)
    if strict and (found.problems or found.warnings):
        raise typer.Exit(2)


def _refuse_environment(environment: str | None) -> None:
    from gptoss_tune.errors import RecipeError

    if environment is not None:
        raise RecipeError(
            f"--environment {environment}: only method grpo plays episodes; leave it out, or set "
            "method.name to grpo"
        )


def _statistics(
    data: DataSection, method: MethodSection, vocabulary: Vocabulary, *, seed: int
) -> DataStatistics:
    from gptoss_tune.harmony.dataset.kinds import kind_of
    from gptoss_tune.harmony.dataset.pair_statistics import label_weights
    from gptoss_tune.harmony.dataset.statistics import data_statistics

    weights = label_weights(method)
    return data_statistics(data, vocabulary, seed=seed, kind=kind_of(method), weights=weights)


def _write_page(
    path: Path,
    census: DataStatistics,
    shown: Sequence[Example | ShownPreference],
    vocabulary: Vocabulary,
    title: str,
) -> None:
    from gptoss_tune.report.preview_page import preview_page

    _write(path, preview_page(census, shown, vocabulary, title=title))


def _write(path: Path, text: str) -> None:
    from gptoss_tune.files.atomic import write_text

    write_text(path, text)


def _print_census(console: Console, census: DataStatistics, *, strict: bool = False) -> None:

    for name, split in census.splits.items():
        _print_split(console, name, split)
    row = census.row
    _print_overlap(console, row, "held-out {} that training sees too", census.leaked)
    asked = "held-out {} whose question training sees too"
    _print_overlap(console, row, asked, census.leaked_prompts)
    _print_findings(console, census, strict=strict)


def _print_findings(console: Console, census: DataStatistics, *, strict: bool) -> None:
    from rich.text import Text

    row = census.row
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
        other = "other " if row != "row" and any(map(_left_out, census.splits.values())) else ""
        console.print(Text(f"All {other}{row}s can be trained on.", style="green"))


def _left_out(split: SplitStatistics) -> list[str]:
    from gptoss_tune.harmony.dataset.pair_statistics import dropped_phrases

    return dropped_phrases(split.report.counts, split.rows)


def _print_split(console: Console, name: str, split: SplitStatistics) -> None:
    from rich.text import Text

    from gptoss_tune.harmony.dataset.pair_statistics import NOUNS

    row = NOUNS[split.rows][1]
    # "Rejected" is the name of an answer in pairs.
    refused = "rejected" if split.rows == "conversation" else "refused"
    console.print(Text(name, style="bold cyan"))
    for label, fact in _facts(split, refused):
        console.print(Text.assemble((f"  {label:<9}", "dim"), fact))
    highest = max((count for _, _, count in split.histogram), default=1)
    widest = max((len(f"{high:,}") for _, high, _ in split.histogram), default=1)
    block = _BLOCK if can_show(_BLOCK, console.encoding) else _PLAIN_BLOCK
    for low, high, count in split.histogram:
        bar = block * round(_WIDEST_BAR * count / highest) if count else ""
        label = f"  {low:>{widest},} to {high - 1:>{widest},} "
        console.print(Text.assemble((label, "dim"), (bar, "blue"), f" {count:,}"))
    mistakes = list(split.report.mistakes.values())
    for mistake in mistakes[:_MOST_LISTED]:
        console.print(Text(f"  {refused} {visible(str(mistake))}", style="red"))
    if len(mistakes) > _MOST_LISTED:
        more = f"  and {len(mistakes) - _MOST_LISTED:,} more kinds, in the report (--out)"
        console.print(Text(more, style="red"))
    for what, places in split.listed():
        _print_overlap(console, row, what, places)
    _print_overlap(console, row, "{} equal to an earlier one", split.duplicates)


def _facts(split: SplitStatistics, refused: str) -> Iterator[tuple[str, str]]:
    """Yield the figures of a split, each after its name."""
    counts = split.report.counts
    again = f"{counts['repeated_tokens'] / max(1, counts['tokens']):.1%} of them"
    yield "rows", f"{counts['rows']:,} read, {counts['rejected']:,} {refused}"
    amount = f"{split.samples:,} with {split.tokens:,} tokens"
    if split.rows == "conversation":
        yield "samples", f"{amount}, {again} context again"
        channels = _channels(split.report.channels, counts["trained_tokens"])
        yield "trained", f"{split.trained_share:.1%} of the tokens: {channels}"
        if documents := counts["documents"]:
            cut = f", {counts['cut_documents']:,} of them in pieces of data.max_length"
            yield "text", f"{documents:,} documents{cut if counts['cut_documents'] else ''}"
    elif split.rows == "pair":
        yield "pairs", f"{amount} in both branches, {again} the prompt again"
    else:
        yield "answers", amount
    if split.preferences is not None:
        yield from _side_facts(split.preferences)
    if split.rows != "conversation" and (left_out := _left_out(split)):
        yield "dropped", ", ".join(left_out)
    if split.filled is not None:
        yield "packed", f"{split.packed_rows:,} rows, {split.filled:.1%} filled"
    if len(split.sources) > 1:
        for path, weight, report in split.sources:
            yield "source", f"{visible(path)}: {report.counts['rows']:,} rows, weight {weight:g}"


def _side_facts(figures: PairStatistics) -> Iterator[tuple[str, str]]:
    for name, side in figures.sides:
        number = f"{side.answers:,} answer{'s' if side.answers != 1 else ''}, "
        answers = "" if figures.rows == "pair" else number
        length = f"{side.mean_length:,.1f} on average"
        channels = _channels(side.channels, side.counted)
        yield name, f"{answers}{side.counted:,} counted tokens, {length}: {channels}"
    if figures.rows == "pair":
        yield "longer", f"the chosen answer in {figures.longer_share:.1%} of the pairs"


def _channels(channels: Mapping[str, int], total: int) -> str:
    return ", ".join(
        f"{channel} {count / max(1, total):.0%}" for channel, count in channels.items()
    )


def _print_overlap(console: Console, noun: str, what: str, overlap: Overlap) -> None:
    """Print the first places of something; ``{}`` in ``what`` stands for the noun."""
    from rich.text import Text

    if overlap.rows:
        what = what.format(noun if overlap.rows == 1 else f"{noun}s")
        shown = ", ".join(map(visible, overlap.places[:_MOST_LISTED]))
        more = ", ..." if overlap.rows > _MOST_LISTED else ""
        console.print(Text(f"  {overlap.rows:,} {what}: {shown}{more}", style="yellow"))
