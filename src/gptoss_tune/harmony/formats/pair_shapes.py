"""The published shapes of preference rows -> prompt and two answers, not read yet.

| columns | known from |
|---|---|
| ``prompt``, ``chosen``, ``rejected`` | TRL; UltraFeedback, whose answers repeat the prompt |
| ``chosen``, ``rejected`` | whole conversations, also as text: Anthropic's HH |
| ``conversations`` or ``messages``, ``chosen``, ``rejected`` | ShareGPT-like sets |
| ``input``, ``preferred_output``, ``non_preferred_output`` | OpenAI's preference fine-tuning |
| ``context``, ``response1``, ``response2``, ``overall_preference`` | HelpSteer3, Nemotron |

Columns that such sets have beside these and that say nothing to a loss (``score_chosen``,
``prompt_id``) are passed over; any other is a key that is not read, and counted as such.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import kind, shown, take_listed
from gptoss_tune.harmony.formats.answers import Piece, take_piece
from gptoss_tune.harmony.formats.detect import PAIRS
from gptoss_tune.harmony.reading import THINKING

_STRONGEST: Final = 3
"""Largest ``overall_preference``, for the second answer; the first has its negative."""
_PASSED_OVER: Final = {
    "preference": ("prompt_id", "score_chosen", "score_rejected"),
    "openai_preference": ("parallel_tool_calls",),
    "comparison": ("domain", "language", "individual_preference"),
}


class Pair(NamedTuple):
    """A preference row, its answers in order.

    Attributes:
        prompt: None when each answer is a whole conversation.
        chosen: The better answer.
        rejected: The worse one.
        beside: Every other column of the row.
        tie: Whether neither is better.
        unread: Columns of messages that are neither the prompt nor an answer.
    """

    prompt: Piece | None
    chosen: Piece
    rejected: Piece
    beside: dict[str, Any]
    tie: bool = False
    unread: tuple[str, ...] = ()


def take_pair(row: dict[str, Any], name: str, at: str) -> Pair:
    """Return the prompt and the two answers of a row.

    Args:
        row: The parsed row.
        name: Its format, of ``PAIRS``.
        at: ``file:line``.

    Raises:
        DataError: A column holds something else than its shape has.
    """
    passed_over = _PASSED_OVER[name]
    row = {key: value for key, value in row.items() if value is not None}
    if name == "openai_preference":
        row = _unpacked(row, at)
    beside = {key: value for key, value in row.items() if key not in passed_over}
    first, second = PAIRS[name]
    values = {key: beside.pop(key) for key in (first, second)}
    tie, chosen, rejected = False, first, second
    if name == "comparison":
        tie, chosen, rejected = _ordered(beside.pop("overall_preference", None), at)
        prompt = _context(beside, at)
    elif name == "openai_preference":
        prompt = take_piece(beside.pop("messages"), "user", "input.messages", at)
    else:
        prompt = _prompt(beside, values, at)
    # Else the messages that are read would silently take the place of these.
    unread = [key for key in ("messages", "conversations", "prompt") if beside.pop(key, None)]
    answers = {key: take_piece(value, "assistant", key, at) for key, value in values.items()}
    _give_thoughts(answers, beside, at)
    return Pair(prompt, answers[chosen], answers[rejected], beside, tie, tuple(unread))


def _unpacked(row: dict[str, Any], at: str) -> dict[str, Any]:
    """Return a row of OpenAI's with the columns of its ``input`` beside the answers."""
    held = take_listed(row.get("input"), at, "input")
    if not isinstance(held, dict):
        raise DataError(
            f'{at}: input is {kind(held)}; expected {{"messages": [...], "tools": ...}}'
        )
    held = {key: value for key, value in held.items() if value is not None}
    if not held.get("messages"):
        raise DataError(f"{at}: input has no messages; add the question")
    twice = [key for key in held if key in row and row[key] != held[key]]
    if twice:
        raise DataError(
            f"{at}: {shown(twice[0])} stands in input and beside it, and they differ; keep one"
        )
    rest = {key: value for key, value in row.items() if key != "input"}
    lists = ("messages", *PAIRS["openai_preference"])
    return {k: _listed(v, at, k) if k in lists else v for k, v in {**rest, **held}.items()}


def _listed(value: object, at: str, name: str) -> object:
    """Return a list that a table had to hold as JSON text; any other text stays text."""
    is_list = isinstance(value, str) and value.lstrip().startswith("[")
    return take_listed(value, at, name) if is_list else value


def _prompt(beside: dict[str, Any], values: dict[str, Any], at: str) -> Piece | None:
    """Take the column that holds the prompt, and one that repeats a whole conversation."""
    for key in ("conversations", "messages"):
        if key in beside:
            beside[key] = take_listed(beside[key], at, key)
    prompt = beside.pop("prompt", None)
    known = [value for value in values.values() if isinstance(value, list)]
    if isinstance(prompt, list):
        known.append(prompt)
        known += [
            [*prompt, *(answer if isinstance(answer, list) else [answer])]
            for answer in values.values()
        ]
    held = [key for key in ("conversations", "messages") if beside.get(key)]
    for key in held:
        if beside[key] in known:  # sets write the chosen conversation a second time, as messages
            del beside[key]
    held = [key for key in held if key in beside]
    if prompt is not None:
        return take_piece(prompt, "user", "prompt", at)
    if len(held) > 1:
        raise DataError(
            f"{at}: the row has {' and '.join(held)} beside its answers, and no prompt; keep one"
        )
    return take_piece(beside.pop(held[0]), "user", held[0], at) if held else None


def _context(beside: dict[str, Any], at: str) -> Piece:
    """Take what two compared responses answer to."""
    key = "context" if "context" in beside else "prompt"
    value = _listed(beside.pop(key, None), at, key)
    if value is None:
        raise DataError(f"{at}: the row has no context; add what the responses answer to")
    return take_piece(value, "user", key, at)


def _ordered(value: object, at: str) -> tuple[bool, str, str]:
    """Return whether two responses are a tie, and the columns of the better and the worse one."""
    first, second = PAIRS["comparison"]
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(number, int) or isinstance(number, bool) or abs(number) > _STRONGEST:
        raise DataError(
            f"{at}: overall_preference is {shown(value)}; expected a whole number from "
            f"-{_STRONGEST} ({first} is better) to {_STRONGEST} ({second} is better)"
        )
    return (number == 0, second, first) if number > 0 else (number == 0, first, second)


def _give_thoughts(answers: dict[str, Piece], beside: dict[str, Any], at: str) -> None:
    """Put the thoughts that stand in columns of their own before answers of text.

    ``chosen_thinking`` is one answer's; ``thinking`` stands before both, when both are text.
    """
    shared = [key for key in THINKING if key in beside]
    for name, piece in answers.items():
        if not piece.is_text:
            continue
        own = [key for key in THINKING if f"{name}_{key}" in beside]
        if own and shared:
            raise DataError(
                f"{at}: the row has {shared[0]} and {name}_{own[0]}; keep one: the first stands "
                "before both answers, the other before its own"
            )
        piece.messages[0] |= {key: beside.pop(f"{name}_{key}") for key in own}
    if shared and all(piece.is_text for piece in answers.values()):
        thoughts = {key: beside.pop(key) for key in shared}
        for piece in answers.values():
            piece.messages[0] |= thoughts
