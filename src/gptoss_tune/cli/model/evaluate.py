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
    from gptoss_tune.evaluate.evaluator import Evaluator
    from gptoss_tune.evaluate.load import EvaluatedModel
    from gptoss_tune.recipe import DataSection, EvaluationSection, ModelSection, Recipe

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
    as_json: AsJson = False,
) -> None:
    """Answer a recipe's prompts; grade, check the harmony, compare with the base.

    It is what a run does under `evaluation:`, on a finished model, through the chat format only.
    """
    from gptoss_tune.preflight.finished import look_at_either

    resolved = _recipe(model, recipe, overrides or [])
    look_at_either(model, base, revision)
    from rich.console import Console

    from gptoss_tune.files.strict_json import to_text
    from gptoss_tune.train.entrypoint import starting

    with starting():
        from gptoss_tune.evaluate.lm_eval import lm_eval_command
        from gptoss_tune.evaluate.load import open_evaluated_model
        from gptoss_tune.evaluate.tables import print_report
        from gptoss_tune.files.atomic import write_text

    subject = open_evaluated_model(model, base=base, revision=revision, other_base=other_base)
    section, data = _asked_at(subject, resolved.evaluation, resolved.data, effort)
    evaluator = _evaluator(subject, section, data, seed=resolved.train.seed)
    report = {"model": model, **_report(evaluator, subject, resolved.model, device, section)}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, to_text(report, ascii_only=False) + "\n")
    if as_json:
        sys.stdout.write(to_text(report, ascii_only=False) + "\n")
        return
    console = Console()
    print_report(report, console)
    plain = Console(highlight=False, soft_wrap=True, markup=False)
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
            "evaluation.drift.references or evaluation.drift.probes, in the file or as KEY=VALUE"
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


def _evaluator(
    subject: EvaluatedModel, section: EvaluationSection, data: DataSection, *, seed: int
) -> Evaluator:
    """Read the files of ``section``, which comes before the weights.

    Raises:
        RecipeError: It asks nothing that a model without its base can answer.
        DataError: A file or row cannot be used.
    """
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.evaluate.evaluator import Evaluator
    from gptoss_tune.harmony.vocabulary import load_vocabulary

    if subject.adapter is None and not section.generates:
        raise RecipeError(
            f"{subject.name} is merged, and the recipe measures nothing but the distance from a "
            "base, which is not in it; name the run or the adapter, or set evaluation.prompts"
        )
    return Evaluator(section, data, load_vocabulary(subject.checkpoint.path), seed=seed)


def _report(
    evaluator: Evaluator,
    subject: EvaluatedModel,
    held: ModelSection,
    device: str | None,
    section: EvaluationSection,
) -> dict[str, Any]:
    """Load the model, its weights held as ``held`` says, and return what is found."""
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
    load = load_evaluated_model if section.drift.wanted else load_answering_model
    narrow = held.dtype == "bfloat16"
    # As in training: the fp32 factors multiply in bf16.
    with telling_what_helps(), torch.autocast(place.type, dtype=torch.bfloat16, enabled=narrow):
        return evaluator.run(load(subject, held, place), step=subject.step, device=place)
