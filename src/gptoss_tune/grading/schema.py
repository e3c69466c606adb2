r"""The grader ``json_schema``: the final text is JSON, and valid against a JSON schema.

Read strictly: nothing around it, no key twice, no NaN. With ``fenced: true`` one fence of three
backticks around it may be there, too. ``equals`` asks for values besides: of a key, or of a JSON
pointer such as ``/where/lat``; they are compared as JSON values, so ``1`` equals ``1.0``.

jsonschema validates, in a process that is killed when it takes too long (``bounded/``). ``format``
is not checked, and references to other documents are refused: nothing is ever fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from gptoss_tune.errors import DataError
from gptoss_tune.files import strict_json
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.bounded.worker import JobDied, OutOfTime, worker
from gptoss_tune.grading.calls import same_value
from gptoss_tune.grading.grader import NOT_JUDGED, Verdict
from gptoss_tune.grading.reading.settings import (
    LONGEST_ANSWER,
    TOO_LONG,
    refuse_unknown,
    require,
    take_flag,
)
from gptoss_tune.harmony.fields import MOST_NESTED, nested, shown, take_listed

_SECONDS_TO_CHECK: Final = 5.0
_FENCE: Final = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*)\n```", re.DOTALL)
_NOTHING: Final = object()


@dataclass(frozen=True)
class JsonSchema:
    """Passes when the final text is JSON that the schema and the expected values fit.

    Attributes:
        schema: JSON text of the schema.
        equals: Places and the JSON text of the values they must have.
        fenced: Whether one fence around it is taken.
    """

    schema: str
    equals: tuple[tuple[str, str], ...] = ()
    fenced: bool = False

    kind: ClassVar[str] = "json_schema"
    seconds: ClassVar[float] = 2.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        text = f"JSON that fits {self.schema}"
        text = text if len(text) <= 300 else f"{text[:296]}..."
        parts = ", ".join(f"{place} = {value}" for place, value in self.equals)
        return f"{text}, {parts[:300]}" if parts else text

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Parse here, validate in the process that can be killed."""
        if given.final is None:
            return Verdict(False)
        if len(given.final) > LONGEST_ANSWER:
            return Verdict(False, TOO_LONG)
        text = given.final.strip()
        if self.fenced and (fence := _FENCE.fullmatch(text)) is not None:
            text = fence[1]
        try:
            value = strict_json.parse(text.encode("utf-8", "surrogatepass"))
        except ValueError as error:
            return Verdict(False, f"is not JSON: {error}")
        for place, expected in self.equals:
            found = _at(value, place)
            if found is _NOTHING:
                return Verdict(False, f"{place} is not there")
            if not same_value(json.loads(expected), found):
                return Verdict(False, f"{place} is not {expected[:80]}")
        wrong = _asked({"schema": json.loads(self.schema), "value": value}, seconds)
        return Verdict(wrong is None, wrong)


def _at(value: Any, place: str) -> Any:
    """Return what stands at a place of a JSON value."""
    keys = place[1:].split("/") if place.startswith("/") else [place]
    for key in keys:
        name = key.replace("~1", "/").replace("~0", "~") if place.startswith("/") else key
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name[:9]) < len(value):
            value = value[int(name[:9])]
        else:
            return _NOTHING
    return value


def _asked(task: dict[str, Any], seconds: float) -> str | None:
    """Return what is wrong; ``None`` if nothing is."""
    try:
        reply = worker("schema").ask(task, seconds)
    except OutOfTime:
        return f"{NOT_JUDGED}: validation did not end within {seconds:.2g} s"
    except JobDied:
        return f"{NOT_JUDGED}: validation took more memory than it may"
    return f"{NOT_JUDGED}: {reply['error']}" if "error" in reply else reply["wrong"]


def read_schema(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> JsonSchema:
    """Return the grader of the schema under ``schema``, of the settings or of the row.

    Raises:
        DataError: It is no schema that can be validated with.
        MachineError: jsonschema is not installed.
    """
    refuse_unknown(settings, ("schema", "equals", "fenced"), source, JsonSchema.kind)
    require("jsonschema", JsonSchema.kind, source)
    schema = take_listed(settings.get("schema", row.get("schema")), source, "schema")
    if not isinstance(schema, dict) or nested(schema) > MOST_NESTED:
        raise DataError(
            f"{source}: schema is {shown(schema)}; grader json_schema expects a JSON schema, an "
            f"object of at most {MOST_NESTED} levels"
        )
    text = json.dumps(schema, ensure_ascii=False)
    wrong = "it is too long" if len(text) > LONGEST_ANSWER else None
    wrong = wrong or _asked({"schema": schema}, _SECONDS_TO_CHECK)
    if wrong is not None:
        raise DataError(f"{source}: schema cannot be used: {wrong}")
    equals = settings.get("equals", row.get("equals"))
    equals = {} if equals is None else equals
    if not isinstance(equals, dict) or nested(equals) > MOST_NESTED or len(equals) > 1_000:
        raise DataError(
            f'{source}: equals is {shown(equals)}; expected an object like {{"city": "Oslo"}}'
        )
    return JsonSchema(
        text,
        tuple((place, json.dumps(value, ensure_ascii=False)) for place, value in equals.items()),
        take_flag(settings, "fenced", source, "grader json_schema"),
    )
