"""The label in what a policy classifier answers: one of a few words, or a field of a JSON object.

gpt-oss-safeguard is told by its policy how to answer; its guide knows three shapes, a bare ``0`` or
``1``, ``{"violation": 1, "policy_category": "H2.f"}``, and the same with a rationale. Words such as
``VALID`` and ``INVALID`` are as usual. Whoever acts on the answer parses it just so; what is in
none of these shapes is therefore no label here either, whatever a reader would make of it.

See the user guide for gpt-oss-safeguard, cookbook.openai.com/articles/gpt-oss-safeguard-guide.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.files import strict_json
from gptoss_tune.harmony.fields import kind, shown

SETTINGS: Final = ("labels", "positive", "field")
"""What a row or a suite says of the form beside the kind of its grader."""
MOST_LABELS: Final = 64
_LONGEST: Final = 64


@dataclass(frozen=True, slots=True)
class LabelForm:
    """How a classifier spells its label.

    Attributes:
        labels: All that it may answer, as written.
        positive: Those of them that mean that the policy is violated.
        field: Where the label stands in a JSON answer; ``a.b`` is ``b`` in the object ``a``.
    """

    labels: tuple[str, ...] = ("0", "1")
    positive: tuple[str, ...] = ("1",)
    field: str = "violation"

    def spelled(self, value: object) -> str | None:
        """Return the label that a value of JSON spells; ``None`` where it is none.

        ``1`` is the label ``"1"`` and ``true`` the label ``"true"``: neither is the other's.
        """
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, int):
            value = str(value) if abs(value) < 10**_LONGEST else ""
        if not isinstance(value, str):
            return None
        folded = _folded(value)
        return next((label for label in self.labels if _folded(label) == folded), None)


DEFAULT_FORM: Final = LabelForm()


@dataclass(frozen=True, slots=True)
class Judged:
    """What a row for a policy classifier says beside its messages.

    Attributes:
        policy: Its key ``policy``; empty: it names none.
        form: How its label is spelled.
        label: The expected label, from its key ``answer``; ``None``: it has none.
        unread: What stands under ``answer`` where that is no label of the form.
    """

    policy: str
    form: LabelForm
    label: str | None
    unread: str | None = None


def read_judged(row: Mapping[str, Any], source: str) -> Judged | None:
    """Return what a row says for a grader of policies; ``None`` where it names none.

    Raises:
        DataError: The settings of its grader cannot be used.
    """
    policy, grader = row.get("policy"), row.get("grader")
    settings = dict(grader) if isinstance(grader, Mapping) else {"kind": grader}
    kind_of_grader = settings.get("kind")
    if kind_of_grader != "policy" and not (kind_of_grader is None and isinstance(policy, str)):
        return None
    form = read_form(settings, source)
    named = settings.get("policy") if policy is None else policy
    answer = row.get("answer")
    label = form.spelled(answer)
    unread = None if answer is None or label is not None else str(answer)
    return Judged(named if isinstance(named, str) else "", form, label, unread)


def label_in(final: str, form: LabelForm) -> tuple[str | None, str | None]:
    """Return the label in a final message, or ``None`` and why there is none.

    Args:
        final: The whole text of the final channel.
        form: How a label is spelled.
    """
    label = form.spelled(final)
    if label is not None:
        return label, None
    text = final.strip()
    if not text.startswith("{"):
        expected = ", ".join(form.labels)
        said = "stands in a code fence" if text.startswith("```") else f"is {shown(text)}"
        return None, f"the answer {said}; expected one of {expected}, or a JSON object alone"
    try:
        value: Any = strict_json.parse(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        return None, f"the answer begins as JSON and is none ({_reason(error)})"
    for key in form.field.split("."):
        if not isinstance(value, dict) or key not in value:
            return None, f"the JSON answer has no field {shown(form.field)}"
        value = value[key]
    label = form.spelled(value)
    if label is None:
        said = shown(value) if isinstance(value, str) else _plain(value)
        return None, f"{form.field} is {said}; expected one of {', '.join(form.labels)}"
    return label, None


def read_form(settings: Mapping[str, Any], source: str) -> LabelForm:
    """Return the form that settings describe: ``labels``, ``positive`` and ``field``.

    Raises:
        DataError: They contradict each other, or are of another kind.
    """
    labels = _texts(settings.get("labels", ["0", "1"]), source, "labels")
    if not 2 <= len(labels) <= MOST_LABELS:
        raise DataError(
            f"{source}: grader.labels names {len(labels)}; expected 2 to {MOST_LABELS} labels"
        )
    if len({_folded(label) for label in labels}) < len(labels):
        raise DataError(
            f"{source}: grader.labels names a label twice (case and width of characters do not "
            f"count): {', '.join(labels)}"
        )
    if "positive" not in settings and labels != ("0", "1"):
        raise DataError(
            f"{source}: grader.positive is missing; name the labels of {', '.join(labels)} that "
            "mean a violation"
        )
    form = LabelForm(labels)
    positive = []
    for text in _texts(settings.get("positive", "1"), source, "positive"):
        label = form.spelled(text)
        if label is None:
            raise DataError(
                f"{source}: grader.positive is {shown(text)}; expected one of {', '.join(labels)}"
            )
        positive.append(label)
    if not 0 < len(set(positive)) < len(labels):
        raise DataError(
            f"{source}: grader.positive names {len(set(positive))} of {len(labels)} labels; "
            "expected some and not all: one has to mean that nothing is violated"
        )
    field = settings.get("field", DEFAULT_FORM.field)
    if not isinstance(field, str) or not all(field.split(".")) or len(field) > _LONGEST:
        said = shown(field) if isinstance(field, str) else kind(field)
        raise DataError(f"{source}: grader.field is {said}; expected a key such as violation")
    return LabelForm(labels, tuple(dict.fromkeys(positive)), field)


def _texts(value: object, source: str, name: str) -> tuple[str, ...]:
    """Return a text, a whole number or a switch, or a list of them, as labels are written."""
    listed = value if isinstance(value, list) else [value]
    found = []
    for one in listed:
        if isinstance(one, bool):
            one = "true" if one else "false"
        elif isinstance(one, int) and abs(one) < 10**_LONGEST:
            one = str(one)
        if not isinstance(one, str) or not 0 < len(one.strip()) <= _LONGEST:
            said = shown(one) if isinstance(one, str) else kind(one)
            raise DataError(
                f"{source}: grader.{name} holds {said}; expected texts of 1 to {_LONGEST} "
                "characters"
            )
        found.append(one.strip())
    return tuple(found)


def _folded(text: str) -> str:
    """Return a text without its case and the width of its characters; ``①`` is no ``1``."""
    plain = "".join(
        unicodedata.normalize("NFKC", char) if unicodedata.east_asian_width(char) in "FH" else char
        for char in text
    )
    return unicodedata.normalize("NFC", plain).strip().casefold()


def _reason(error: ValueError) -> str:
    return str(getattr(error, "msg", error))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) and abs(value) < 1e15 else kind(value)
