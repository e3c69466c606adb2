"""``gptoss-tune init``: a few questions, then a short recipe that the plan says fits; no torch.

Every question is an option too. Without a terminal nothing is asked: what is missing is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.workflows.first_recipe.cards import Cards
    from gptoss_tune.workflows.first_recipe.fit import Machine
    from gptoss_tune.workflows.first_recipe.look import DataLook
    from gptoss_tune.workflows.first_recipe.write import FirstRecipe, HeldOut

_T = TypeVar("_T")


def init(
    model: Annotated[
        str | None,
        typer.Option("--model", help="20b, 120b, safeguard-20b, safeguard-120b, or a folder."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="The card; default: the one that is here.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, max=1024, help="How many of it; default: 1.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Rows to train on: a file, a folder, a dataset on the Hub."),
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option("--goal", help="What the rows teach.", metavar="chat|tools|reasoning|..."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--eval", help="Held out: auto, none, a share (0.05) or a file."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The recipe to write.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: defaults for what is not given.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe of that name.")] = False,
) -> None:
    """Ask for model, card, data and goal, and write a short recipe that fits.

    It is written at the end: Ctrl-C leaves nothing. Exit code 3 when nothing fits the card.
    """
    from rich.console import Console

    from gptoss_tune.workflows.first_recipe.cards import cards_here

    console = Console(highlight=False, soft_wrap=True)
    cards = cards_here()
    interview = _Interview(console, yes)
    interview.refuse_unasked(
        {
            "--data FILE": data is not None,
            f"--gpu NAME ({cards.said})": gpu is not None or cards.machine is not None,
        },
        {"--model": model, "--goal": goal, "--eval": held_out, "--out": out},
    )
    if out is not None:
        _new_file(force)(str(out))  # what is wrong is told before anything is read
    if goal is not None:
        _known_goal(goal)
    base = interview.ask(
        "Model: 20b, 120b, safeguard-20b, safeguard-120b or a folder", model, "20b", _model
    )
    machine = _machine(interview, cards, gpu, gpus)
    look = interview.ask("Your data: a file, a folder or a dataset", data, None, _look(console))
    _print_look(console, look)
    wanted = interview.ask(_goal_question(), goal, _likely(look), _goal(look))
    kept = interview.ask("Held out: auto, none, a share or a file", held_out, "auto", _held(look))
    name = _run_name(look.path)
    place = interview.ask("Recipe to write", _text(out), _free(name, yes), _new_file(force))
    made = _made(console, base, machine, look, wanted, kept, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    from gptoss_tune.files.atomic import write_text

    write_text(place, made.text)
    _print_made(console, place, made)


class _Interview:
    """Asks what was not given, again until the answer is sound."""

    def __init__(self, console: Console, yes: bool) -> None:
        self._console = console
        self._yes = yes
        self._terminal = has_terminal()

    def refuse_unasked(self, needed: dict[str, bool], others: dict[str, object]) -> None:
        """Refuse to go on where an answer is missing and nobody can be asked.

        Args:
            needed: What has no default, by how it is given, and whether it was.
            others: Options with a default, and their values.
        """
        from gptoss_tune.errors import RecipeError

        if self._terminal and not self._yes:
            return
        missing = [how for how, given in needed.items() if not given]
        unasked = [how for how, value in others.items() if value is None]
        if not missing and (self._yes or not unasked):
            return
        why = "--yes asks nothing" if self._yes else "there is no terminal to ask at"
        todo = f"give {', '.join(missing)}" if missing else ""
        if unasked and not self._yes:
            rest = f"give {', '.join(unasked)}, or --yes for their defaults"
            todo = f"{todo}; and {rest}" if todo else rest
        raise RecipeError(f"{why}, and not everything is given; {todo}")

    def ask(
        self, question: str, given: str | None, default: str | None, check: Callable[[str], _T]
    ) -> _T:
        """Return the checked answer; what was given as an option is not asked."""
        from gptoss_tune.errors import GptossTuneError

        if given is not None:
            return check(given)
        if self._yes or not self._terminal:
            assert default is not None  # refuse_unasked has seen to it
            return check(default)
        while True:
            try:
                return check(self._answer(question, default))
            except GptossTuneError as error:
                from rich.text import Text

                from gptoss_tune.display import shown_safely

                self._console.print(Text(f"  {shown_safely(str(error))}", style="red"))

    def _answer(self, question: str, default: str | None) -> str:
        from rich.markup import escape
        from rich.prompt import Prompt

        while True:
            try:
                said = Prompt.ask(
                    f"[bold]{escape(question)}[/]", console=self._console, default=default
                )
            except EOFError:
                raise KeyboardInterrupt from None  # Ctrl-D leaves as Ctrl-C does
            if said is not None and said.strip():
                return said.strip()


def has_terminal() -> bool:
    """Return whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _model(text: str) -> str:
    from gptoss_tune.workflows.first_recipe.write import model_of

    return model_of(text)


def _machine(interview: _Interview, cards: Cards, gpu: str | None, gpus: int | None) -> Machine:
    from gptoss_tune.workflows.first_recipe.cards import machine_of

    if gpu is None and gpus is None and cards.machine is not None:
        default = cards.machine.card.name
        count = cards.machine.count
        if count > 1:
            default = f"{count} x {default}"
        return interview.ask(f"Card ({cards.said})", None, default, machine_of)
    name = None if cards.machine is None else cards.machine.card.name
    machine = interview.ask(f"Card ({cards.said})", gpu, name, machine_of)
    return machine if gpus is None else type(machine)(machine.card, gpus)


