"""The grader ``calls``: the calls of tools that an answer makes, compared as parsed structures.

Arguments are JSON values: ``1`` equals ``1.0``, the order of keys does not count, ``true`` is not
1, a text is exact. ``match`` beside the arguments of an expected call loosens one of them:

```json
{"name": "forecast", "arguments": {"city": "Oslo", "days": 3},
 "match": {"city": {"ignore_case": true}, "days": {"tolerance": 1},
           "unit": {"any_of": ["C", "celsius"], "optional": true}, "note": {"anything": true}}}
```

Calls in parallel may come in any order unless ``ordered`` is set; a call too many fails like one
that is missing. gpt-oss stops at its call, so what could be called in parallel comes one at a time:
with ``"match": "any"`` some of the expected calls, at least one, are enough. ``"calls": []`` means
that no tool may be called: the answer is a text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from gptoss_tune.errors import DataError
from gptoss_tune.files import strict_json
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.grading.grader import Verdict
from gptoss_tune.grading.reading.settings import (
    LONGEST_ANSWER,
    refuse_unknown,
    take_amount,
    take_choice,
    take_flag,
)
from gptoss_tune.harmony.conversation import Message
from gptoss_tune.harmony.fields import nested, parse_json, shown, take_listed, take_text

MOST_CALLS: Final = 64
"""Calls of one answer."""
_LARGEST_EXACT: Final = 10**15
_CODE_TOOLS: Final = ("python",)
"""Tools that take code instead of JSON: which code is right, running it shows, not comparing."""


@dataclass(frozen=True)
class Match:
    """How one argument is compared.

    Attributes:
        any_of: Accepted values as JSON text.
        optional: It may be left out.
        anything: Any value will do.
        ignore_case: Texts are compared case folded and with white space joined.
        tolerance: Largest difference of a number.
    """

    any_of: tuple[str, ...] = ()
    optional: bool = False
    anything: bool = False
    ignore_case: bool = False
    tolerance: float = 0.0

    def takes(self, value: Any) -> bool:
        """Return whether a value will do."""
        return self.anything or any(
            same_value(json.loads(accepted), value, self.ignore_case, self.tolerance)
            for accepted in self.any_of
        )


@dataclass(frozen=True)
class ExpectedCall:
    """A call that is to be made.

    Attributes:
        name: Of the function, without ``functions.`` before it.
        arguments: How each argument is compared; ``None``: they are not looked at.
    """

    name: str
    arguments: tuple[tuple[str, Match], ...] | None

    def differs(self, call: Call) -> str | None:
        """Return what is wrong with a call; ``None``: nothing is."""
        if call.name.removeprefix("functions.") != self.name:
            return f"calls {shown(call.name)} where {self.name} is expected"
        if self.arguments is None:
            return None
        values = _parsed(call)
        if isinstance(values, str):
            return f"{self.name}: {values}"
        expected = dict(self.arguments)
        for name, match in expected.items():
            if name not in values:
                if not match.optional:
                    return f"{self.name}: the argument {shown(name)} is missing"
            elif not match.takes(values[name]):
                return f"{self.name}: {name} is {_short(values[name])}"
        unknown = next((name for name in values if name not in expected), None)
        return None if unknown is None else f"{self.name}: unexpected argument {shown(unknown)}"


@dataclass(frozen=True)
class Calls:
    """Passes when exactly the expected calls were made.

    Attributes:
        calls: What is to be called; empty: nothing.
        ordered: Whether their order counts.
        some: Whether some of them are enough; in order: the first ones.
    """

    calls: tuple[ExpectedCall, ...]
    ordered: bool = False
    some: bool = False

    kind: ClassVar[str] = "calls"
    seconds: ClassVar[float] = 0.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        between = " or " if self.some else "; "
        return between.join(_spelled(call) for call in self.calls) or "no call"

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Compare the calls."""
        names = ", ".join(call.name for call in given.calls[:8]) or None
        if not self.calls:
            if given.calls:
                return Verdict(False, f"calls {names}, where no tool is to be called", names)
            said = given.final is not None
            return Verdict(said, None if said else "neither a call nor an answer")
        if len(given.calls) > MOST_CALLS:
            return Verdict(False, f"makes {len(given.calls):,} calls", names)
        if not given.calls:
            return Verdict(False, "calls no tool")
        wrong = self._in_order(given.calls) if self.ordered else self._in_any_order(given.calls)
        enough = len(given.calls) <= len(self.calls) if self.some else False
        if wrong is None and not enough and len(given.calls) != len(self.calls):
            wrong = f"makes {len(given.calls)} calls where {len(self.calls)} are expected"
        return Verdict(wrong is None, wrong, names)

    def _in_order(self, made: Sequence[Call]) -> str | None:
        pairs = zip(self.calls, made, strict=False)
        return next((wrong for own, call in pairs if (wrong := own.differs(call))), None)

    def _in_any_order(self, made: Sequence[Call]) -> str | None:
        """Return what is wrong with the first call without a partner; a best assignment decides.

        The side that has to be placed in full is the expected calls, or with ``some`` those made.
        """
        differ = [[own.differs(call) for call in made] for own in self.calls]
        if not self.some:
            placed = _assigned([[wrong is None for wrong in row] for row in differ])
            for own, partner in enumerate(placed):
                if partner is None:
                    free = [n for n in range(len(made)) if n not in placed]
                    same = [
                        n for n in free if differ[own][n] and made[n].name == self.calls[own].name
                    ]
                    nearest = next(iter([*same, *free]), None)
                    missing = f"does not call {self.calls[own].name}"
                    return missing if nearest is None else differ[own][nearest]
            return None
        placed = _assigned([[row[n] is None for row in differ] for n in range(len(made))])
        lost = next((n for n, partner in enumerate(placed) if partner is None), None)
        if lost is None:
            return None
        near = [
            row[lost]
            for own, row in zip(self.calls, differ, strict=True)
            if own.name == made[lost].name and row[lost]
        ]
        return near[0] if near else f"calls {shown(made[lost].name)}, which is not expected so"


