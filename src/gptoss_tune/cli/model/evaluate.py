"""``gptoss-tune evaluate``: put the prompts of a recipe to a finished model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_tune.cli.arguments import (
    AsJson,
    BasePath,
    Effort,
    OtherBase,
    Overrides,
    Revision,
    known_device,
)

if TYPE_CHECKING:
    from gptoss_tune.evaluate.load import EvaluatedModel
    from gptoss_tune.recipe import DataSection, EvaluationSection, ModelSection, Recipe
    from gptoss_tune.safety.evaluator import SafetyEvaluator

_SERVED = "http://127.0.0.1:8000/v1"
"""Where most servers listen."""
_USUAL_PROMPT = 1024
"""Tokens of a prompt besides its answer, for the line that says what memory it needs."""


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A run, an adapter, a merged folder, or a name on the Hub.")
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe whose evaluation section says what; default: the run's own."),
    ] = None,
    base: BasePath = None,
    revision: Revision = None,
    other_base: OtherBase = False,
    device: Annotated[
        str | None,
        typer.Option(callback=known_device, help="Where to compute; default: a GPU, else the CPU."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON report to this file.")] = None,
    effort: Annotated[
        Effort | None,
        typer.Option(help="Reasoning effort of prompts that name none; default: the run's."),
    ] = None,
    safety_page: Annotated[
        Path | None,
        typer.Option(help="Write the page that a reviewer of the safety signs to this file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a recipe's prompts; grade, check the harmony, compare with the base.

    It is what a run does under `evaluation:`, on a finished model, through the chat format only.
    Its safety is compared with the base: the one of a run or adapter, or for a merged model --base.
    """
    from gptoss_tune.preflight.finished import look_at_either
    from gptoss_tune.weights.gguf.file import refuse_gguf

    refuse_gguf(Path(model).expanduser())  # no recipe could ask it anything
    resolved = _recipe(model, recipe, overrides or [])
    look_at_either(model, base, revision)
    from rich.console import Console

    from gptoss_tune.files.strict_json import to_text
    from gptoss_tune.train.entrypoint import starting

    with starting():
        from gptoss_tune.evaluate.inspect_ai import served_inspect_command
        from gptoss_tune.evaluate.lm_eval import lm_eval_command, served_lm_eval_command
        from gptoss_tune.evaluate.load import open_evaluated_model
        from gptoss_tune.evaluate.tables import print_report
        from gptoss_tune.files.atomic import write_text

    subject = open_evaluated_model(model, base=base, revision=revision, other_base=other_base)
    section, data = _asked_at(subject, resolved.evaluation, resolved.data, effort)
    other = _other_base(subject, section, base, revision, safety_page)
    evaluator = _evaluator(subject, section, data, seed=resolved.train.seed)
    report = {"model": model, **_report(evaluator, subject, resolved.model, device, section, other)}
    if safety_page is not None:
        _write_page(report, subject, other, safety_page)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, to_text(report, ascii_only=False) + "\n")
    if as_json:
        sys.stdout.write(to_text(report, ascii_only=False) + "\n")
        return
    console = Console()
    print_report(report, console)
    plain = Console(highlight=False, soft_wrap=True, markup=False)
    _print_safety(report, plain)
    if subject.adapter is None:
        if resolved.evaluation.drift.wanted:
            plain.print("drift is not measured: a merged model has no base in it, name the run")
        plain.print(f"benchmarks, with lm-eval's own command:\n  {lm_eval_command(model)}")
    else:
        merged = f"{model.rstrip('/')}-merged"
        plain.print(
            "benchmarks, with lm-eval's own command on the merged model:\n"
            f"  gptoss-tune merge {model} --format bf16 --out {merged}\n"
            f"  {lm_eval_command(merged)}"
        )
    plain.print(
        "or on a server of it, by its address and its name of the model:\n"
        f"  {served_lm_eval_command(_SERVED, Path(model).name)}\n"
        f"  {served_inspect_command(_SERVED, Path(model).name)}"
    )


def _recipe(model: str, recipe: Path | None, overrides: list[str]) -> Recipe:
    """Return the recipe that says what is asked.

    Raises:
        RecipeError: There is none, or it asks nothing.
    """
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.run.folder import RECIPE, RunFolder
    from gptoss_tune.run.record import load_run_recipe

    own = RunFolder(Path(model)).recipe
    if recipe is None and not own.is_file():
        raise RecipeError(
            f"{model} has no {RECIPE} that says what to ask; name a recipe with an evaluation "
            "section: --recipe FILE"
        )
    file = recipe or own
    if recipe is None:
        resolved = load_run_recipe(Path(model), overrides)
    else:
        resolved = load_recipe(recipe, overrides)
    if not resolved.evaluation.wanted:
        raise RecipeError(
            f"{file}: the evaluation section asks nothing; set evaluation.prompts, "
            "evaluation.drift.references, evaluation.drift.probes or evaluation.safety.requests, "
            "in the file or as KEY=VALUE"
        )
    return resolved


