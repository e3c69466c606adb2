"""Templates of ``columns:`` for the rows that other tools call by a name: Alpaca's and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TEXT_COLUMNS: Final[dict[str, dict[str, str]]] = {
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output"},
    "alpaca_w_system": {
        **{"instruction": "instruction", "input": "input", "output": "output"},
        "system": "system",
    },
    "alpaca_w_system.load_open_orca": {
        **{"instruction": "question", "output": "response", "system": "system_prompt"},
    },
    "alpaca_chat.load_qa": {"instruction": "question", "output": "answer"},
    "alpaca_chat.load_camel_ai": {"instruction": "message_1", "output": "message_2"},
    "gpteacher": {"instruction": "instruction", "input": "input", "output": "response"},
    "oasst": {"instruction": "INSTRUCTION", "output": "RESPONSE"},
    "summarizetldr": {"instruction": "article", "output": "summary"},
    "context_qa": {"instruction": "article", "input": "question", "output": "answer"},
}
"""Columns of a question and its answer, by Axolotl's name of the set, the longest match first."""

_PAIR_COLUMNS: Final[dict[str, dict[str, str]]] = {
    "intel": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    "icr": {"prompt": "input", "chosen": "chosen", "rejected": "rejected"},
    "argilla": {
        **{"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    },
}
_LABEL_COLUMNS: Final[dict[str, dict[str, str]]] = {
    "intel": {"prompt": "question", "completion": "completion", "label": "label"},
    "argilla": {"prompt": "instruction", "completion": "completion", "label": "label"},
}


def text_columns(kind: str) -> dict[str, str] | None:
    """Return the columns of a set of questions and answers by Axolotl's name of it."""
    names = [name for name in TEXT_COLUMNS if kind == name or kind.startswith((f"{name}.", name))]
    return TEXT_COLUMNS[max(names, key=len)] if names else None


def preference_columns(kind: str, rows: str) -> dict[str, str] | None:
    """Return the columns of pairs or labels by what stands behind the dot of Axolotl's name.

    ``None``: as this project's own reader has them, ``prompt``, ``chosen``, ``rejected``.
    """
    found = _PAIR_COLUMNS if rows == "pair" else _LABEL_COLUMNS
    columns = found.get(kind.rpartition(".")[2])
    return None if columns is None else {**columns, "system": "system"}


def question_and_answer(columns: Mapping[str, str], joint: str = r"\n\n") -> dict[str, str]:
    """Return the templates of ``instruction``, ``input``, ``output`` and ``system`` columns."""
    asked = written(columns["instruction"])
    if columns.get("input"):
        # A line feed is written by the template: a text of a recipe is one line.
        inner = f"{{{{ '{joint}' }}}}{written(columns['input'])}"
        asked += f"{{% if {columns['input']} | default('') %}}{inner}{{% endif %}}"
    templates = {"prompt": asked, "completion": written(columns["output"])}
    return templates | system_of(columns)


def preference_templates(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the templates of ``prompt``, the answers or the label, and ``system``."""
    found = {
        name: written(column, as_json=name == "label")
        for name, column in columns.items()
        if name != "system"
    }
    return found | system_of(columns)


def system_of(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the template of a column of instructions, which a row may lack."""
    return {"system": optional(columns["system"])} if columns.get("system") else {}


def written(column: str, *, as_json: bool = False) -> str:
    """Return the template that writes a column, a list or an object as JSON."""
    return f"{{{{ {column}{' | tojson' if as_json else ''} }}}}"


def optional(column: str, *, as_json: bool = False) -> str:
    """Return the template of a column that rows may lack."""
    usual = "default(none) | tojson" if as_json else "default('')"
    return f"{{{{ {column} | {usual} }}}}"


def constant(text: str) -> str:
    """Return the template that writes a text as it is."""
    quoted = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"{{{{ '{quoted}' }}}}"
