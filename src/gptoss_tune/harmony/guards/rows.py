"""What one row shows of a wrong habit: another model's template in its texts, blank answers.

Only what is certain is told. A marker such as ``[INST]`` in the text of a message is what the
template of another model puts around messages: the texts are a rendered prompt, not what was said.
Special tokens of gpt-oss itself are counted elsewhere (``count_special_text``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.reading import Notes

_MARKERS: Final = re.compile(
    r"<\|im_(?:start|end)\|>|<\|(?:start|end)_header_id\|>|<\|eot_id\|>|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<\|(?:user|assistant|system)\|>|<｜(?:User|Assistant)｜>"
    r"|^### (?:Instruction|Response):",
    re.MULTILINE,
)
"""Of ChatML, Llama, Mistral, Gemma, Phi and Zephyr, DeepSeek, Alpaca."""
_ANY_SIGN: Final = re.compile(r"[<\[]|^### ", re.MULTILINE)
_FEWEST_CHARACTERS: Final = 20
"""Of a system prompt that is looked for in the message of the user: shorter ones are words."""


def note_habits(conversation: Conversation) -> None:
    """Count what a conversation teaches that no server would want."""
    warnings = conversation.notes.warnings
    # A tool may bring any page.
    said = [message.text for message in conversation.messages if message.header.role != "tool"]
    note_traces([*said, conversation.instructions or ""], "a message", conversation.notes)
    if any(message.is_final and not message.text.strip() for message in conversation.messages):
        warnings["an answer is blank; add its text, or remove the row"] += 1
    asked = next((m.text for m in conversation.messages if m.header.role == "user"), "")
    system = (conversation.instructions or "").strip()
    if len(system) >= _FEWEST_CHARACTERS and system in asked:
        warnings[
            "the first message of the user repeats the system prompt; leave it out there, as "
            "servers do"
        ] += 1


def note_traces(texts: Iterable[str], what: str, notes: Notes) -> None:
    """Count the texts of a row that spell markers of another model's template.

    Args:
        texts: Of the row.
        what: What holds them, for the sentence.
        notes: Gets one sentence for the row.
    """
    for text in texts:
        if _ANY_SIGN.search(text) and (found := _MARKERS.search(text)):
            notes.warnings[
                f"{what} spells {found[0]!r}, a marker of another model's template, which is "
                "trained as text; write the messages without it, as rows of messages"
            ] += 1
            return
