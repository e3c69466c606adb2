r"""Compares two mathematical texts with math-verify; runs in the process that can be killed.

Nothing here hands a stranger's letters to ``eval``, which ``sympy.sympify`` and ``parse_expr`` do:
LaTeX goes through a grammar, and of plain text math-verify hands to ``parse_expr`` only runs of
digits and operators that its expression found. Plain text with letters (``sqrt(2)/2``, ``x**2``) is
rewritten into LaTeX here and takes the way through the grammar too.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

LONGEST: Final = 2_000
"""Characters of an expression."""
_LATEX: Final = (LatexExtractionConfig(boxed_match_priority=0),)
_PLAIN: Final = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
_FUNCTIONS: Final = "sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|sinh|cosh|tanh|min|max"
_RAISED: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_REWRITTEN: Final = (
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), lambda found: f"^{{{found[0].translate(_RAISED)}}}"),
    (re.compile(r"(?<![\d./])(\d+)\s+(\d+)/(\d+)(?![\d./])"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"\^\(([^()]{1,200})\)"), r"^{\1}"),
    (re.compile(r"\^(-?\d+)"), r"^{\1}"),
    (re.compile(r"(?:sqrt|√)\s?\(([^()]{1,200})\)"), r"\\sqrt{\1}"),
    (re.compile(r"√(\d+|[a-z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])|π"), r"\\pi "),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])|∞"), r"\\infty "),
    (re.compile(rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?=\s?\()"), r"\\\1"),
    (re.compile(r"<=|≤"), r"\\le "),
    (re.compile(r">=|≥"), r"\\ge "),
    (re.compile(r"!=|≠"), r"\\ne "),
    (re.compile(r"∪|(?<=[)\]])\s?U\s?(?=[(\[])"), r"\\cup "),
    (re.compile(r"∩"), r"\\cap "),
    (re.compile(r"∈"), r"\\in "),
    (re.compile(r"∅"), r"\\emptyset "),
    (re.compile(r"ℝ"), r"\\mathbb{R}"),
    (re.compile(r"×|·|(?<=[\d\w)])\s?\*\s?(?=[\d\w(\\])"), r"\\cdot "),
)


def warm_up() -> None:
    """Build what the grammar needs once, so that the first job is not the slow one."""
    logging.disable(logging.CRITICAL)
    judge({"right": ["x^2+\\frac{1}{2}"], "tries": [["x^2+0.5"]], "digits": 6})


def judge(task: dict[str, Any]) -> dict[str, Any]:
    """Return ``passed``, ``read`` and ``unread``.

    ``read`` is what was understood of the first text, ``unread`` the first that was not understood,
    ``None`` where there is none.

    Args:
        task: ``right``: accepted answers; ``tries``: alternatives, each a list of texts that must
            all be right; ``digits``: decimal places that count.
    """
    right = [parsed for text in task["right"] if (parsed := _read(text))]
    read: str | None = None
    unread: str | None = None
    for alternative in task["tries"]:
        passed = True
        for text in alternative:
            given = _read(text)
            if not given:
                unread = text if unread is None else unread
            elif read is None:
                read = _shown(given)
            passed = passed and any(_equal(own, given, task["digits"]) for own in right)
        if passed:
            return {"passed": True, "read": read, "unread": None}
    return {"passed": False, "read": read, "unread": unread}


def _equal(own: list[Any], given: list[Any], digits: int) -> bool:
    return verify(
        own, given, float_rounding=digits, allow_set_relation_comp=True, timeout_seconds=None
    )


def _read(text: str) -> list[Any]:
    """Return what a text means, as SymPy has it; nothing if it cannot be read."""
    text = text.strip()
    if not text or len(text) > LONGEST:
        return []
    has_latex = "$" in text or "\\(" in text or "\\[" in text
    latex = text if has_latex else f"${as_latex(text)}$"
    found = parse(latex, _LATEX, "no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not found and not has_latex:
        found = parse(text, _PLAIN, "no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return found


def as_latex(text: str) -> str:
    """Return plain mathematical text as LaTeX; LaTeX stays as it is."""
    if re.search(r"\\(?:frac|sqrt|left|cup|begin|text|pi|le|ge|in|infty|cdot|pm)", text):
        return text
    if text.startswith("{"):
        text = re.sub(r"(?<!\\)([{}])", r"\\\1", text)
    for pattern, instead in _REWRITTEN:
        text = pattern.sub(instead, text)
    return text


def _shown(found: list[Any]) -> str:
    text = str(found[0])
    return text if len(text) <= 120 else f"{text[:116]}..."
