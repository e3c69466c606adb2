"""A question as the messages of a chat API, from the conversation that its ids were rendered from.

The way back is the proof: what is made here is read by the reader of training and rendered again,
and must give the very ids that models in process are asked with. A question for which it does not
cannot be put to a server, and is refused instead of asked otherwise. Left to the server is what its
own template decides: above all the date, which is today's there.
"""

from __future__ import annotations

from typing import Any

from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.harmony.chat_fields import chat_fields
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.render import Renderer


def as_chat(question: Question, renderer: Renderer) -> dict[str, Any]:
    """Return the fields of a chat request that ask a question.

    ``messages``, ``reasoning_effort``, and ``tools`` and ``response_format`` where there are any.

    Args:
        question: What is asked.
        renderer: The one that made its ids.

    Raises:
        DataError: A chat API cannot be asked the same: built-in tools, or an order of messages that
            only harmony has.
    """
    conversation = question.conversation
    if conversation.builtin_tools:
        raise DataError(
            f"{question.source}: announces the built-in tools "
            f"{', '.join(conversation.builtin_tools)}, which a chat API has no field for; ask "
            "models in process, or leave the row out"
        )
    chat = chat_fields(conversation) | {"reasoning_effort": question.effort}
    try:
        again = renderer.render_prompt(read_prompt(chat, question.source))
    except DataError as error:
        raise _other_prompt(question, str(error)) from None
    if tuple(again) != question.prompt_ids:
        raise _other_prompt(question, "its messages read back give another prompt")
    return chat


def _other_prompt(question: Question, reason: str) -> DataError:
    return DataError(
        f"{question.source}: cannot be asked through a chat API as it is asked in process "
        f"({reason}); write it as chat messages, or compare models in process alone"
    )
