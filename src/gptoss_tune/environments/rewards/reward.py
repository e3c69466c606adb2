"""The reward function of a run: components of each episode, and their weighted sum.

::

    reward = RewardFunction({"answer": 1.0, "format": 0.1})
    reward.check(tasks)
    reward.judge(None, task, outcome)  # Rewards(total=1.1, components={"answer": 1.0, "format": 1})

Built in are ``answer``, the row's own grader (``grading.rows``), 1 or 0, and ``format``, ``calls``
and ``length`` (``components``). An environment of the user's own gives a number, the component
``environment``, or a mapping of components. One that is named like a built-in takes its place.

A component that raises, takes too long or is not finite counts 0 and is named in ``failed``; the
others count as ever. So does one whose value is an exception, which a mapping may hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from gptoss_tune.environments.bounded import Bounded, Call, Failure, reason
from gptoss_tune.environments.environment import Environment, Outcome, Rewards, Task
from gptoss_tune.environments.rewards.components import (
    format_health,
    shortness,
    well_formed_calls,
)
from gptoss_tune.errors import DataError, MachineError, RecipeError
from gptoss_tune.grading.code.pool import processors
from gptoss_tune.grading.code_grader import Code
from gptoss_tune.grading.grader import NOT_JUDGED, Grader, Verdict
from gptoss_tune.grading.rows import require_grader
from gptoss_tune.recipe.contradictions.rewards import (
    COMPONENTS,
    FLOAT,
    require_known,
    wrong_name,
)

SECONDS: Final = 60.0
"""What one reward may take unless told otherwise."""
AT_A_TIME: Final = 16
"""Rewards of a user's own that are computed at a time: they may wait for a network."""
MOST_COMPONENTS: Final = 32
"""Of one environment; each becomes a metric."""
LARGEST: Final = 1e9
"""Largest size of a component: advantages are fp32."""
_MOST_SHOWN: Final = 20

Asked: TypeAlias = tuple[Environment | None, Task, Outcome]
"""An episode: its environment (``None``: without rewards of its own), its task, what happened."""


class RewardFunction:
    """Judges episodes; ``judge_many`` judges those of a phase at the same time.

    Attributes:
        weights: Of the components.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        own: bool = False,
        seconds: float = SECONDS,
        length_target: int | None = None,
    ) -> None:
        """Weigh components.

        Args:
            weights: By component; 0: computed and logged, not learnt from.
            own: Whether environments of the user's own play, which may give further components.
            seconds: What one reward may take; a row's grader ``code`` has the row's ``timeout_s``
                besides.
            length_target: Tokens of an answer up to which ``length`` is 1; ``None``: half of the
                longest.

        Raises:
            RecipeError: A weight is not finite, or of a component that nobody gives.
        """
        wrong = [f"method.rewards.{n}: got {w}" for n, w in weights.items() if not math.isfinite(w)]
        if wrong:
            raise RecipeError("\n".join(f"{line}, expected a finite weight" for line in wrong))
        require_known(weights, own=own)
        self.weights = dict(weights)
        self._own = own
        self._seconds = seconds
        self._target = length_target
        self._bounded = Bounded()
        self._graders: dict[tuple[str, int], Grader | str] = {}
        self._given: set[str] = set()

    def check(self, tasks: Iterable[Task], environment: Environment | None = None) -> None:
        """Read the graders of all rows before anything is played.

        An environment of the user's own may judge by itself, so its rows need no grader that can
        be used.

        Args:
            tasks: Of the data.
            environment: One of those that will play; its attribute ``components``, where it has
                one, says which components it gives.

        Raises:
            DataError: Lists rows whose answers cannot be graded, where ``answer`` has a weight.
            RecipeError: A weight is of a component that the environment does not give.
            MachineError: This machine cannot judge as a row asks for.
        """
        named = getattr(environment, "components", None)
        require_known(self.weights, own=self._own, given=named)
        if "answer" not in self.weights or (named is not None and "answer" in named):
            return
        found = [self._grader(task) for task in tasks]
        wrong = [line for line in found if isinstance(line, str)]
        if not wrong or (self._own and named is None):
            return
        more = [f"and {len(wrong) - _MOST_SHOWN:,} more"] if len(wrong) > _MOST_SHOWN else []
        raise DataError("\n".join([*wrong[:_MOST_SHOWN], *more]))

    def judge(self, environment: Environment | None, task: Task, outcome: Outcome) -> Rewards:
        """Return what one episode earned; see ``judge_many``."""
        return self.judge_many([(environment, task, outcome)])[0]

    def judge_many(
        self, asked: Sequence[Asked], *, waiting: Callable[[], None] = lambda: None
    ) -> list[Rewards]:
        """Return what each episode earned, in order.

        Rewards of different environments are computed at the same time, in threads.

        Args:
            asked: Episodes that are over.
            waiting: Called several times a second; what it raises ends this.

        Raises:
            RecipeError: A component has a weight and no environment gives it.
            MachineError: A reward found that the machine does not work, such as its sandbox.
        """
        sheets = [_Sheet() for _ in asked]
        self._ask_environments(asked, sheets, waiting)
        for (_, _, outcome), sheet in zip(asked, sheets, strict=True):
            self._look_at(outcome, sheet)
        self._grade(asked, sheets, waiting)
        return [sheet.rewards(self.weights) for sheet in sheets]

    def _ask_environments(
        self, asked: Sequence[Asked], sheets: Sequence[_Sheet], waiting: Callable[[], None]
    ) -> None:
        """Have the environments judge."""
        pairs = [
            (sheet, environment, outcome)
            for sheet, (environment, _, outcome) in zip(sheets, asked, strict=True)
            if environment is not None
        ]
        calls = [
            Call(lambda own=own, outcome=outcome: own.reward(outcome), self._seconds)
            for _, own, outcome in pairs
        ]
        wanted = [name for name in self.weights if name not in COMPONENTS] if self._own else []
        answered = False
        results = _sound(self._bounded.run(calls, AT_A_TIME, waiting))
        for (sheet, _, _), found in zip(pairs, results, strict=True):
            if isinstance(found, Failure):
                sheet.fail(FLOAT, found.reason, wanted)
                continue
            answered = True
            self._given |= sheet.take(found, wanted)
        if answered:
            self._require_given(wanted)

    def _require_given(self, wanted: Sequence[str]) -> None:
        """Refuse a weight of what no environment has given yet, once one has said what it gives."""
        missing = [name for name in wanted if name not in self._given]
        if missing:
            got = ", ".join(sorted(self._given)) or "none"
            raise RecipeError(
                "\n".join(
                    f"method.rewards.{name}: got {name!r}, which no episode was given; expected a "
                    f"component of the environment ({got}) or one of {', '.join(COMPONENTS)}; "
                    "rename it, or have reward() give it in every episode"
                    for name in missing
                )
            )

    def _look_at(self, outcome: Outcome, sheet: _Sheet) -> None:
        """Compute what needs the episode alone."""
        for name, formula in (
            ("format", format_health),
            ("calls", well_formed_calls),
            ("length", lambda outcome: shortness(outcome, self._target)),
        ):
            if name in self.weights and name not in sheet.components:
                sheet.components[name] = formula(outcome)

    def _grade(
        self, asked: Sequence[Asked], sheets: Sequence[_Sheet], waiting: Callable[[], None]
    ) -> None:
        """Have the rows' graders judge the answers."""
        if "answer" not in self.weights:
            return
        judged: list[_Sheet] = []
        calls: list[Call] = []
        for (_, task, outcome), sheet in zip(asked, sheets, strict=True):
            if "answer" in sheet.components:
                continue
            grader = self._grader(task)
            if isinstance(grader, str):
                sheet.fail("answer", grader, ("answer",))
                continue
            judged.append(sheet)
            calls.append(self._call(grader, outcome))
        # A grader ends by itself, and holds processes that an exception would leave undefined.
        results = _sound(self._bounded.run(calls, processors(), waiting))
        for sheet, found in zip(judged, results, strict=True):
            sheet.take_verdict(found)

    def _call(self, grader: Grader, outcome: Outcome) -> Call:
        own = grader.task.limits.timeout_s if isinstance(grader, Code) else grader.seconds
        return Call(
            lambda: grader.judge(outcome.given, grader.seconds),
            self._seconds + own,
            interrupt=False,
        )

    def _grader(self, task: Task) -> Grader | str:
        """Return what grades a row, or why nothing does."""
        key = (task.source, task.number)
        if key not in self._graders:
            try:
                self._graders[key] = require_grader(dict(task.row), task.source)
            except DataError as error:
                self._graders[key] = str(error)
        return self._graders[key]


