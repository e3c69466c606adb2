"""``gptoss-tune chat``: talk to a tuned model, a GGUF file or a server in the terminal."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import BasePath, Effort, OtherBase, Revision, known_device
from gptoss_tune.errors import DataError, MachineError

if TYPE_CHECKING:
    from gptoss_tune.cli.chat.editor import Editor
    from gptoss_tune.cli.chat.screen import Screen
    from gptoss_tune.cli.chat.subjects import Kind, Wanted
    from gptoss_tune.evaluate.answering.sampling import Sampling
    from gptoss_tune.evaluate.server.settings import ServerSettings

_HOST = "127.0.0.1"


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
    typed: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A run, an adapter, a merged folder, the Hub name of one; a GGUF; a server's URL."
        ),
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
    context: Annotated[
        int | None,
        typer.Option(
            min=256,
            max=131_072,
            help="Of a GGUF: longest conversation in tokens, for which memory is taken at once; "
            "default: 8192.",
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
    served_name: Annotated[
        str | None, typer.Option(help="Of a server's models, the one to talk to.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Variable with the key of the server at URL; default: VLLM_API_KEY, if set.",
        ),
    ] = None,
    no_history: Annotated[
        bool,
        typer.Option(
            "--no-history",
            envvar="GPTOSS_TUNE_NO_HISTORY",
            help="Keep nothing of what is typed in the user's cache.",
        ),
    ] = False,
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
    """Talk to a model, here or behind a server; its chain of thought is dimmed, channels apart.

    In a terminal /help lists the commands, /exit or Ctrl-D leaves; Ctrl-C ends an answer only.
    With --serve any program or page that speaks OpenAI's API can ask it.
    """
    from gptoss_tune.cli.chat.subjects import Wanted, kind_of, look_at

    kind = kind_of(model)
    _refuse_useless_options(typed, kind, serve=serve)
    settings = _server_settings(host, port, api_key, allow_origin or []) if serve else None
    bound = None if settings is None else settings.bind()
    wanted = Wanted(
        model=model,
        tokens=max_new_tokens or (_SERVED_TOKENS if serve else _TOKENS),
        base=base,
        revision=revision,
        other_base=other_base,
        effort=None if effort is None else effort.value,
        date=date,
        device=device,
        dtype=None if dtype is None else dtype.value,
        served_name=served_name,
        api_key_env=api_key_env,
        context=context,
    )
    look_at(wanted, kind)
    from gptoss_tune.evaluate.answering.sampling import Sampling

    sampling = Sampling(wanted.tokens, temperature, top_p, seed)
    if settings is not None and bound is not None:
        from gptoss_tune.cli.chat.screen import Screen
        from gptoss_tune.cli.chat.subjects import open_subject
        from gptoss_tune.evaluate.server.serve import serve as run_server

        answerer = open_subject(wanted, kind, Screen(sys.stdout, sys.stderr)).answerer
        run_server(answerer, sampling, settings, bound, say=typer.echo, instructions=instructions)
        return
    _talk(wanted, kind, sampling, instructions, prompt, is_kept=not no_history)


def _talk(
    wanted: Wanted,
    kind: Kind,
    sampling: Sampling,
    instructions: str | None,
    prompts: Sequence[str] | None,
    *,
    is_kept: bool,
) -> None:
    """Talk in the terminal, or put given messages or lines of a pipe."""
    from gptoss_tune.chat.talk import Talk
    from gptoss_tune.cli.chat.screen import alone

    if sys.stdin is None and not prompts:
        raise MachineError(
            "the standard input is closed, so there is nothing to read messages from; give them "
            "with --prompt, by a pipe, or type them in a terminal"
        )
    from gptoss_tune.cli.chat.session import Session
    from gptoss_tune.cli.chat.subjects import asked_effort, open_subject

    with alone() as screen:
        subject = open_subject(wanted, kind, screen)
        # In process the prompt's own settings have it; of a server it is asked with each question.
        effort = asked_effort(wanted) if kind == "server" else None
        talk = Talk(subject.answerer, sampling, instructions, effort)
        if prompts or sys.stdin is None or not sys.stdin.isatty():
            Session(talk, screen, subject.usual_effort).read_all(prompts or _piped())
            return
        editor = _editor(screen, is_kept=is_kept)
        Session(talk, screen, subject.usual_effort, editor).run(editor)


def _piped() -> Iterator[str]:
    """Yield the lines of the standard input that say something.

    Raises:
        DataError: A line is no UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number} of the standard input is no UTF-8 (byte 0x{line[error.start]:02x} "
                f"at {error.start + 1}); expected UTF-8, convert it first, for example with iconv"
            ) from None
        if text:
            yield text


def _editor(screen: Screen, *, is_kept: bool) -> Editor:
    """Return where messages are typed: on standard output, or beside one that is redirected."""
    from gptoss_tune.cli.chat.commands import completions
    from gptoss_tune.cli.chat.editor import LineEditor, PlainLines
    from gptoss_tune.cli.chat.history import KeptHistory, history_file
    from gptoss_tune.cli.chat.terminal import shows_escapes

    place = screen.out if screen.out.isatty() else screen.err
    if not shows_escapes(place):
        return PlainLines(place)
    history = KeptHistory(history_file() if is_kept else None)
    if history.trouble:
        screen.say(history.trouble)
    return LineEditor(place, history, completions())


def _refuse_useless_options(typed: typer.Context, kind: Kind, *, serve: bool) -> None:
    """Refuse options that would have no effect, all at once.

    Raises:
        typer.BadParameter: With what to do.
    """
    from gptoss_tune.cli.chat import subjects

    reasons = []
    if serve:
        reasons.append((("prompt", "no_history"), "a server is asked by its clients"))
        if kind == "server":
            reasons.append((("serve",), "what is at a URL is served already"))
    else:
        reasons.append((subjects.OF_SERVING, "needs --serve"))
    if kind == "server":
        foreign = (*subjects.OF_AN_ADAPTER, *subjects.OF_A_LOADER, "date")
        reasons.append((foreign, "a server has loaded its model and writes its own prompt"))
    else:
        reasons.append((subjects.OF_A_SERVER, "is for the URL of a server"))
    if kind != "gguf":
        reasons.append((("context",), "is for a GGUF, whose memory is taken at once"))
    else:
        foreign = (*subjects.OF_AN_ADAPTER, *subjects.OF_A_LOADER)
        reasons.append((foreign, "a GGUF file is whole, and llama.cpp computes it as it was built"))
    said, hints = [], []
    for names, reason in reasons:
        given = [name for name in names if _is_given(typed, name)]
        if given:
            options = [f"--{name.replace('_', '-')}" for name in given]
            hints += options
            them = "it" if len(options) == 1 else "them"
            said.append(f"{', '.join(options)}: {reason}; leave {them} out")
    if said:
        raise typer.BadParameter(". ".join(said), param_hint=", ".join(hints))


def _is_given(typed: typer.Context, name: str) -> bool:
    """Return whether an option stands in the command line."""
    source = typed.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
