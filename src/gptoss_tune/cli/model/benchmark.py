"""``gptoss-tune benchmark``: the same tasks to several models, one table."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_tune.cli.arguments import (
    AsJson,
    BasePath,
    Effort,
    OtherBase,
    Revision,
    known_device,
    refuse_revision_of_nothing,
)

if TYPE_CHECKING:
    from gptoss_tune.benchmark.request import Request
    from gptoss_tune.benchmark.runner import Measured
    from gptoss_tune.benchmark.subjects.named import NamedSubject
    from gptoss_tune.benchmark.subjects.open import Access


def benchmark(
    subjects: Annotated[
        list[str],
        typer.Option(
            metavar="base,RUN,MERGED,URL",
            help="Who is asked; the first is what the others are compared with. LABEL=... names "
            "one, URL#NAME the model of a server. Repeatable.",
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE_OR_SUITE",
            help="Suites (names or files), and a recipe or run whose own tasks are asked; default: "
            "those of the first run in --subjects.",
            show_default=False,
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE>=NUMBER",
            help="Exit code 5 unless it holds, such as maths>=0.8 or maths@tuned-base>=-0.02; "
            "repeatable.",
        ),
    ] = None,
    effort: Annotated[
        list[Effort] | None,
        typer.Option(help="Reasoning effort of tasks that name none; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask this many tasks of each suite.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=65_536, help="Longest answer, chain of thought included."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, max=256, help="Answers to each question, for pass@k.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=10, help="0 takes the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Share of tokens that is drawn from.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of drawn tokens.")] = None,
    date: Annotated[
        str | None,
        typer.Option(metavar="YYYY-MM-DD", help="Date in the system message; default: the run's."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=4096, help="Prompts at a time, in process.")
    ] = 8,
    concurrency: Annotated[
        int, typer.Option(min=1, max=512, help="Questions at a time, to a server.")
    ] = 4,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for one answer of a server.")
    ] = 600,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Variable that holds the servers' API key; default: VLLM_API_KEY, if set.",
        ),
    ] = None,
    base: BasePath = None,
    revision: Revision = None,
    other_base: OtherBase = False,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="bfloat16|float32", help="Compute dtype; default: the run's."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(callback=known_device, help="Where to compute; default: a GPU, else the CPU."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of known answers; default: the user's cache.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask again what is known.")] = False,
    name: Annotated[
        str, typer.Option(help="Of RUN/benchmarks/NAME.json, for runs that are asked.")
    ] = "benchmark",
    out: Annotated[Path | None, typer.Option(help="Write the JSON to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put the same tasks to base, run, merged model and server, through harmony alone.

    Every answer is kept: a benchmark that was stopped goes on, and asks again only what changed.
    Exit code 5: something that --require wants does not hold.
    """
    from gptoss_tune.benchmark.request import Changes, read_request, read_settings, with_base
    from gptoss_tune.benchmark.requirement import judge, read_requirements, refuse_missed
    from gptoss_tune.benchmark.subjects.named import look_at_subjects, read_subjects
    from gptoss_tune.harmony.fields import EFFORTS

    refuse_revision_of_nothing(base, revision)
    _refuse_odd_texts(date, dtype, name)
    key = _key(api_key_env)
    named = read_subjects(subjects, base)
    look_at_subjects(named, base, revision)
    settings, suites = read_settings(tasks or (), named)
    named = with_base(named, base, settings)
    wanted = {one.value for one in effort or ()}
    efforts: Any = tuple(known for known in EFFORTS if known in wanted) or None
    changes = Changes(efforts, limit, max_new_tokens, temperature, top_p, seed, samples)
    request = read_request(settings, suites, named, changes, base=base, date=date)
    labels = [subject.label for subject in named]
    passes = {suite.name: suite.passes for suite in request.suites}
    required = read_requirements(require or (), passes, labels)

    from gptoss_tune.benchmark.cache import AnswerCache, cache_folder

    def access() -> Access:
        from gptoss_tune.benchmark.subjects.open import Access
        from gptoss_tune.evaluate.trained_as import answering_device

        return Access(
            device=answering_device(device),
            base=base,
            revision=revision,
            other_base=other_base,
            dtype=dtype,
            batch_size=batch_size,
            concurrency=concurrency,
            timeout_s=timeout,
            key=key,
        )

    measured = _measured(request, named, access, AnswerCache(cache or cache_folder(), fresh=fresh))
    figures = _figures(request, measured)
    figures["required"] = judge(required, figures)
    _write(figures, named, out, name)
    _print(figures, as_json=as_json)
    _refuse_unread(measured)
    refuse_missed(figures["required"])