def _sound(results: list[Any]) -> list[Any]:
    """Return results of which none says that the machine does not work."""
    for found in results:
        if isinstance(found, Failure) and isinstance(found.error, MachineError):
            raise found.error
    return results


class _Sheet:
    """What is found out of one episode."""

    def __init__(self) -> None:
        self.components: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def fail(self, name: str, reason: str, zero: Iterable[str]) -> None:
        """Note why a component failed, and the components that count 0 for it."""
        self.failed[name] = reason
        for each in zero:
            self.components.setdefault(each, 0.0)

    def take(self, found: Any, wanted: Sequence[str]) -> set[str]:
        """Take what an environment's reward gave; return the names of its components."""
        given = found if isinstance(found, Mapping) else {FLOAT: found}
        if len(given) > MOST_COMPONENTS:
            got = f"gave {len(given):,} components"
            self.fail(FLOAT, f"{got}; expected at most {MOST_COMPONENTS}", wanted)
            return set()
        named: set[str] = set()
        for name, value in given.items():
            if why := wrong_name(name):
                self.fail(FLOAT, f"gave a component {name!r:.80}; expected {why}", ())
                continue
            named.add(name)
            if isinstance(value, BaseException):
                self.fail(name, reason(value), (name,))
                continue
            number = _number(value)
            if isinstance(number, str):
                self.fail(name, f"gave {number}; expected a finite number", (name,))
            else:
                self.components[name] = number
        for name in wanted:
            if name not in named:
                self.fail(name, "reward() did not give it", (name,))
        return named

    def take_verdict(self, found: Verdict | Failure) -> None:
        """Take what the row's grader said."""
        if isinstance(found, Failure):
            self.fail("answer", found.reason, ("answer",))
        elif found.note is not None and found.note.startswith(NOT_JUDGED):
            self.fail("answer", found.note, ("answer",))
        else:
            self.components["answer"] = float(found.passed)

    def rewards(self, weights: Mapping[str, float]) -> Rewards:
        """Return the weighted sum of the components that have a weight, with all of them."""
        total = math.fsum(
            weights[name] * self.components[name] for name in weights if name in self.components
        )
        return Rewards(total, dict(self.components), dict(self.failed))


def _number(value: Any) -> float | str:
    """Return a component as a number, or what it is instead."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return type(value).__name__
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        return f"{type(value).__name__} ({type(error).__name__})"
    return number if abs(number) <= LARGEST else f"{number:g}"
