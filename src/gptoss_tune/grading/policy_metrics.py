"""Figures of policy classifiers: precision, recall, F1 and specificity, policy by policy.

An abstention (an answer without a label) is neither a yes nor a no. It is missed by recall where
the policy is violated and by specificity where it is not, and counts in no precision: abstaining
makes no figure better than the right label would, though precision and F1 better than a false alarm
does. Counting it as "no violation", the alternative, makes a classifier that answers nonsense look
specific.

Example: of 10 violations 6 are found, 1 is called fine and 3 get no label; of 10 fine rows 2 are
flagged and 8 called fine. Precision 6/8, recall 6/10, specificity 8/10, F1 2*6 / (8 + 10) = 0.667,
3 of 20 abstained.

The macro average is the plain mean over policies: one with ten rows counts as much as one with a
thousand. Intervals are Wilson's (1927) at 95 %; that of F1 follows from the one of
``tp / (tp + fp + missed)``, of which F1 = 2x / (1 + x) is a growing function (Hand, Christen and
Kirielle 2021).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.grader import Grader, Verdict
from gptoss_tune.grading.policy import PolicyLabel

RATES: Final = ("f1", "precision", "recall", "specificity")
"""The figures that have an interval, as they are named everywhere."""
MACRO: Final = "macro"
"""Stands where a policy's name stands; none may be called so."""
_Z: Final = 1.959963984540054
"""Of a two-sided 95 %."""


