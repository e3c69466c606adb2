"""What a command line asks: suites, a recipe's or a run's own tasks, and how; without torch.

Whatever can be refused is refused here: before torch is imported, and before anything is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gptoss_tune.benchmark.subjects.named import NamedSubject
from gptoss_tune.benchmark.suites.of_recipe import suites_of
from gptoss_tune.benchmark.suites.open import open_suite
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.errors import DataError, GptossTuneError, RecipeError
from gptoss_tune.evaluate.prompts import LONGEST_CONTEXT
from gptoss_tune.harmony.dataset.kinds import SampleKind, kind_of
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import Vocabulary, load_vocabulary
from gptoss_tune.recipe import DataSection, EvaluationSection, load_recipe
from gptoss_tune.recipe.load import read_recipe_values
from gptoss_tune.run.folder import RECIPE, RunFolder
from gptoss_tune.run.record import load_run_recipe
from gptoss_tune.shipped import shipped_recipe
from gptoss_tune.weights.sources import base_name, is_adapter, is_on_hub, resolve

_YAML: Final = (".yaml", ".yml")
_OF_SUITES: Final = ("tasks", "needles", "licence")
"""Keys by which a suite's file is told from a recipe."""


@dataclass(frozen=True)
class Settings:
    """What a recipe says of its own tasks, and how all others are rendered.

    Attributes:
        name: Of the recipe or run, for people.
        evaluation: Prompts, suites, effort, limits.
        data: How rows are read and become tokens, what is trained on and what is held out.
        seed: Of the run.
        kind: What a row is to the run's method.
        base: The base it trains on.
    """

    name: str
    evaluation: EvaluationSection
    data: DataSection
    seed: int
    kind: SampleKind
    base: str


@dataclass(frozen=True)
class Changes:
    """What options change of how suites are asked; ``None``: as each suite says.

    Attributes:
        efforts: At which tasks that name none are asked.
        limit: Tasks of each suite, from its start.
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token.
        top_p: Share that is drawn from.
        seed: Of drawn tokens.
        samples: Answers to each question.
    """

    efforts: tuple[Effort, ...] | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Request:
    """What is asked of whom.

    Attributes:
        suites: With all their questions.
        renderer: What made the questions' ids.
        trained: Of the run whose training rows are compared with the questions; ``None``: none.
        max_analysis_tokens: From the recipe.
    """

    suites: tuple[Suite, ...]
    renderer: Renderer
    trained: Settings | None
    max_analysis_tokens: int | None


def read_settings(
    targets: Sequence[str], named: Sequence[NamedSubject]
) -> tuple[Settings | None, list[str]]:
    """Return the recipe among ``targets``, or of the first run that is asked, and the suites.

    Args:
        targets: ``RECIPE_OR_SUITE ...`` as given.
        named: Who is asked.

    Raises:
        RecipeError: Two are recipes, or one cannot be read.
    """
    recipes = [target for target in targets if _is_recipe(target)]
    if len(recipes) > 1:
        raise RecipeError(
            f"{recipes[0]} and {recipes[1]} are both recipes; name one, and suites beside it"
        )
    suites = [target for target in targets if target not in recipes]
    own = [s.target for s in named if s.kind == "model" and _recipe_of_run(s.target) is not None]
    found = next(iter([*recipes, *own]), None)
    return (None if found is None else _settings(found)), suites


def with_base(
    named: Sequence[NamedSubject], base: str | None, settings: Settings | None
) -> list[NamedSubject]:
    """Return the subjects with the name of what ``base`` stands for.

    Raises:
        RecipeError: Nothing says which base is meant.
    """
    if all(subject.kind != "base" for subject in named):
        return list(named)
    tuned = [s.target for s in named if s.kind == "model" and is_adapter(s.target)]
    if base is None and tuned:
        base, _ = base_name(tuned[:1])
    if base is None and settings is not None:
        base = settings.base
    if base is None:
        there = "; the folder of that name is ./base" if Path("base").is_dir() else ""
        raise RecipeError(
            "--subjects: 'base' of what? name a run or adapter beside it, or --base NAME" + there
        )
    return [replace(s, target=base) if s.kind == "base" else s for s in named]