def _assigned(fits: list[list[bool]]) -> list[int | None]:
    """Return for each row a column of its own that fits it; ``None`` where none is left."""
    row_of: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in row_of or place(row_of[column], tried):
                    row_of[column] = row
                    return True
        return False

    for row in range(len(fits)):
        place(row, set())
    column_of = {row: column for column, row in row_of.items()}
    return [column_of.get(row) for row in range(len(fits))]


def read_calls(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Calls:
    """Return the grader of the calls under ``calls``, of the row or of the grader's settings.

    Raises:
        DataError: They cannot be compared with.
    """
    refuse_unknown(settings, ("calls", "ordered", "match"), source, Calls.kind)
    listed = take_listed(settings.get("calls", row.get("calls")), source, "calls")
    if not isinstance(listed, list) or len(listed) > MOST_CALLS:
        raise DataError(
            f"{source}: calls is {shown(listed)}; grader calls expects a list of at most "
            f'{MOST_CALLS} objects like {{"name": "f", "arguments": {{...}}}}, [] for no call'
        )
    calls = tuple(read_expected_call(call, source, f"calls[{n}]") for n, call in enumerate(listed))
    some = take_choice(settings, "match", ("all", "any"), source, "grader calls") == "any"
    if some and not calls:
        raise DataError(
            f"{source}: match is 'any', but calls names none; give one, or remove match"
        )
    return Calls(calls, take_flag(settings, "ordered", source, "grader calls"), some)


def calls_of(messages: Iterable[Message]) -> Calls:
    """Return the grader that expects the first calls of a turn: those before any result.

    A model stops at its call, so what it would call once it knew the result is not asked for. A
    turn that calls nothing expects no call. Code for the tool ``python`` may be any.

    Args:
        messages: An assistant's turn, with the results of its calls.

    Raises:
        DataError: The arguments of a call are not a JSON object.
    """
    calls: list[ExpectedCall] = []
    for message in messages:
        if message.header.role == "tool" and calls:
            break
        if message.is_call:
            name = (message.header.recipient or "").removeprefix("functions.")
            calls.append(_expected(name, message.text))
    return Calls(tuple(calls))


def _expected(name: str, text: str) -> ExpectedCall:
    if name in _CODE_TOOLS:
        return ExpectedCall(name, None)
    values = _parsed(Call(name, text))
    if isinstance(values, str):
        raise DataError(f"the call of {name} in the row's own answer cannot be compared: {values}")
    return ExpectedCall(name, tuple((key, Match((_text(v),))) for key, v in values.items()))


def read_expected_call(call: Any, source: str, what: str) -> ExpectedCall:
    """Return a call with how its arguments are compared.

    Args:
        call: ``name``, ``arguments`` and ``match``.
        source: Place of its row.
        what: Its own, in the row.

    Raises:
        DataError: It cannot be compared with.
    """
    if not isinstance(call, dict):
        raise DataError(f'{source}: {what} is {shown(call)}; expected {{"name": ..., ...}}')
    unknown = sorted(call.keys() - {"name", "arguments", "match"})
    if unknown:
        raise DataError(
            f"{source}: {what} has the key {shown(unknown[0])}; expected name, arguments, match"
        )
    name = take_text(call.get("name"), source, f"{what}.name").removeprefix("functions.")
    values = call.get("arguments")
    if isinstance(values, str):
        values = parse_json(values, source, f"{what}.arguments")
    values = {} if values is None else values
    loose = call.get("match")
    loose = {} if loose is None else loose
    for key, value in (("arguments", values), ("match", loose)):
        if not isinstance(value, dict) or nested(value) > 60:
            raise DataError(
                f"{source}: {what}.{key} is {shown(value)}; expected an object, one entry an "
                "argument, not deeply nested"
            )
    if name in _CODE_TOOLS:
        if values or loose:
            raise DataError(
                f"{source}: {what} gives arguments for {name}, which takes code; leave them out: "
                "any code will do, and the grader code runs it"
            )
        return ExpectedCall(name, None)
    keys = [*values, *(key for key in loose if key not in values)]
    matches = [(key, _read_match(key, values, loose, source, f"{what}.match")) for key in keys]
    return ExpectedCall(name, tuple(matches))


def _read_match(
    key: str, values: dict[str, Any], loose: dict[str, Any], source: str, what: str
) -> Match:
    settings, what = loose.get(key, {}), f"{what}.{key}"
    if not isinstance(settings, dict):
        raise DataError(f"{source}: {what} is {shown(settings)}; expected an object")
    known = ("any_of", "optional", "anything", "ignore_case", "tolerance")
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise DataError(
            f"{source}: {what} has no setting {shown(unknown[0])}; expected {', '.join(known)}"
        )
    accepted = settings.get("any_of", [])
    if not isinstance(accepted, list) or len(accepted) > 100:
        raise DataError(f"{source}: {what}.any_of is {shown(accepted)}; expected a list of values")
    accepted = [*([values[key]] if key in values else []), *accepted]
    anything = take_flag(settings, "anything", source, what)
    if bool(accepted) == anything:
        raise DataError(
            f"{source}: {what} needs either a value in arguments or any_of, or anything: true"
        )
    return Match(
        tuple(_text(value) for value in accepted),
        optional=take_flag(settings, "optional", source, what),
        anything=anything,
        ignore_case=take_flag(settings, "ignore_case", source, what),
        tolerance=take_amount(settings, "tolerance", source, what),
    )


def _parsed(call: Call) -> dict[str, Any] | str:
    """Return the arguments of a call, or why they are none."""
    if len(call.arguments) > LONGEST_ANSWER:
        return f"the arguments have over {LONGEST_ANSWER:,} characters"
    try:
        values = strict_json.parse(call.arguments.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        return f"the arguments are not JSON ({error})"
    return values if isinstance(values, dict) else "the arguments are JSON, but no object"


def same_value(own: Any, value: Any, ignore_case: bool = False, tolerance: float = 0.0) -> bool:
    """Return whether two JSON values are equal: ``1`` and ``1.0`` are, ``1`` and ``true`` are not.

    Args:
        own: The right one.
        value: Another, nested at most as deeply as ``strict_json`` reads.
        ignore_case: Texts are compared case folded and with white space joined.
        tolerance: Largest difference of numbers.
    """
    if isinstance(own, bool) or isinstance(value, bool) or own is None or value is None:
        return own is value
    if isinstance(own, int | float) and isinstance(value, int | float):
        if own == value:
            return True
        if max(abs(own), abs(value)) > 1e300:
            return False
        return tolerance > 0 and abs(own - value) <= tolerance * (1 + math.ulp(1.0) * 4)
    if isinstance(own, str) and isinstance(value, str):
        return own == value or (ignore_case and _folded(own) == _folded(value))
    if isinstance(own, list) and isinstance(value, list):
        return len(own) == len(value) and all(
            same_value(a, b, ignore_case, tolerance) for a, b in zip(own, value, strict=True)
        )
    if isinstance(own, dict) and isinstance(value, dict):
        return own.keys() == value.keys() and all(
            same_value(a, value[key], ignore_case, tolerance) for key, a in own.items()
        )
    return False


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > _LARGEST_EXACT:
        return "a number"
    text = _text(value)
    return text if len(text) <= 60 else f"{text[:56]}..."


def _spelled(call: ExpectedCall) -> str:
    if call.arguments is None:
        return call.name
    parts = (f"{name}={' or '.join(match.any_of) or '...'}" for name, match in call.arguments)
    text = f"{call.name}({', '.join(parts)})"
    return text if len(text) <= 400 else f"{text[:396]}..."
