"""The keys of rows and messages, the same for every reader, and what a misspelled one may mean.

A key that no reader knows is counted with its likely meaning: a row is trained without what it
said. An empty value (null, ``""``, ``[]``, ``{}``) says nothing and is passed over.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import kind, shown, take_text, take_weight
from gptoss_tune.harmony.reading import SETTINGS, THINKING, WEIGHTS

_EVERY_MESSAGE: Final = frozenset(
    {"role", "content", "from", "value", *WEIGHTS, "author", "channel", "recipient", "content_type"}
)
_OF_ROLE: Final[dict[str, frozenset[str]]] = {
    "assistant": frozenset({*THINKING, "name", "tool_calls", "function_call", "refusal"}),
    "user": frozenset({"name"}),
    "tool": frozenset({"name", "tool_call_id"}),
    "function": frozenset({"name", "tool_call_id"}),
    "system": frozenset({"tools"}),
    "developer": frozenset({"tools"}),
}
_KNOWN_OF_ROLE: Final = {role: _EVERY_MESSAGE | keys for role, keys in _OF_ROLE.items()}

_MEANINGS: Final = {
    **dict.fromkeys(("thought", "thoughts", "think", "cot", "rationale", "analysis"), "thinking"),
    **dict.fromkeys(("chain_of_thought", "reasoning_text", "thinking_content"), "thinking"),
    **dict.fromkeys(("mask", "loss_mask", "loss_weight", "label"), "weight"),
    **dict.fromkeys(("trainable", "training", "train_on", "is_trained"), "train"),
    **dict.fromkeys(("instruction", "instructions", "system_prompt", "developer"), "system"),
    **dict.fromkeys(("effort", "thinking_effort"), "reasoning_effort"),
    **dict.fromkeys(("text", "message", "contents"), "content"),
    **dict.fromkeys(("calls", "function_calls"), "tool_calls"),
    "tool": "tools",
}


def note_row_keys(row: dict[str, Any], known: Iterable[str], conversation: Conversation) -> None:
    """Count the keys of a row that its reader does not take."""
    _note(row, _row_keys(*known), "a row", conversation)


@lru_cache(maxsize=64)
def _row_keys(*known: str) -> frozenset[str]:
    return SETTINGS.union(known)


def note_message_keys(message: dict[str, Any], role: str, conversation: Conversation) -> None:
    """Count the keys of a message that mean nothing for its role."""
    whose = "the tools" if role in ("tool", "function") else f"the {role}"
    _note(message, _KNOWN_OF_ROLE[role], f"a message of {whose}", conversation)


def _note(
    mapping: dict[str, Any], known: frozenset[str], what: str, conversation: Conversation
) -> None:
    if mapping.keys() <= known:
        return
    for key, value in mapping.items():  # in their order: that of a set is another in each process
        if key in known or value is None or (isinstance(value, str | list | dict) and not value):
            continue
        if key not in conversation.reading.ignored_keys:
            conversation.notes.warnings[_unread(key, what, known)] += 1


@lru_cache(maxsize=1024)
def _unread(key: str, what: str, known: frozenset[str]) -> str:
    said = f"the key {shown(key)} of {what} is not read"
    meant = _MEANINGS.get(key.lower())
    if meant not in known:
        meant = next(iter(difflib.get_close_matches(key.lower(), sorted(known), n=1)), None)
    if meant is not None:
        return f"{said}; did you mean {meant!r}?"
    return f"{said}; remove it, or name it in data.ignored_keys"


def take_message_weight(message: dict[str, Any], at: str, where: str) -> float:
    """Return the loss weight of a message, 1 where it names none.

    Raises:
        DataError: It is no weight, or two of its keys disagree.
    """
    said: dict[str, float] = {}
    if message.keys().isdisjoint(WEIGHTS):
        return 1.0
    for key in WEIGHTS:
        value = message.get(key)
        if value is not None:
            switch = key != "weight" and isinstance(value, bool)
            said[key] = float(value) if switch else take_weight(value, at, f"{where}.{key}")
    if len(set(said.values())) > 1:
        raise DataError(f"{at}: {where} has different weights in {' and '.join(said)}; keep one")
    return next(iter(said.values()), 1.0)


def note_weight_of_others(
    message: dict[str, Any], role: str, where: str, conversation: Conversation
) -> None:
    """Check the weight of a message that the model does not write; above 0 it has no effect.

    Raises:
        DataError: It is no weight.
    """
    if any(message.get(key) is not None for key in WEIGHTS) and take_message_weight(
        message, conversation.source, where
    ):
        conversation.notes.remarks[
            f"a message of role {role!r} has a weight above 0; only the assistant's are trained"
        ] += 1


def split_thinking_parts(
    message: dict[str, Any], at: str, where: str
) -> tuple[str, dict[str, Any]]:
    """Return the thinking of a message of the assistant, and the message without it.

    It stands in a key of its own, or in parts of the content before those of text.

    Raises:
        DataError: Two places say different things, one holds no text, or a part of thinking stands
            after one of text: it would be moved before it.
    """
    texts = {
        key: take_text(message[key], at, f"{where}.{key}")
        for key in THINKING
        if message.get(key) is not None
    }
    content = message.get("content")
    if isinstance(content, list) and any(map(_is_thinking_part, content)):
        parts = [part for part in content if _is_thinking_part(part)]
        rest = [part for part in content if not _is_thinking_part(part)]
        spoken = next((n for n, part in enumerate(content) if _says_something(part)), len(content))
        after = range(spoken, len(content))
        late = next((n for n in after if _is_thinking_part(content[n])), None)
        if late is not None:
            raise DataError(
                f"{at}: {where}.content[{late}] is thinking after text; gpt-oss thinks before it "
                "speaks: put that part first, or leave it out"
            )
        texts["content"] = "\n\n".join(
            _part_text(part, at, f"{where}.content[{content.index(part)}]") for part in parts
        )
        message = {**message, "content": rest or None}
    said = {text for text in texts.values() if text}
    if len(said) > 1:
        raise DataError(f"{at}: {where} has different texts in {' and '.join(texts)}; keep one")
    return said.pop() if said else "", message


_THINKING_PARTS: Final = ("thinking", "reasoning", "reasoning_text", "thought")


def _is_thinking_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in _THINKING_PARTS


def _says_something(part: object) -> bool:
    """Whether a part of the content is none of thinking and not blank."""
    if _is_thinking_part(part):
        return False
    text = part.get("text") if isinstance(part, dict) else part
    return not isinstance(text, str) or bool(text.strip())


def _part_text(part: dict[str, Any], at: str, where: str) -> str:
    keys = [key for key in (*_THINKING_PARTS, "text", "content") if part.get(key) is not None]
    if len(keys) != 1:
        raise DataError(
            f"{at}: {where} is a part of type {shown(part['type'])} with its text in "
            f"{' and '.join(keys) or 'no key'}; write it as 'thinking'"
        )
    value = part[keys[0]]
    if isinstance(value, list):
        if not all(isinstance(inner, dict) for inner in value):
            raise DataError(f"{at}: {where}.{keys[0]} is {kind(value)}; expected text parts")
        return "".join(
            take_text(inner.get("text"), at, f"{where}.{keys[0]}[{number}].text")
            for number, inner in enumerate(value)
        )
    return take_text(value, at, f"{where}.{keys[0]}")
