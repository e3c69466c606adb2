"""``preview`` and ``check-data`` of a recipe of grpo: prompts as they are asked, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gptoss_tune.display import can_show, visible

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.environments.environment import Task
    from gptoss_tune.harmony.vocabulary import Vocabulary
    from gptoss_tune.recipe import DataSection
    from gptoss_tune.recipe.schema import GrpoSection
    from gptoss_tune.rollout.asked import PromptData, PromptSplit, ShownPrompt

_WIDEST_BAR = 40
_BLOCK, _PLAIN_BLOCK = "\u2588", "#"


def prompt_data(
    data: DataSection, method: GrpoSection, seed: int, environment: str | None
) -> PromptData:
    """Return what the prompts of a recipe amount to.

    Raises:
        RecipeError: The class cannot be had, or a reward has a weight that nobody gives.
    """
    from gptoss_tune.environments.load import environment_for
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.rollout.asked import look_at_prompts

    environment_for(environment, method)
    return look_at_prompts(
        data, method, load_vocabulary(), seed=seed, own_environment=environment is not None
    )


def print_first_prompts(
    console: Console,
    tasks: Sequence[Task],
    data: DataSection,
    method: GrpoSection,
    *,
    seed: int,
    environment: str | None,
) -> None:
    """Print prompts as a sampler gets them, and what grades their answers."""
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.rollout.asked import first_prompts

    vocabulary = load_vocabulary()
    shown = first_prompts(tasks, data, method, vocabulary, environment=environment, seed=seed)
    for number, one in enumerate(shown, start=1):
        _print_prompt(console, number, one, vocabulary)


def _print_prompt(console: Console, number: int, one: ShownPrompt, vocabulary: Vocabulary) -> None:
    from rich.text import Text

    size = f"{len(one.token_ids):,} tokens"
    console.print(Text(f"Prompt {number}  {visible(one.source)}  ({size})", style="bold"))
    if one.problem is not None:
        console.print(Text(f"  cannot be asked: {visible(one.problem)}", style="red"))
    written = vocabulary.decode(list(one.token_ids))
    for message in filter(None, written.split("<|start|>")):
        head, mark, body = message.partition("<|message|>")
        console.print(Text(f"  <|start|>{visible(head)}{mark}", style="bold cyan"))
        for line in body.split("\n") if mark else ():
            console.print(Text(f"    {visible(line)}"))
    if one.grader is None:
        console.print(Text("  graded by: nothing in the row", style="yellow"))
    else:
        expected = visible(one.grader.expected)
        console.print(Text(f"  graded by: {one.grader.kind}, expected {expected}", style="green"))
    if one.results:
        console.print(Text(f"  results of tools in the row: {one.results:,}", style="green"))
    console.print()


def print_prompt_data(console: Console, found: PromptData, *, strict: bool) -> None:
    """Print the figures of prompts, split by split, and what is to know of them."""
    from rich.text import Text

    for name, split in found.splits.items():
        console.print(Text(name, style="bold cyan"))
        for label, fact in _facts(split):
            console.print(Text.assemble((f"  {label:<9}", "dim"), fact))
        highest = max((count for _, _, count in split.histogram), default=1)
        widest = max((len(f"{high:,}") for _, high, _ in split.histogram), default=1)
        block = _BLOCK if can_show(_BLOCK, console.encoding) else _PLAIN_BLOCK
        for low, high, count in split.histogram:
            bar = block * round(_WIDEST_BAR * count / highest) if count else ""
            label = f"  {low:>{widest},} to {high - 1:>{widest},} "
            console.print(Text.assemble((label, "dim"), (bar, "blue"), f" {count:,}"))
    for heading, style, lines in (
        ("To know", "yellow", found.warnings),
        ("Problems", "bold red", found.problems),
    ):
        if lines:
            console.print(Text(heading, style=style))
            for line in lines:
                console.print(Text(f"  {visible(line)}"))
    if strict and found.warnings:
        console.print(Text("Under --strict what is to know fails.", style="bold red"))
    elif not found.problems:
        console.print(Text("All prompts can be played.", style="green"))


def _facts(split: PromptSplit) -> Iterator[tuple[str, str]]:
    lengths = split.tokens
    yield "rows", f"{split.rows:,} read, {split.too_long:,} too long"
    yield "prompts", f"{len(split.tasks):,}, {split.repeated:,} of them asked before"
    if lengths:
        middle = lengths[len(lengths) // 2]
        yield "tokens", f"{lengths[0]:,} to {lengths[-1]:,}, half of the prompts up to {middle:,}"
    if split.graders:
        yield "graders", ", ".join(f"{kind} {n:,}" for kind, n in split.graders.most_common())
    if split.with_tools:
        yield "tools", f"{split.with_tools:,} declare some, {split.with_results:,} hold results"
    if split.efforts:
        yield "effort", ", ".join(f"{name} {n:,}" for name, n in split.efforts.most_common())
