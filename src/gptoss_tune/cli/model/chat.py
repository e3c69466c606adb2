"""``gptoss-tune chat``: talk to a merged model or to base + adapter in the terminal."""

from __future__ import annotations

import contextlib
import datetime
import re
import select
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import BasePath, Revision, refuse_revision_of_nothing
from gptoss_tune.display import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.evaluate.chat import Answer
    from gptoss_tune.weights import Checkpoint
    from gptoss_tune.weights.adapter import Adapter

_LEAVE = {"/exit", "/quit", "exit", "quit"}
_HELP = """\
/exit, exit or Ctrl-D   leave
/help                   this list
Ctrl-C                  end the answer, or clear the line
arrow keys              move in the line, and through what was said before
Pasted lines are one message, which Enter sends."""
_PASTE_S = 0.05  # lines of one paste follow each other faster than anyone types


class Effort(StrEnum):
    """How long the model should think."""

    low = "low"
    medium = "medium"
    high = "high"


def _day(text: str) -> str:
    """Return a day of the calendar, or refuse what is none."""
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is None:
            raise ValueError
        datetime.date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is no day of the calendar; expected YYYY-MM-DD, such as 2025-06-28"
        ) from None
    return text


def chat(
    model: Annotated[
        str,
        typer.Argument(help="A merged folder, a run or an adapter, or the Hub name of either."),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Say this instead of reading lines; repeatable.")
    ] = None,
    base: BasePath = None,
    revision: Revision = None,
    instructions: Annotated[str | None, typer.Option(help="Developer instructions.")] = None,
    effort: Annotated[Effort, typer.Option(help="Reasoning effort.")] = Effort.medium,
    date: Annotated[
        str, typer.Option(callback=_day, help="Conversation start date, YYYY-MM-DD.")
    ] = "2025-06-28",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, chain of thought included.")
    ] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest.")] = 1.0,
) -> None:
    """Talk to a model; its chain of thought is shown dimmed, channels apart.

    In a terminal /exit or Ctrl-D leaves, /help lists the rest; Ctrl-C ends an answer only.
    """
    from gptoss_tune.preflight.finished import look_at_either

    look_at_either(model, base, revision)
    from rich.console import Console
    from transformers.utils import logging

    from gptoss_tune.evaluate.chat import ChatModel, ChatSettings

    settings = ChatSettings(effort.value, instructions, date, max_new_tokens, temperature)
    console = Console(highlight=False, soft_wrap=True)
    checkpoint, adapter = _open(model, base, revision)
    logging.disable_progress_bar()
    talk = ChatModel(checkpoint, settings, adapter)
    interactive = not prompt and sys.stdin.isatty()
    for text in _lines(prompt, console, interactive=interactive):
        answer = talk.ask(text, _Display(console))
        console.print()
        if ended := _why_it_ended(answer, max_new_tokens):
            console.print(ended, style="yellow", markup=False)
        if answer.ended == "interrupt" and not interactive:
            raise KeyboardInterrupt


def _open(model: str, base: str | None, revision: str | None) -> tuple[Checkpoint, Adapter | None]:
    """Open a merged model, or an adapter and its base; each from a folder or from the Hub.

    Of a merged model on the Hub ``revision`` is its own.

    Raises:
        typer.BadParameter: ``base`` or ``revision`` would have no effect.
    """
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.adapter import open_adapter
    from gptoss_tune.weights.sources import base_name, is_adapter

    if not is_adapter(model):
        if base is not None:
            raise typer.BadParameter(
                f"{model} is a whole model, which needs no base; leave it out", param_hint="--base"
            )
        return open_checkpoint(model, revision), None
    refuse_revision_of_nothing(base, revision)
    if base is None:
        base, revision = base_name([model])
    checkpoint = open_checkpoint(base, revision)
    return checkpoint, open_adapter(model, checkpoint)


def _why_it_ended(answer: Answer, max_new_tokens: int) -> str | None:
    """Return what to say of an answer that the model itself did not end."""
    if answer.ended == "length":
        return f"[cut after {max_new_tokens} tokens, thoughts included; see --max-new-tokens]"
    return "[stopped by Ctrl-C]" if answer.ended == "interrupt" else None


class _Display:
    """Prints text as it comes, a label where the channel changes, thoughts dimmed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._channel: str | None = None

    def __call__(self, channel: str, text: str) -> None:
        style = None if channel == "final" else "dim"
        if channel != self._channel:
            if self._channel is not None:
                self._console.print()
            self._console.print(f"[{one_line(channel)}] ", style="cyan", end="", markup=False)
            self._channel = channel
        self._console.print(visible(text), style=style, end="", markup=False, emoji=False)


def _lines(prompts: list[str] | None, console: Console, *, interactive: bool) -> Iterator[str]:
    """Yield what the user says: the given prompts, or lines until the end of the input."""
    if prompts:
        yield from prompts
    elif interactive:
        with contextlib.suppress(ImportError):  # some builds of Python have none
            import readline  # noqa: F401 - its import gives input() arrow keys and history

        yield from _typed(input, _more_is_pasted, lambda text: console.print(text, markup=False))
    else:
        yield from (line.strip() for line in sys.stdin if line.strip())


def _typed(
    read: Callable[[str], str], pasted: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[str]:
    """Yield messages typed in a terminal until one asks to leave.

    Args:
        read: Returns a line, given the prompt; raises EOFError at Ctrl-D.
        pasted: Whether more lines are there already.
        say: Shows a line that is no part of the conversation.
    """
    say("/exit or Ctrl-D leaves, /help lists more")
    while True:
        try:
            lines = [read("> ")]
            while pasted():
                lines.append(read(""))
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("\n/exit or Ctrl-D leaves")
            continue
        text = "\n".join(lines).strip()
        if text in _LEAVE:
            return
        if text == "/help":
            say(_HELP)
        elif text:
            yield text


def _more_is_pasted() -> bool:
    """Return whether the terminal holds another line that nobody can have typed yet."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_S)[0])
    except OSError:
        return False  # a console of Windows cannot be asked; there each line is a message