def _look(console: Console) -> Callable[[str], DataLook]:
    def read(path: str) -> DataLook:
        import os

        from gptoss_tune.harmony.sources.folders import find_files

        # A recipe holds paths written out; a quoted ~ comes here as it is.
        place = os.path.expanduser(path.strip())
        find_files(place)  # a misspelled name is told before anything is loaded
        with console.status("reading the rows"):
            from gptoss_tune.harmony.vocabulary import load_vocabulary
            from gptoss_tune.workflows.first_recipe.look import look_at

            return look_at(place, load_vocabulary())

    return read


def _goal_question() -> str:
    from gptoss_tune.workflows.first_recipe.goals import GOALS

    return f"Goal: {', '.join(GOALS)}"


def _likely(look: DataLook) -> str:
    from gptoss_tune.workflows.first_recipe.goals import likely_goal

    return likely_goal(look)


def _known_goal(text: str) -> str:
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.workflows.first_recipe.goals import GOALS

    name = text.strip().lower()
    if name not in GOALS:
        raise RecipeError(f"--goal: got {text!r}, expected one of {', '.join(GOALS)}")
    return name


def _goal(look: DataLook) -> Callable[[str], str]:
    def check(text: str) -> str:
        from gptoss_tune.workflows.first_recipe.goals import settings_for

        name = _known_goal(text)
        settings_for(name, look)  # refused before the next question
        return name

    return check


def _held(look: DataLook) -> Callable[[str], HeldOut]:
    def read(text: str) -> HeldOut:
        from gptoss_tune.harmony.vocabulary import load_vocabulary
        from gptoss_tune.workflows.first_recipe.write import held_out_of

        return held_out_of(text, look, load_vocabulary())

    return read


def _run_name(path: str) -> str:
    from gptoss_tune.workflows.first_recipe.write import run_name

    return run_name(path)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _free(name: str, yes: bool) -> str:
    """Return a name for the recipe; to be asked about, one that is not taken."""
    number = 1
    while not yes and Path(f"{name}-{number}.yaml" if number > 1 else f"{name}.yaml").exists():
        number += 1
    return f"{name}-{number}.yaml" if number > 1 else f"{name}.yaml"


def _new_file(force: bool) -> Callable[[str], Path]:
    def check(text: str) -> Path:
        from gptoss_tune.errors import RecipeError

        path = Path(text.strip())
        if path.is_dir():
            raise RecipeError(
                f"{path}: is a folder; name the recipe's file, such as {path}/my.yaml"
            )
        if path.exists() and not force:
            raise RecipeError(f"{path}: exists; give another --out, or --force to replace it")
        return path

    return check


def _made(
    console: Console,
    base: str,
    machine: Machine,
    look: DataLook,
    goal: str,
    held_out: HeldOut,
    name: str,
) -> FirstRecipe:
    from gptoss_tune.workflows.first_recipe.write import Answers, first_recipe

    with console.status("planning"):
        answers = Answers(base, machine, look, goal, held_out, name)
        return first_recipe(answers)


def _print_look(console: Console, look: DataLook) -> None:
    from rich.text import Text

    from gptoss_tune.display import one_line, visible

    nouns = {"conversation": "rows", "pair": "pairs", "label": "labelled answers"}
    if look.is_text:
        nouns["conversation"] = "texts"
    about = "" if look.counted else "about "
    noun = nouns[look.rows].removesuffix("s" if look.count == 1 else "-")
    facts = [f"{about}{look.count:,} {noun} ({look.format})"]
    facts.append(f"{look.mean_tokens:,.0f} tokens on average, the longest {look.longest:,}")
    if look.thinking:
        facts.append(f"{look.thinking:.0%} with thoughts")
    if look.tools:
        facts.append("tool calls")
    console.print(Text(f"  {one_line(look.path)}: {'; '.join(facts)}", style="dim"))
    if look.columns is not None:
        names = ", ".join(look.columns)
        console.print(Text(f"  its columns are mapped to {names}", style="dim"))
    count, first = look.refused
    if count:
        text = f"  {count:,} of the {look.rendered:,} rows read cannot be trained on: {first}"
        console.print(Text(visible(text), style="yellow"))
        console.print(Text("  mend them, or set data.on_error: skip", style="yellow"))


def _print_made(console: Console, place: Path, made: FirstRecipe) -> None:
    from rich.text import Text

    from gptoss_tune.report.parts.text import duration
    from gptoss_tune.terminal import next_commands

    plan = made.plan
    count, card = plan.recipe.distributed.num_processes, plan.card
    cards = card.name if count == 1 else f"{count} x {card.name}, {plan.strategy}"
    peak = plan.memory.peak / 2**30
    console.print(Text.assemble((str(place), "bold"), f", {len(made.text.splitlines())} lines"))
    fits = f"  fits {cards}: {peak:.1f} of {card.memory_gib:.1f} GiB"
    # Evaluations are not counted where the steps of a run are not known.
    hours = plan.work.hours if plan.hours is None else plan.hours
    if hours is not None:
        share = f"{plan.work.efficiency:.0%} of the card's rate assumed, not measured"
        fits += f"; about {duration(hours * 3600)} ({share})"
    console.print(Text(fits, style="green"))
    base = plan.disk.base / 2**30
    console.print(f"  the base takes {base:.1f} GiB of disk, the run goes to {made.output_dir}")
    if not card.has_bf16:
        text = "  this card has no units for bf16: expect it to be slow"
        console.print(Text(text, style="yellow"))
    if made.dropped_over is not None:
        text = f"  samples over {made.dropped_over:,} tokens are dropped: the card holds no more"
        console.print(Text(text, style="yellow"))
    recipe = str(place)
    following = (
        (("gptoss-tune", "preview", recipe), "what is trained, token by token"),
        (("gptoss-tune", "train", recipe), "the run; the same command continues it"),
        (("gptoss-tune", "chat", made.output_dir), "talk to it"),
    )
    console.print("\n".join(next_commands(following)))
