"""What is told of a source before it is trained on: by check-data, preview and train alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.guards.answers import answer_habits
from gptoss_tune.harmony.guards.policies import one_label
from gptoss_tune.harmony.places import first_of

if TYPE_CHECKING:
    from gptoss_tune.harmony.dataset.arrow import SampleFile
    from gptoss_tune.harmony.dataset.counts import RowCounts
    from gptoss_tune.recipe import DataSection, DataSource

THOUGHTLESS_SHARE: Final = 0.1
"""Share of a source's rows without thoughts above which it is told."""


class EffortAdvice(NamedTuple):
    """The effort of a source's rows that name none, and the setting that makes it low."""

    effort: Effort
    setting: str


def effort_advice(source: DataSource, data: DataSection) -> EffortAdvice:
    """Return how a source is trained, and how to train it at low effort and no other."""
    if source.reasoning_effort is not None or len(data.train) + len(data.eval or []) > 1:
        return EffortAdvice(
            source.reasoning_effort or data.reasoning_effort,
            "write reasoning_effort: low beside its path",
        )
    return EffortAdvice(data.reasoning_effort, "set data.reasoning_effort=low")


def source_warnings(
    report: RowCounts, samples: SampleFile | None, label: str, advice: EffortAdvice
) -> list[str]:
    """Return what a run survives and its owner should know of a source, a line each.

    Args:
        report: What happened to its rows.
        samples: Its samples; None: its answers are not looked at.
        label: Split and path.
        advice: About its effort.
    """
    found = report.lines("warnings", label)
    without = report.counts["without_thoughts"]
    whole = report.counts["rows"] - report.counts["rejected"] - report.counts["documents"]
    if without > THOUGHTLESS_SHARE * whole:
        places = first_of(report.places.get("without_thoughts", []), without)
        found.append(
            f"{label}: {without:,} row{'s' if without > 1 else ''} of {whole:,} without thoughts, "
            f"trained at {advice.effort} effort: the model learns not to think there{places}; "
            f"{advice.setting} and serve it at low effort, add the thoughts, or name the effort in "
            "the rows"
        )
    found += [f"{label}: {sentence}" for sentence in one_label(report.labels)]
    for habit in answer_habits(samples) if samples is not None else ():
        number = len(habit.places)
        places = first_of(habit.places, number)
        found.append(f"{label}: {number:,} of {habit.of:,} rows {habit.said}{places}")
    return found
