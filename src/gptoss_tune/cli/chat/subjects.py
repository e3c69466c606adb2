"""From what a command line names to whoever answers: a folder, a GGUF file, or a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from gptoss_tune.cli.arguments import refuse_revision_of_nothing
from gptoss_tune.cli.chat.screen import Screen
from gptoss_tune.harmony.fields import EFFORTS, Effort
from gptoss_tune.terminal import loading

Kind = Literal["server", "gguf", "folder"]

_USUAL_PROMPT = 1024
"""Tokens of a conversation besides the answer, for the line that says what memory it needs."""

OF_A_SERVER = ("served_name", "api_key_env")
"""Options that only a server has an ear for."""
OF_AN_ADAPTER = ("base", "revision", "other_base")
OF_A_LOADER = ("device", "dtype")
OF_SERVING = ("port", "host", "api_key", "allow_origin")
"""Options of ``--serve``."""


@dataclass(frozen=True)
class Wanted:
    """What a command line says of the model.

    Attributes:
        model: As it was given.
        tokens: Longest answer.
        base, revision, other_base: Of an adapter.
        effort, date: In the system message.
        device, dtype: To compute.
        served_name, api_key_env: Of a server.
        context: Of a GGUF, in tokens; ``None``: as much as is usual.
    """

    model: str
    tokens: int
    base: str | None = None
    revision: str | None = None
    other_base: bool = False
    effort: str | None = None
    date: str | None = None
    device: str | None = None
    dtype: str | None = None
    served_name: str | None = None
    api_key_env: str | None = None
    context: int | None = None


@dataclass(frozen=True)
class Subject:
    """Whoever answers.

    Attributes:
        answerer: An ``Answerer`` in process, or a ``ServedModel``.
        usual_effort: Asked at unless told otherwise; ``None``: a server's own.
    """

    answerer: Any
    usual_effort: str | None


def kind_of(model: str) -> Kind:
    """Return what a name means."""
    if model.lower().startswith(("http://", "https://")):
        return "server"
    from gptoss_tune.weights.gguf.file import is_gguf

    return "gguf" if is_gguf(Path(os.path.expanduser(model))) else "folder"


def look_at(wanted: Wanted, kind: Kind) -> None:
    """Refuse what is not there, before anything is loaded.

    Raises:
        CheckpointError: No such folder or file, or nothing to talk to.
    """
    if kind == "folder":
        from gptoss_tune.preflight.finished import look_at_either

        look_at_either(wanted.model, wanted.base, wanted.revision)
    elif kind == "gguf":
        from gptoss_tune.weights.gguf.file import open_gguf, refuse_no_model

        place = Path(os.path.expanduser(wanted.model))
        refuse_no_model(place, open_gguf(place))


def open_subject(wanted: Wanted, kind: Kind, screen: Screen) -> Subject:
    """Return whoever answers, loaded or reached.

    Raises:
        GptossTuneError: It cannot be.
        typer.BadParameter: An option would have no effect.
    """
    if kind == "server":
        return _server(wanted, screen)
    return _gguf(wanted, screen) if kind == "gguf" else _folder(wanted, screen)


def _server(wanted: Wanted, screen: Screen) -> Subject:
    from gptoss_tune.chat.server import open_served

    key = os.environ.get(wanted.api_key_env or "VLLM_API_KEY", "").strip()
    if wanted.api_key_env is not None and not key:
        raise typer.BadParameter(
            f"the environment has no variable {wanted.api_key_env}, or it is empty; set it to the "
            "key",
            param_hint="--api-key-env",
        )
    served = open_served(wanted.model, wanted.served_name, key or None, screen.say)
    effort = f"reasoning effort {wanted.effort or 'as the server has it'}"
    context = f"context {served.context:,} tokens" if served.context else "context not told"
    screen.say(f"{served.name} at {served.url}: {context}; {effort}")
    return Subject(served, None)


def _gguf(wanted: Wanted, screen: Screen) -> Subject:
    with loading("the model", screen.err):
        from gptoss_tune.evaluate.llama_cpp.answerer import gguf_trained_as, open_gguf_answerer
        from gptoss_tune.evaluate.llama_cpp.engine import CONTEXT

        asked = gguf_trained_as(wanted.model).told(effort=asked_effort(wanted), date=wanted.date)
        answerer = open_gguf_answerer(wanted.model, asked, context=wanted.context or CONTEXT)
    screen.say(f"{wanted.model}: {answerer.describe()}; {asked.describe()}")
    return Subject(answerer, asked.effort)


def _folder(wanted: Wanted, screen: Screen) -> Subject:
    """Open a merged model, or an adapter and its base; each from a folder or from the Hub.

    Of a merged model on the Hub ``revision`` is its own.
    """
    from gptoss_tune.weights.sources import is_adapter

    if is_adapter(wanted.model):
        refuse_revision_of_nothing(wanted.base, wanted.revision)
    elif wanted.base is not None:
        raise typer.BadParameter(
            f"{wanted.model} is a whole model, which needs no base; leave it out",
            param_hint="--base",
        )
    with loading("torch and the rest", screen.err):
        from gptoss_tune.train.entrypoint import quiet_libraries

        quiet_libraries()
        from gptoss_tune.evaluate.conversation import open_answerer
        from gptoss_tune.evaluate.load import open_evaluated_model
        from gptoss_tune.evaluate.memory import memory_of, shortage
        from gptoss_tune.evaluate.trained_as import answering_device, answering_section, trained_as

    subject = open_evaluated_model(
        wanted.model, base=wanted.base, revision=wanted.revision, other_base=wanted.other_base
    )
    place = answering_device(wanted.device)
    section = answering_section(subject, wanted.dtype)
    asked = trained_as(subject).told(effort=asked_effort(wanted), date=wanted.date)
    memory, context = memory_of(subject, section), _USUAL_PROMPT + wanted.tokens
    screen.say(f"{subject.name} on {place}: {memory.describe(context)}; {asked.describe()}")
    if warning := shortage(memory, context, place):
        screen.say(warning)
    with loading("the weights", screen.err):
        return Subject(open_answerer(subject, asked, section, place), asked.effort)


def asked_effort(wanted: Wanted) -> Effort | None:
    """Return the effort that the command line asks for, if any."""
    known: dict[str, Effort] = {effort: effort for effort in EFFORTS}
    return known.get(wanted.effort or "")