@dataclass(frozen=True)
class Rate:
    """A figure from 0 to 1 with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass
class Outcomes:
    """How the rows of one policy were answered.

    Attributes:
        true_positive: Violations that were called so.
        false_positive: Fine rows that were called violations.
        true_negative: Fine rows that were called fine.
        false_negative: Violations that were called fine.
        abstained_positive: Violations that got no label.
        abstained_negative: Fine rows that got no label.
        exact: Rows with the very label that was expected, of more than two.
    """

    true_positive: int = 0
    false_positive: int = 0
    true_negative: int = 0
    false_negative: int = 0
    abstained_positive: int = 0
    abstained_negative: int = 0
    exact: int = 0

    @property
    def positives(self) -> int:
        """Rows whose expected label is a violation."""
        return self.true_positive + self.false_negative + self.abstained_positive

    @property
    def negatives(self) -> int:
        """Rows whose expected label is none."""
        return self.true_negative + self.false_positive + self.abstained_negative

    @property
    def rows(self) -> int:
        """All rows."""
        return self.positives + self.negatives

    @property
    def abstained(self) -> int:
        """Rows that got no label."""
        return self.abstained_positive + self.abstained_negative

    def rates(self) -> dict[str, Rate | None]:
        """Return F1, precision, recall and specificity; ``None``: nothing to divide by."""
        missed = self.positives - self.true_positive
        found = wilson(self.true_positive, self.true_positive + self.false_positive + missed)
        f1 = None if found is None else Rate(*(2 * x / (1 + x) for x in _ends(found)))
        flagged = self.true_positive + self.false_positive
        return {
            "f1": f1,
            "precision": wilson(self.true_positive, flagged),
            "recall": wilson(self.true_positive, self.positives),
            "specificity": wilson(self.true_negative, self.negatives),
        }

    def count(self, *, expected: bool, answered: bool | None, exact: bool) -> None:
        """Count a row: whether it is a violation, and what it was called (``None``: nothing)."""
        names = {True: "true", False: "false"}
        if answered is None:
            name = f"abstained_{'positive' if expected else 'negative'}"
        else:
            name = f"{names[expected == answered]}_{'positive' if answered else 'negative'}"
        setattr(self, name, getattr(self, name) + 1)
        self.exact += exact


def wilson(part: int, whole: int) -> Rate | None:
    """Return ``part / whole`` with its Wilson interval; ``None`` for nothing of nothing.

    ``wilson(8, 10)`` is 0.8 with the interval 0.4902 to 0.9433.
    """
    if whole == 0:
        return None
    share, extra = part / whole, _Z * _Z / whole
    middle = (share + extra / 2) / (1 + extra)
    half = _Z / (1 + extra) * math.sqrt(share * (1 - share) / whole + extra / (4 * whole))
    # At the ends the formula is 0 and 1 but for rounding.
    low = 0.0 if part == 0 else max(0.0, middle - half)
    return Rate(share, low, 1.0 if part == whole else min(1.0, middle + half))


def _ends(rate: Rate) -> tuple[float, float, float]:
    return rate.value, rate.low, rate.high


def outcomes(judged: Iterable[tuple[Grader | None, Verdict]]) -> dict[str, Outcomes]:
    """Return how each policy's rows were answered, in the order in which they first appear.

    Args:
        judged: Graders with their verdicts; those of other kinds are passed over.
    """
    found: dict[str, Outcomes] = {}
    for grader, verdict in judged:
        if isinstance(grader, PolicyLabel):
            label = verdict.label
            found.setdefault(grader.policy, Outcomes()).count(
                expected=grader.is_positive(grader.label),
                answered=None if label is None else grader.is_positive(label),
                exact=verdict.passed,
            )
    return found


def policies_report(judged: Iterable[tuple[Grader | None, Verdict]]) -> dict[str, Any] | None:
    """Return the figures of every policy and their macro average, as JSON; ``None`` without any.

    Args:
        judged: As for ``outcomes``.
    """
    found = outcomes(judged)
    if not found:
        return None
    by_policy = {name: _as_json(one) for name, one in found.items()}
    macro: dict[str, Any] = {"policies": len(found)}
    for rate in RATES:
        values = [one[rate] for one in by_policy.values() if one[rate] is not None]
        macro[rate] = math.fsum(values) / len(values) if values else None
        if len(values) < len(found):
            macro[f"{rate}_policies"] = len(values)
    macro["abstained"] = sum(one.abstained for one in found.values())
    macro["rows"] = sum(one.rows for one in found.values())
    return {"by_policy": by_policy, MACRO: macro}


def _as_json(found: Outcomes) -> dict[str, Any]:
    rates = found.rates()
    return {
        "rows": found.rows,
        "positives": found.positives,
        "exact": found.exact,
        "true_positive": found.true_positive,
        "false_positive": found.false_positive,
        "true_negative": found.true_negative,
        "false_negative": found.false_negative,
        "abstained": found.abstained,
        "abstained_positive": found.abstained_positive,
        **{name: None if rate is None else rate.value for name, rate in rates.items()},
        "intervals": {
            name: None if rate is None else [rate.low, rate.high] for name, rate in rates.items()
        },
    }


def policy_figures(report: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what goes into the metrics: ``eval_f1_NAME``, and for the other rates likewise.

    ``eval_abstained_NAME`` is the share of the policy's rows; NAME ``macro`` is the average. What
    has nothing to divide by is left out.

    Args:
        report: From ``policies_report``.
    """
    if report is None:
        return {}
    found: dict[str, float] = {}
    named = {metric_name(name): one for name, one in report["by_policy"].items()}
    for name, one in {**named, MACRO: report[MACRO]}.items():
        found |= {f"eval_{rate}_{name}": one[rate] for rate in RATES if one[rate] is not None}
        found[f"eval_abstained_{name}"] = one["abstained"] / one["rows"]
    return found


def metric_name(policy: str) -> str:
    """Return a policy's name as figures have it: small letters, digits and ``_``.

    It depends on that name alone. One that holds other characters than letters, digits, blanks and
    ``-_.`` gets a hash of the whole behind it: ``"Spam (EU)"`` is ``spam_eu_1483fc``.
    """
    name = re.sub(r"[^a-z0-9]+", "_", policy.lower()).strip("_")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]*", policy) is None or not name:
        digest = hashlib.blake2s(policy.encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()
        name = f"{name}_{digest}" if name else f"policy_{digest}"
    return name


def refuse_equal_names(graders: Iterable[Grader | None]) -> None:
    """Refuse policies that would be one figure, and one that is called as the average is.

    Raises:
        DataError: There are such.
    """
    known: dict[str, str] = {}
    for grader in graders:
        if not isinstance(grader, PolicyLabel):
            continue
        name = metric_name(grader.policy)
        if name == MACRO:
            raise DataError(
                f"a policy is called {grader.policy!r}, as the average over all is "
                "(eval_f1_macro); give it another name"
            )
        other = known.setdefault(name, grader.policy)
        if other != grader.policy:
            raise DataError(
                f"the policies {other!r} and {grader.policy!r} are one name in the metrics "
                f"(eval_f1_{name}); give one of them another name"
            )