def read_request(
    settings: Settings | None,
    suites: Sequence[str],
    named: Sequence[NamedSubject],
    changes: Changes,
    *,
    base: str | None = None,
    date: str | None = None,
) -> Request:
    """Return all questions.

    Args:
        settings: From ``read_settings``.
        suites: Names and files of suites; none takes the recipe's own.
        named: Who is asked, the base by its name.
        changes: What options say.
        base: ``--base``; ``None``: what each adapter was trained on.
        date: Conversation start date of prompts; ``None``: the recipe's.

    Raises:
        RecipeError: No such suite, or nothing to ask.
        DataError: A row cannot be used.
    """
    if settings is None and not suites:
        raise RecipeError("name a suite to ask, or a recipe or run that has one")
    vocabulary = _vocabulary(named, base)
    if settings is None:
        efforts = changes.efforts or ("medium",)
        usual = RenderSettings()
        renderer = Renderer(vocabulary, usual if date is None else replace(usual, date=date))
        found = [open_suite(s, renderer, efforts=efforts, limit=changes.limit) for s in suites]
    else:
        data, evaluation = settings.data, settings.evaluation
        if date is not None:
            data = data.model_copy(update={"date": date})
        if changes.efforts is not None:
            told = {"reasoning_effort": list(changes.efforts)}
            evaluation = evaluation.model_copy(update=told)
        renderer = Renderer(vocabulary, sample_settings(data).render)
        found = suites_of(
            evaluation,
            data,
            vocabulary,
            seed=settings.seed,
            names=suites,
            limit=changes.limit,
            kind=settings.kind,
        )
    limit = None if settings is None else settings.evaluation.max_analysis_tokens
    asked = tuple(_changed(suite, changes) for suite in found)
    _refuse_equal_names(asked)
    return Request(asked, renderer, settings, limit)


def _changed(suite: Suite, changes: Changes) -> Suite:
    """Return a suite asked as options say.

    Raises:
        RecipeError: Several answers would all be the same.
        DataError: A prompt and the longest answer do not fit the context.
    """
    told: dict[str, Any] = {
        name: value
        for name in ("max_new_tokens", "temperature", "top_p", "seed")
        if (value := getattr(changes, name)) is not None
    }
    changed = replace(
        suite,
        asking=replace(suite.asking, **told),
        samples=suite.samples if changes.samples is None else changes.samples,
    )
    if changed.samples > 1 and changed.asking.temperature == 0:
        raise RecipeError(
            f"{suite.name}: {changed.samples} answers at temperature 0 would all be the same; set "
            "--temperature above 0, or --samples 1"
        )
    for question in changed.questions:
        needed = len(question.prompt_ids) + changed.asking.max_new_tokens
        if needed > LONGEST_CONTEXT:
            raise DataError(
                f"{question.source}: the prompt has {len(question.prompt_ids):,} tokens; with "
                f"answers of up to {changed.asking.max_new_tokens:,} that is over the "
                f"{LONGEST_CONTEXT:,} of gpt-oss: lower --max-new-tokens"
            )
    return changed


def _refuse_equal_names(suites: Sequence[Suite]) -> None:
    names = [suite.name for suite in suites]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise RecipeError(f"two suites are called {name}; change the name of one")


def _is_recipe(target: str) -> bool:
    """Return whether a name means a recipe or a run, and no suite.

    Raises:
        RecipeError: A YAML file cannot be read.
    """
    if _recipe_of_run(target) is not None:
        return True
    path = Path(target)
    if path.is_dir():
        raise RecipeError(
            f"{target}: a folder without a {RECIPE}; expected a suite, a recipe or a run"
        )
    if path.suffix in _YAML and path.is_file():
        values = read_recipe_values(target)
        return not any(key in values for key in _OF_SUITES)
    return shipped_recipe(target) is not None


def _recipe_of_run(target: str) -> Path | None:
    folder = Path(target).expanduser()
    return folder if RunFolder(folder).recipe.is_file() else None


def _settings(target: str) -> Settings:
    run = _recipe_of_run(target)
    recipe = load_recipe(target) if run is None else load_run_recipe(run)
    return Settings(
        target,
        recipe.evaluation,
        recipe.data,
        recipe.train.seed,
        kind_of(recipe.method),
        recipe.model.name_or_path,
    )


def _vocabulary(named: Sequence[NamedSubject], base: str | None) -> Vocabulary:
    """Return the vocabulary of the first model that lies here; gpt-oss has only one.

    Raises:
        CheckpointError: As ``base_name`` and ``resolve``.
        DataError: A tokenizer is not that of gpt-oss.
    """
    for subject in named:
        if subject.kind == "server" or is_on_hub(subject.target):
            continue
        whole = subject.target
        if is_adapter(whole):
            whole = base_name([whole])[0] if base is None else base
        if not is_on_hub(whole):
            return load_vocabulary(resolve(whole))
    return load_vocabulary()


def trained_rows(request: Request) -> dict[str, dict[str, Any]]:
    """Return by suite what of it stands in the rows that the run was trained on.

    Nothing where no run is known, or its rows do not lie here any more.
    """
    from gptoss_tune.benchmark.contamination import contamination

    trained = request.trained
    if trained is None:
        return {}
    try:
        found = contamination(
            request.suites,
            trained.data,
            request.renderer.vocabulary,
            seed=trained.seed,
            kind=trained.kind,
        )
    except GptossTuneError as error:
        reason = str(error).splitlines()[0]
        return {suite.name: {"share": None, "not_compared": reason} for suite in request.suites}
    return {name: one.as_json() | {"share": one.share} for name, one in found.items()}
