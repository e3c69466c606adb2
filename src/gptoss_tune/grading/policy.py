"""Grader of policy classifiers: the label in the final channel against the expected one.

A classifier such as gpt-oss-safeguard has a written policy in its developer message and answers
with a label. What is no label counts as an abstention and never as "no violation": a system that
acts on the answers cannot act on that one. The chain of thought is not looked at, since nobody
acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Verdict
from gptoss_tune.harmony.fields import kind, shown, take_text
from gptoss_tune.harmony.policy_label import SETTINGS, LabelForm, label_in, read_form

KNOWN: Final = (*SETTINGS, "policy")
"""Settings beside the kind."""
_LONGEST_NAME: Final = 64


@dataclass(frozen=True)
class PolicyLabel:
    """Passes when the label in the final text is the expected one.

    Attributes:
        policy: Name of the policy that the row belongs to.
        label: The expected label, one of ``form.labels``.
        form: How a label is spelled.
    """

    policy: str
    label: str
    form: LabelForm

    kind: ClassVar[str] = "policy"
    seconds: ClassVar[float] = 0.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return self.label

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Read the label of the final text; ``Verdict.label`` is ``None`` where there is none."""
        if given.final is None:
            return Verdict(False, "no label: there is no final message")
        label, why = label_in(given.final, self.form)
        return Verdict(label == self.label, None if why is None else f"no label: {why}", label)

    def is_positive(self, label: str) -> bool:
        """Return whether a label means that the policy is violated."""
        return label in self.form.positive


def read_policy(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> PolicyLabel:
    """Return the grader of a row with its expected label under ``answer``.

    The policy is named by the row's key ``policy``, else by that of the settings, else it is the
    name of the row's file.

    Raises:
        DataError: The label is missing or none of the form's, or a setting cannot be used.
    """
    form = read_form(settings, source)
    answer = row.get("answer")
    label = form.spelled(answer)
    if label is None:
        said = shown(answer) if isinstance(answer, str) else kind(answer)
        said = "missing" if answer is None else said
        raise DataError(
            f"{source}: answer is {said}; grader policy expects one of {', '.join(form.labels)}"
        )
    named = row.get("policy")
    named = settings.get("policy") if named is None else named
    if named is None:
        named = PurePath(source.rpartition(":")[0] or source).stem
    name = take_text(named, source, "policy").strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise DataError(
            f"{source}: policy is {shown(name)}; expected a name of 1 to {_LONGEST_NAME} "
            "characters: the text of the policy belongs into the system message"
        )
    return PolicyLabel(name, label, form)
