"""Templates for rows whose columns have other names: the ``columns:`` of a recipe, from one row.

A row is known by its columns (``harmony/formats/detect.py``); where it is not, the usual names of a
question, an answer, a chain of thought and a judgement tell what was meant. Nothing is guessed from
what the texts say.
"""

from __future__ import annotations

from typing import Any, Final

_QUESTIONS: Final = (
    *("prompt", "instruction", "question", "query", "problem", "user", "input", "human"),
    *("user_input", "request", "ask"),
)
_ANSWERS: Final = (
    *("completion", "output", "answer", "response", "solution", "assistant", "target", "reply"),
    *("assistant_response", "model_output", "bot", "result"),
)
_THOUGHTS: Final = (
    *("thinking", "reasoning", "reasoning_content", "rationale", "thoughts", "thought"),
    *("cot", "chain_of_thought"),
)
_INSTRUCTIONS: Final = ("system", "system_prompt")
_JUDGEMENTS: Final = ("label", "kto_tag", "is_good", "good", "liked", "thumbs_up", "desirable")
_PAIRS: Final = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("accepted", "rejected"),
    ("winner", "loser"),
    ("good", "bad"),
    ("better", "worse"),
)
_CONVERSATIONS: Final = ("conversation", "dialogue", "dialog", "chat", "turns", "history")


def columns_for(row: dict[str, Any]) -> dict[str, str] | None:
    """Return templates for the columns of a row that no format knows; ``None`` where none fit.

    ``{"question": "2+2?", "answer": "4"}`` gives ``{"prompt": "{{ question }}", "completion":
    "{{ answer }}"}``.
    """
    listed = _first(row, _CONVERSATIONS, list)
    if listed is not None:
        return {"messages": f"{{{{ {listed} | tojson }}}}", **_beside(row)}
    asked = _first(row, _QUESTIONS, str)
    if asked is None:
        return None
    pair = next((both for both in _PAIRS if all(isinstance(row.get(k), str) for k in both)), None)
    if pair is not None:
        answers = {"chosen": f"{{{{ {pair[0]} }}}}", "rejected": f"{{{{ {pair[1]} }}}}"}
        return {"prompt": _question(row, asked), **answers, **_beside(row)}
    answer = _first(row, tuple(name for name in _ANSWERS if name != asked), str)
    if answer is None:
        return None
    found = {"prompt": _question(row, asked), "completion": f"{{{{ {answer} }}}}"}
    thought = _first(row, _THOUGHTS, str)
    if thought is not None:
        found["thinking"] = _or_nothing(thought)
    judged = next((n for n in _JUDGEMENTS if isinstance(row.get(n), bool | int)), None)
    if judged is not None:
        found["label"] = f"{{{{ {judged} | tojson }}}}"
    return found | _beside(row)


def _question(row: dict[str, Any], asked: str) -> str:
    """Return the template of a question; Alpaca's has an input below its instruction."""
    if asked == "instruction" and isinstance(row.get("input"), str):
        # A line feed is written by the template: a text of a recipe is one line.
        return r"{{ instruction }}{% if input | default('') %}{{ '\n\n' }}{{ input }}{% endif %}"
    return f"{{{{ {asked} }}}}"


def _beside(row: dict[str, Any]) -> dict[str, str]:
    found = {}
    system = _first(row, _INSTRUCTIONS, str)
    if system is not None:
        found["system"] = _or_nothing(system)
    if isinstance(row.get("tools"), list):
        found["tools"] = "{{ tools | default(none) | tojson }}"
    return found


def _or_nothing(column: str) -> str:
    return f"{{{{ {column} | default('') }}}}"


def _first(row: dict[str, Any], names: tuple[str, ...], kind: type) -> str | None:
    return next((name for name in names if isinstance(row.get(name), kind)), None)
