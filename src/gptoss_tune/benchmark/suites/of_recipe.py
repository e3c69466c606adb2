"""The suites that a recipe asks for, by name; all are read before any weights are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from gptoss_tune.benchmark.subjects.subject import Asking
from gptoss_tune.benchmark.suites.held_out import HELD_OUT, NothingGraded, held_out_suite
from gptoss_tune.benchmark.suites.open import is_suite_file, open_suite
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.evaluate.prompts import read_questions
from gptoss_tune.harmony.dataset.kinds import CONVERSATIONS, SampleKind
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.reading import AS_IT_STANDS
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe import DataSection, EvaluationSection

PROMPTS: Final = "prompts"

_Opened = TypeVar("_Opened")


def suites_of(
    evaluation: EvaluationSection,
    data: DataSection,
    vocabulary: Vocabulary,
    *,
    seed: int,
    names: Sequence[str] = (),
    limit: int | None = None,
    kind: SampleKind = CONVERSATIONS,
) -> list[Suite]:
    """Return the suites of ``evaluation.suites``, or those of ``names`` instead.

    Where neither names any, they are the recipe's own: ``prompts`` and ``held-out``, as far as
    there is something in them to grade.

    Args:
        evaluation: The recipe's section.
        data: How rows are read and become tokens, and what is held out.
        vocabulary: Of the model.
        seed: Of the run, which draws the held-out share.
        names: ``maths`` and other shipped names, suite files, task files, ``prompts``,
            ``held-out``.
        limit: Ask this many tasks of each suite at most.
        kind: What the rows are to the run's method.

    Raises:
        RecipeError: A suite's file has mistakes, two suites have one name, or there is none at all.
        DataError: A file or row cannot be used.
    """
    settings = sample_settings(data)
    renderer = Renderer(vocabulary, settings.render)
    efforts = evaluation.reasoning_effort or [data.reasoning_effort]
    usual = Asking(evaluation.max_new_tokens, evaluation.temperature, seed=seed)

    def opened(name: str) -> Suite:
        if name == PROMPTS:
            return prompt_suite(evaluation, renderer, usual, efforts, settings.reading, limit)
        if name == HELD_OUT:
            return held_out_suite(data, vocabulary, usual, seed=seed, kind=kind, limit=limit)
        # A suite file says itself how its rows are read; bare tasks are rows of the recipe's kind.
        reading = AS_IT_STANDS if is_suite_file(name) else settings.reading
        return open_suite(name, renderer, efforts=efforts, limit=limit, reading=reading)

    wanted = list(names) or list(evaluation.suites or ())
    if wanted:
        suites = _all(opened, wanted)
    else:
        suites = [suite for name in own_names(evaluation, data) if (suite := _there(opened, name))]
    if not suites:
        raise RecipeError(
            "there is nothing to ask: evaluation.suites names no suite, and the recipe's own "
            "prompts and held-out rows have nothing that is graded; name suites, "
            "'gptoss-tune suites' lists the shipped ones"
        )
    _refuse_equal_names(suites, wanted)
    return suites


def own_names(evaluation: EvaluationSection, data: DataSection) -> list[str]:
    """Return the names of the suites that a recipe has without naming any."""
    held_out = data.eval is not None or data.eval_fraction is not None
    prompts = evaluation.prompts is not None
    return [*([PROMPTS] if prompts else []), *([HELD_OUT] if held_out else [])]


def prompt_suite(
    evaluation: EvaluationSection,
    renderer: Renderer,
    asking: Asking,
    efforts: Sequence[Any],
    reading: Any,
    limit: int | None = None,
) -> Suite:
    """Return the graded rows of ``evaluation.prompts`` as a suite; the others are counted.

    Raises:
        DataError: There are no prompts, none is graded, or a row cannot be used.
    """
    if evaluation.prompts is None:
        raise DataError(f"{PROMPTS}: the recipe has no evaluation.prompts; set it, or leave it out")
    most = evaluation.max_prompts if limit is None else min(limit, evaluation.max_prompts)
    asked = read_questions(
        evaluation.prompts,
        renderer,
        limit=most,
        efforts=efforts,
        max_new_tokens=asking.max_new_tokens,
        reading=reading,
    )
    graded = tuple(question for question in asked if question.grader is not None)
    if not graded:
        raise NothingGraded(
            f"{PROMPTS}: none of the {len(asked):,} prompts says how its answer is graded; add an "
            "answer, a pattern or a grader"
        )
    left = len(asked) - len(graded)
    notes = (f"{PROMPTS}: left out {left:,} prompts that nothing grades",) if left else ()
    return Suite(PROMPTS, "The recipe's own prompts.", graded, asking, notes=notes)


def _all(opened: Callable[[str], _Opened], names: Sequence[str]) -> list[_Opened]:
    """Return what each name opens.

    Raises:
        RecipeError: Lists what is wrong with all of them.
        DataError: Likewise, where rows are wrong.
    """
    found: list[_Opened] = []
    mistakes: list[RecipeError | DataError] = []
    for name in names:
        try:
            found.append(opened(name))
        except (RecipeError, DataError) as error:
            mistakes.append(error)
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        raise type(mistakes[0])("\n".join(str(mistake) for mistake in mistakes))
    return found


def _there(opened: Callable[[str], Suite], name: str) -> Suite | None:
    """Return a recipe's own suite; ``None`` where nothing in it is graded."""
    try:
        return opened(name)
    except NothingGraded:
        return None


def _refuse_equal_names(suites: Sequence[Suite], wanted: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for suite, name in zip(suites, wanted, strict=False):
        if suite.name in seen:
            raise RecipeError(
                f"{seen[suite.name]} and {name} are both called {suite.name}; the table tells "
                "suites apart by their names: change one"
            )
        seen[suite.name] = name
