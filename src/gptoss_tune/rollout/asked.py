"""The prompts of a recipe before a model is loaded: how many, how long, how graded, how asked.

Counts come of the same reading of rows as a run's, and a prompt is shown as the player hands it to
a sampler: a sampler that answers nothing writes it down. Rendering it once more beside the player
was the alternative: a tool that only one of them declares would then be shown, or not, by mistake.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gptoss_tune.environments.environment import Environment, Outcome, Rewards, Task
from gptoss_tune.environments.load import built_in, load_environment
from gptoss_tune.environments.rows import KEY as TOOL_RESULTS
from gptoss_tune.errors import DataError
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.dataset.statistics import histogram
from gptoss_tune.harmony.places import first_of
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import RETURN
from gptoss_tune.recipe.contradictions.rewards import needs_graders
from gptoss_tune.rollout.play import Limits, Player
from gptoss_tune.rollout.sampler import Request, Sampled
from gptoss_tune.rollout.tasks import announced, prompt_length, question_key, read_tasks

if TYPE_CHECKING:
    from gptoss_tune.harmony.dataset.selection import Split
    from gptoss_tune.harmony.vocabulary import Vocabulary
    from gptoss_tune.recipe import DataSection
    from gptoss_tune.recipe.schema import GrpoSection

_NONE: Final = "none"
_UNUSABLE: Final = "unusable"
_MOST_LISTED: Final = 100


@dataclass(slots=True)
class PromptSplit:
    """What the prompts of one split amount to.

    Attributes:
        tasks: As they are played, repeated by the weights of their sources.
        rows: Read, of all sources.
        too_long: Left out, since no answer fits behind them.
        tokens: Of each prompt, ascending; tools of an environment come on top.
        graders: Tasks by the kind of their grader; ``none`` for those without,
            ``unusable`` for one that nothing weighs and that could not judge.
        ungraded: The first places of those.
        with_tools: Tasks that declare functions.
        with_results: Tasks that hold the results of calls.
        efforts: Tasks by reasoning effort.
        repeated: Rows that ask what an earlier one asks.
        problems: Why the split cannot be played.
        told: What was left out of it, a line each.
    """

    tasks: list[Task] = field(default_factory=list)
    rows: int = 0
    too_long: int = 0
    tokens: list[int] = field(default_factory=list)
    graders: Counter[str] = field(default_factory=Counter)
    ungraded: list[str] = field(default_factory=list)
    with_tools: int = 0
    with_results: int = 0
    efforts: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    problems: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def histogram(self) -> list[tuple[int, int, int]]:
        """``(low, high, count)`` of the prompts' tokens."""
        return histogram(np.asarray(self.tokens)) if self.tokens else []

    def to_json(self) -> dict[str, Any]:
        """Return the figures, as ``check-data`` writes them."""
        lengths = self.tokens
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        middle = lengths[len(lengths) // 2] if lengths else 0
        ends = (lengths[0], middle, lengths[-1]) if lengths else (0, 0, 0)
        return {
            **found,
            "tasks": len(self.tasks),
            "tokens": dict(zip(("shortest", "median", "longest"), ends, strict=True)),
            "graders": dict(self.graders),
            "efforts": dict(self.efforts),
        }


@dataclass(frozen=True)
class PromptData:
    """What the prompts of a recipe amount to.

    Attributes:
        splits: ``train``, and ``eval`` where some are held out.
        leaked: Held-out tasks that ask what training asks too.
        warnings: What is to know.
        problems: Why the data cannot be played.
    """

    splits: dict[str, PromptSplit]
    leaked: int
    warnings: list[str]
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report that ``check-data`` writes."""
        return {
            "ok": not self.problems,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "leaked": self.leaked,
            "warnings": self.warnings,
            "problems": self.problems,
        }


def look_at_prompts(
    data: DataSection,
    method: GrpoSection,
    vocabulary: Vocabulary,
    *,
    seed: int,
    own_environment: bool = False,
) -> PromptData:
    """Return what a recipe's prompts amount to; what is wrong with them is told and not raised.

    Args:
        data: The recipe's data section.
        method: Says what is rewarded.
        vocabulary: To count tokens with.
        seed: Of the held-out share, as in a run.
        own_environment: Whether a class of the user's own asks and rewards.
    """
    names: list[Split] = ["train"]
    if data.eval is not None or data.eval_fraction is not None:
        names.append("eval")
    splits = {
        name: _split(data, method, name, vocabulary, seed=seed, own=own_environment)
        for name in names
    }
    problems = [f"{name}: {line}" for name, one in splits.items() for line in one.problems]
    warnings = []
    for name, one in splits.items():
        warnings += [f"{name}: {line}" for line in one.told]
        if count := one.graders[_NONE]:
            places = first_of(one.ungraded, count)
            all_of_them = f"{count:,} of {len(one.tasks):,} prompts"
            line = f"{name}: {all_of_them} say no way to grade their answer{places}"
            if not own_environment:
                warnings.append(f"{line}: form alone is rewarded, not what is said")
    asked = {question_key(task) for task in splits["train"].tasks}
    held_out = splits["eval"].tasks if "eval" in splits else []
    leaked = sum(question_key(task) in asked for task in held_out)
    if leaked:
        share = f"{leaked:,} of {len(held_out):,} held-out prompts"
        warnings.append(f"eval: {share} are asked in training too")
    prompts, needed = len(splits["train"].tasks), method.prompts_per_step
    if 0 < prompts < needed:
        warnings.append(
            f"train: {prompts:,} in all for method.prompts_per_step {needed}: each step asks some "
            "prompts more than once"
        )
    return PromptData(splits, leaked, warnings, problems)


def _split(
    data: DataSection,
    method: GrpoSection,
    name: Split,
    vocabulary: Vocabulary,
    *,
    seed: int,
    own: bool,
) -> PromptSplit:
    found, counts, tools = PromptSplit(), Counter[str](), announced(method, own=own)
    try:
        found.tasks = read_tasks(
            data,
            name,
            vocabulary=vocabulary,
            seed=seed,
            graded=needs_graders(method, own=own),
            own_environment=own,
            announced=tools,
            tell=lambda line: found.told.append(line.removeprefix(f"{name}: ")),
            counts=counts,
        )
    except DataError as error:
        found.problems += [line.strip() for line in str(error).splitlines()]
    found.rows, found.too_long = counts["rows"], counts["too_long"]
    renderer = Renderer(vocabulary, RenderSettings(data.reasoning_effort, data.date))
    questions: dict[int, str] = {}
    for task in found.tasks:
        conversation = task.conversation
        if conversation.messages:
            found.tokens.append(prompt_length(renderer, conversation, tools))
        _count_grader(found, task)
        found.efforts[conversation.effort or data.reasoning_effort] += 1
        functions = conversation.namespaces.get("functions", {"tools": []})
        found.with_tools += bool(functions["tools"])
        found.with_results += bool(task.row.get(TOOL_RESULTS))
        # A row that its source's weight repeats asks nothing that an earlier one asks.
        found.repeated += questions.setdefault(question_key(task), task.source) != task.source
    found.tokens.sort()
    return found


def _count_grader(found: PromptSplit, task: Task) -> None:
    try:
        grader = read_grader(dict(task.row), task.source)
    except DataError:  # nothing weighs it, or the row was refused
        found.graders[_UNUSABLE] += 1
        return
    found.graders[_NONE if grader is None else grader.kind] += 1
    if grader is None:
        found.ungraded = [*found.ungraded, task.source][:_MOST_LISTED]


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt as it is asked.

    Attributes:
        source: ``file:line``.
        token_ids: Up to and including ``<|start|>assistant``; empty where it could not be asked.
        grader: Judges the final answer; ``None``: the row names none, or one that cannot be used.
        results: How many results of calls the row holds.
        problem: Why it could not be asked.
    """

    source: str
    token_ids: tuple[int, ...]
    grader: Grader | None
    results: int
    problem: str | None = None


class _NotingSampler:
    """A sampler that notes what it is asked and says nothing."""

    name, version = "preview", 0

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def update(self, version: int) -> None:
        """Hold no weights."""

    def sample(
        self,
        requests: Sequence[Request],
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Sampled]:
        """Return an answer of no words for each request."""
        self.asked += [request.prompt for request in requests]
        return [Sampled((RETURN,), np.zeros(1, np.float32), None, 0) for _ in requests]

    def close(self) -> None:
        """Hold nothing."""


def first_prompts(
    tasks: Sequence[Task],
    data: DataSection,
    method: GrpoSection,
    vocabulary: Vocabulary,
    *,
    environment: str | None = None,
    seed: int = 0,
) -> list[ShownPrompt]:
    """Return tasks as the player asks them, with the tools of their environment.

    Args:
        tasks: To be shown.
        data: The recipe's data section.
        method: Names the environment, and its limits.
        vocabulary: To render with.
        environment: ``module:Class`` of the command line, whose ``reset`` and ``tools`` are called.
        seed: Of the recipe.

    Raises:
        RecipeError: The class cannot be had.
        MachineError: The environment needs a sandbox that this machine has not.
    """
    make: Callable[[], Environment]
    if environment is not None:
        make = load_environment(environment)
    else:
        reading = sample_settings(data).reading
        make = built_in(method.environment, reading=reading, tool_seconds=method.tool_seconds)
    sampler = _NotingSampler()
    limits = Limits(method.max_new_tokens, 1, data.max_length, method.tool_seconds)
    renderer = Renderer(vocabulary, RenderSettings(data.reasoning_effort, data.date))
    player = Player(sampler, renderer, make, _unjudged, limits)
    shown = []
    for task in tasks:
        asked = len(sampler.asked)
        (episode,) = player.play([(task, 0, seed)], temperature=1.0)
        prompt = sampler.asked[asked] if len(sampler.asked) > asked else ()
        why = (
            None if prompt else "; ".join(episode.rewards.failed.values()) or episode.outcome.ended
        )
        held = task.row.get(TOOL_RESULTS)
        results = len(held) if isinstance(held, list) else 0
        shown.append(ShownPrompt(task.source, prompt, _grader_of(task), results, why))
    return shown


def _unjudged(
    asked: Sequence[tuple[Environment | None, Task, Outcome]], *, waiting: Callable[[], None]
) -> list[Rewards]:
    return [Rewards(0.0) for _ in asked]


def _grader_of(task: Task) -> Grader | None:
    try:
        return read_grader(dict(task.row), task.source)
    except DataError:
        return None
