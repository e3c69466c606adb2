"""The last step of every reader: thoughts out of texts, calls against declarations, the order.

It works on the conversation, whatever format it came from, so that no format can leave it out.
"""

from __future__ import annotations

from typing import Any

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, check_structure
from gptoss_tune.harmony.declarations import declared_names
from gptoss_tune.harmony.fields import kind, parse_json
from gptoss_tune.harmony.formats.thinking_tags import note_tags, split_tags
from gptoss_tune.harmony.guards.policies import note_policy
from gptoss_tune.harmony.guards.rows import note_habits


def finish(conversation: Conversation, *, complete: bool) -> Conversation:
    """Return the conversation, checked; with ``thinking_tags: split`` its thoughts are messages.

    Raises:
        DataError: An order of messages that no server can produce, an answer of empty tags
            alone, or a call whose arguments are no JSON object.
    """
    if conversation.reading.thinking_tags == "split":
        conversation.messages = split_tags(conversation.messages, conversation.source)
    check_structure(conversation, complete=complete)
    note_tags(conversation)
    note_habits(conversation)
    note_policy(conversation)
    if conversation.namespaces:
        _note_undeclared_arguments(conversation)
    return conversation


def _note_undeclared_arguments(conversation: Conversation) -> None:
    declared: dict[str, dict[str, Any]] = {
        f"{namespace}.{tool['name']}": tool
        for namespace, content in conversation.namespaces.items()
        for tool in content["tools"]
    }
    for message in conversation.messages:
        tool = declared.get(message.header.recipient or "") if message.is_call else None
        if tool is None:
            continue
        at = conversation.source
        where = f"the call of {message.header.recipient!r}"
        arguments = parse_json(message.text, at, where)
        if not isinstance(arguments, dict):
            raise DataError(f"{at}: {where} is {kind(arguments)} in JSON; expected an object")
        if not arguments.keys() <= declared_names(tool.get("parameters")):
            conversation.notes.warnings[
                "a call uses arguments that the rendered declaration does not name; correct the "
                "declaration (preview shows it), or the call"
            ] += 1
