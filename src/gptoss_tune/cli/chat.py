"""``gptoss-tune chat``: talk to a merged model or to base + adapter in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import BasePath, Revision
from gptoss_tune.display import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console


class Effort(StrEnum):
    """How long the model should think."""

    low = "low"
    medium = "medium"
    high = "high"


def chat(
    model: Annotated[
        str, typer.Argument(help="A merged folder, a name on the Hub, a run or an adapter.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Say this instead of reading lines; repeatable.")
    ] = None,
    base: BasePath = None,
    revision: Revision = None,
    instructions: Annotated[str | None, typer.Option(help="Developer instructions.")] = None,
    effort: Annotated[Effort, typer.Option(help="Reasoning effort.")] = Effort.medium,
    date: Annotated[str, typer.Option(help="Conversation start date.")] = "2025-06-28",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest.")] = 1.0,
) -> None:
    """Talk to a model; its chain of thought is shown dimmed, channels apart."""
    from rich.console import Console
    from transformers.utils import logging

    from gptoss_tune.evaluate.chat import ChatModel, ChatSettings
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.adapter import base_name, open_adapter

    settings = ChatSettings(effort.value, instructions, date, max_new_tokens, temperature)
    console = Console(highlight=False, soft_wrap=True)
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if base is None:
            base, revision = base_name([model])
        checkpoint = open_checkpoint(base, revision)
        adapter = open_adapter(model, checkpoint)
    else:
        checkpoint, adapter = open_checkpoint(model, revision), None
    logging.disable_progress_bar()
    talk = ChatModel(checkpoint, settings, adapter)
    for text in _lines(prompt, console):
        show = _Display(console)
        talk.ask(text, show)
        console.print()


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


def _lines(prompts: list[str] | None, console: Console) -> Iterator[str]:
    """Yield what the user says: the given prompts, or lines until the end of the input."""
    if prompts:
        yield from prompts
        return
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            console.print("> ", style="bold", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