def _measured(request: Request, named: list[NamedSubject], access: Any, cache: Any) -> Measured:
    """Open all subjects and ask them, with a line of progress on a terminal."""
    from gptoss_tune.train.entrypoint import starting

    with starting():
        from gptoss_tune.benchmark.runner import measure
        from gptoss_tune.benchmark.subjects.open import open_subjects

    opened = open_subjects(named, request.renderer, access())
    shown = sys.stderr.isatty()

    def progress(subject: str, suite: str, done: int, total: int) -> None:
        if shown:
            sys.stderr.write(f"\r\x1b[2K{subject}: {suite}: {done:,} of {total:,} answers")
            sys.stderr.flush()
        elif done == total:
            typer.echo(f"{subject}: {suite}: {total:,} answers", err=True)

    try:
        limit = request.max_analysis_tokens
        return measure(request.suites, opened, cache, progress, max_analysis_tokens=limit)
    except KeyboardInterrupt:
        typer.echo("\nwhat was answered is kept: the same command goes on", err=True)
        raise
    finally:
        if shown:
            sys.stderr.write("\r\x1b[2K")


def _figures(request: Request, measured: Measured) -> dict[str, Any]:
    from gptoss_tune.benchmark.figures import figures_of
    from gptoss_tune.benchmark.request import trained_rows

    return figures_of(measured, trained_rows(request))


def _write(figures: dict[str, Any], named: list[NamedSubject], out: Path | None, name: str) -> None:
    """Write the JSON to ``out``, and to each run that was asked."""
    from gptoss_tune.files.atomic import disk_errors, write_text
    from gptoss_tune.files.strict_json import to_text
    from gptoss_tune.run.folder import RunFolder

    runs = [RunFolder(Path(s.target).expanduser()) for s in named if s.kind == "model"]
    places = [run.benchmark(name) for run in runs if run.record.is_file()]
    if out is not None:
        places.append(out)
    text = to_text(figures, ascii_only=False) + "\n"
    for place in places:
        with disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, text)
        typer.echo(f"written to {place}", err=True)


def _print(figures: dict[str, Any], *, as_json: bool) -> None:
    from gptoss_tune.files.strict_json import to_text

    if as_json:
        sys.stdout.write(to_text(figures, ascii_only=False) + "\n")
        return
    from rich.console import Console

    from gptoss_tune.benchmark.table import print_figures

    console = Console()
    # A pipe or a job's log has no width of its own; the table wants 100 columns.
    print_figures(figures, console if console.is_terminal else Console(width=100))


def _refuse_unread(measured: Measured) -> None:
    """Leave with the error of a server that could not be read, once all others are shown."""
    if measured.refused:
        from gptoss_tune.benchmark.subjects.subject import UnreadableServer

        raise UnreadableServer("\n".join(measured.refused.values()))


def _refuse_odd_texts(date: str | None, dtype: str | None, name: str) -> None:
    if date is not None and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", date):
        raise typer.BadParameter(f"{date!r}; expected YYYY-MM-DD", param_hint="--date")
    if dtype not in (None, "bfloat16", "float32"):
        raise typer.BadParameter(f"{dtype!r}; expected bfloat16 or float32", param_hint="--dtype")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,79}", name, re.ASCII):
        raise typer.BadParameter(
            f"{name!r}; expected letters, digits, '-', '.' and '_'", param_hint="--name"
        )


def _key(api_key_env: str | None) -> str | None:
    key = os.environ.get(api_key_env or "VLLM_API_KEY", "").strip()
    if api_key_env is not None and not key:
        raise typer.BadParameter(
            f"the environment has no variable {api_key_env}, or it is empty; set it to the key",
            param_hint="--api-key-env",
        )
    return key or None