def _asked_at(
    subject: EvaluatedModel, section: EvaluationSection, data: DataSection, effort: Effort | None
) -> tuple[EvaluationSection, DataSection]:
    """Return both sections with the effort of the run, or of the option, and say which it is.

    What a recipe says of the effort holds over what the run's record does.
    """
    from gptoss_tune.evaluate.trained_as import trained_as

    asked = trained_as(subject).told(effort=None if effort is None else effort.value)
    if effort is not None:
        section = section.model_copy(update={"reasoning_effort": [asked.effort]})
    if section.reasoning_effort is not None and effort is None:
        told = f"reasoning effort {', '.join(section.reasoning_effort)}, as the recipe asks"
    elif effort is None and "reasoning_effort" in data.model_fields_set:
        told = f"reasoning effort {data.reasoning_effort}, as the recipe has it"
    else:
        data = data.model_copy(update={"reasoning_effort": asked.effort})
        told = asked.describe()
    typer.echo(told, err=True)
    return section, data


def _other_base(
    subject: EvaluatedModel,
    section: EvaluationSection,
    base: str | None,
    revision: str | None,
    safety_page: Path | None,
) -> EvaluatedModel | None:
    """Return the base that a merged model's safety is compared with; ``None`` where none is.

    Raises:
        RecipeError: It has to be named, or a page was asked for of what the recipe does not ask.
    """
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.evaluate.load import open_evaluated_model

    if not section.safety.wanted:
        if safety_page is not None:
            raise RecipeError(
                "--safety-page: the recipe asks nothing under evaluation.safety; set "
                "evaluation.safety.requests with a judge, or chain_of_thought, hints or "
                "without_analysis with evaluation.prompts"
            )
        return None
    if subject.adapter is not None:
        return None
    if base is None:
        raise RecipeError(
            f"{subject.name} is merged, and its safety is compared with a base, which is not in "
            "it; name the base: --base NAME_OR_PATH, or name the run or the adapter"
        )
    return open_evaluated_model(base, revision=revision)


def _write_page(
    report: dict[str, Any], subject: EvaluatedModel, other: EvaluatedModel | None, path: Path
) -> None:
    from gptoss_tune.files.atomic import write_text
    from gptoss_tune.report.safety.page import safety_page

    base = subject.checkpoint.name if other is None else other.name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, safety_page(report, name=Path(subject.name).name, base=base))


def _print_safety(report: dict[str, Any], plain: Any) -> None:
    from gptoss_tune.display import visible
    from gptoss_tune.safety.figures import safety_lines

    for line in safety_lines(report):
        plain.print(visible(line))


def _evaluator(
    subject: EvaluatedModel, section: EvaluationSection, data: DataSection, *, seed: int
) -> SafetyEvaluator:
    """Read the files of ``section``, which comes before the weights.

    Raises:
        RecipeError: It asks nothing that a model without its base can answer.
        DataError: A file or row cannot be used.
    """
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.safety.evaluator import SafetyEvaluator

    if subject.adapter is None and not section.generates:
        raise RecipeError(
            f"{subject.name} is merged, and the recipe measures nothing but the distance from a "
            "base, which is not in it; name the run or the adapter, or set evaluation.prompts"
        )
    return SafetyEvaluator(section, data, load_vocabulary(subject.checkpoint.path), seed=seed)


def _report(
    evaluator: SafetyEvaluator,
    subject: EvaluatedModel,
    held: ModelSection,
    device: str | None,
    section: EvaluationSection,
    other: EvaluatedModel | None,
) -> dict[str, Any]:
    """Load the model, its weights held as ``held`` says, and return what is found.

    The base of a merged model comes first, and is gone before the model is loaded.
    """
    import torch

    from gptoss_tune.evaluate.load import load_answering_model, load_evaluated_model
    from gptoss_tune.evaluate.memory import memory_of, shortage, telling_what_helps
    from gptoss_tune.evaluate.trained_as import answering_device

    place = answering_device(device)
    memory, tokens = memory_of(subject, held), _USUAL_PROMPT + section.max_new_tokens
    needs = memory.describe(tokens, section.batch_size)
    typer.echo(f"{subject.name} on {place}: {needs}", err=True)
    if warning := shortage(memory, tokens, place, section.batch_size):
        typer.echo(f"{warning}; evaluation.batch_size=1 answers one at a time", err=True)
    # The base is asked too where something is compared with it.
    both = section.drift.wanted or section.safety.wanted
    load = load_evaluated_model if both else load_answering_model
    narrow = held.dtype == "bfloat16"
    # As in training: the fp32 factors multiply in bf16.
    with telling_what_helps(), torch.autocast(place.type, dtype=torch.bfloat16, enabled=narrow):
        if other is not None:
            evaluator.answer_as_base(load(other, held, place))
        return evaluator.run(load(subject, held, place), step=subject.step, device=place)
