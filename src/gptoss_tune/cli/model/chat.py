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

from gptoss_tune.cli.arguments import (
    BasePath,
    Effort,
    OtherBase,
    Revision,
    known_device,
    refuse_revision_of_nothing,
)
from gptoss_tune.display import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.evaluate.channels import Delta
    from gptoss_tune.evaluate.conversation import Answer, Answerer
    from gptoss_tune.evaluate.load import EvaluatedModel
    from gptoss_tune.evaluate.server.settings import ServerSettings

_LEAVE = {"/exit", "/quit", "exit", "quit"}
_HELP = """\
/exit, exit or Ctrl-D   leave
/help                   this list
Ctrl-C                  end the answer, or clear the line
arrow keys              move in the line, and through what was said before
Pasted lines are one message, which Enter sends."""
_HOST = "127.0.0.1"
_USUAL_PROMPT = 1024
"""Tokens of a conversation besides the answer, for the line that says what memory it needs."""
_PASTE_S = 0.05  # lines of one paste follow each other faster than anyone types


class Dtype(StrEnum):
    """What the model computes in."""

    bfloat16 = "bfloat16"
    float32 = "float32"


_TOKENS, _SERVED_TOKENS = 512, 4096
"""Longest answer in a terminal, where somebody waits, and of a server, where the client decides."""


def _day(text: str | None) -> str | None:
    """Return a day of the calendar, or refuse what is none."""
    if text is None:
        return None
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
    other_base: OtherBase = False,
    instructions: Annotated[str | None, typer.Option(help="Developer instructions.")] = None,
    effort: Annotated[
        Effort | None, typer.Option(help="Reasoning effort; default: the run's, else medium.")
    ] = None,
    date: Annotated[
        str | None,
        typer.Option(callback=_day, help="Conversation start date; default: the run's."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer, thoughts included; default: 512, or 4096 with --serve."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens alone.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same draws every time.")] = None,
    device: Annotated[
        str | None,
        typer.Option(callback=known_device, help="Where to compute; default: a GPU, else the CPU."),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Compute dtype; default: the run's, else bfloat16.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Answer OpenAI's API on this machine instead.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0: a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Of --serve; another one needs an API key.")] = _HOST,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="GPTOSS_TUNE_API_KEY", help="Of --serve: what clients have to send."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Of --serve: a web page that may ask, as http://localhost:3000."),
    ] = None,
) -> None:
    """Talk to a model; its chain of thought is shown dimmed, channels apart.

    In a terminal /exit or Ctrl-D leaves, /help lists the rest; Ctrl-C ends an answer only.
    With --serve any program or page that speaks OpenAI's API can ask it.
    """
    _refuse_useless_options(serve=serve, prompt=prompt, origins=allow_origin)
    settings = _server_settings(host, port, api_key, allow_origin or []) if serve else None
    bound = None if settings is None else settings.bind()
    from gptoss_tune.preflight.finished import look_at_either

    look_at_either(model, base, revision)
    from rich.console import Console

    from gptoss_tune.evaluate.conversation import Sampling, Talk

    console = Console(highlight=False, soft_wrap=True)
    subject = _open(model, base, revision, other_base=other_base)
    limit = max_new_tokens or (_SERVED_TOKENS if serve else _TOKENS)
    answerer = _load(subject, effort, date, device, dtype, tokens=limit)
    sampling = Sampling(limit, temperature, top_p, seed)
    if settings is not None and bound is not None:
        from gptoss_tune.evaluate.server.serve import serve as run_server

        run_server(answerer, sampling, settings, bound, say=typer.echo, instructions=instructions)
        return
    talk = Talk(answerer, sampling, instructions)
    interactive = not prompt and sys.stdin.isatty()
    for text in _lines(prompt, console, interactive=interactive):
        answer = talk.ask(text, _Display(console))
        console.print()
        if ended := _why_it_ended(answer, limit):
            console.print(ended, style="yellow", markup=False)
        if answer.ended == "interrupt" and not interactive:
            raise KeyboardInterrupt


def _refuse_useless_options(
    *, serve: bool, prompt: list[str] | None, origins: list[str] | None
) -> None:
    """Refuse options that would have no effect.

    Raises:
        typer.BadParameter: With what to do.
    """
    if serve and prompt:
        raise typer.BadParameter(
            "a server is asked by its clients; leave it out", param_hint="--prompt"
        )
    if not serve and origins:
        raise typer.BadParameter("needs --serve; leave it out", param_hint="--allow-origin")


def _server_settings(
    host: str, port: int, api_key: str | None, origins: list[str]
) -> ServerSettings:
    """Return what a server needs, before anything is loaded.

    Raises:
        MachineError: The extra ``ui`` is not installed.
        typer.BadParameter: Host, key and origins cannot be served.
    """
    from gptoss_tune.evaluate.server.settings import ServerSettings

    try:
        return ServerSettings.checked(host, port, api_key, origins)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _open(
    model: str, base: str | None, revision: str | None, *, other_base: bool
) -> EvaluatedModel:
    """Open a merged model, or an adapter and its base; each from a folder or from the Hub.

    Of a merged model on the Hub ``revision`` is its own.

    Raises:
        typer.BadParameter: ``base`` or ``revision`` would have no effect.
    """
    from gptoss_tune.weights.sources import is_adapter

    if is_adapter(model):
        refuse_revision_of_nothing(base, revision)
    elif base is not None:
        raise typer.BadParameter(
            f"{model} is a whole model, which needs no base; leave it out", param_hint="--base"
        )
    from gptoss_tune.train.entrypoint import quiet_libraries

    quiet_libraries()
    from gptoss_tune.evaluate.load import open_evaluated_model

    return open_evaluated_model(model, base=base, revision=revision, other_base=other_base)


def _load(
    subject: EvaluatedModel,
    effort: Effort | None,
    date: str | None,
    device: str | None,
    dtype: Dtype | None,
    *,
    tokens: int,
) -> Answerer:
    """Load a model to talk to; say on stderr how it is asked and what memory it needs."""
    from gptoss_tune.evaluate.conversation import open_answerer
    from gptoss_tune.evaluate.memory import memory_of, shortage
    from gptoss_tune.evaluate.trained_as import answering_device, answering_section, trained_as

    place = answering_device(device)
    section = answering_section(subject, None if dtype is None else dtype.value)
    asked = trained_as(subject).told(effort=None if effort is None else effort.value, date=date)
    memory = memory_of(subject, section)
    context = _USUAL_PROMPT + tokens
    typer.echo(
        f"{subject.name} on {place}: {memory.describe(context)}; {asked.describe()}", err=True
    )
    if warning := shortage(memory, context, place):
        typer.echo(warning, err=True)
    return open_answerer(subject, asked, section, place)


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

    def __call__(self, delta: Delta) -> None:
        channel, text = delta.label, delta.text
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
