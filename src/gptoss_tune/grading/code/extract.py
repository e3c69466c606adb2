"""The code in an answer: its last Python block, or the whole of an answer without blocks.

A model likes to show a use of its function in a second block; so where a function is asked for, the
last block that defines it counts. A block that is still open at the end (an answer cut off) goes to
the end. Nothing is parsed as Python here: the parser is C code with a stack, and the text anyone's;
whether it is Python the sandbox finds out.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Final

_FENCE: Final = re.compile(r"^[ \t]{0,12}(`{3,}|~{3,})[ \t]*([\w+.-]{0,20})[^\n`]*$", re.MULTILINE)
_MOST_FENCES: Final = 1_000
"""Fences that may stand in one block."""
_PYTHON: Final = frozenset({"python", "py", "python3", "py3"})


@dataclass(frozen=True)
class Extracted:
    """Code of an answer.

    Attributes:
        code: Python, or what may be it.
        fenced: Whether it stood in a block; else it is the whole answer.
    """

    code: str
    fenced: bool


def code_of(text: str, entry_point: str | None = None) -> Extracted | None:
    """Return the code in a text; ``None`` where there is none.

    Args:
        text: Of the final channel.
        entry_point: A function that it is to define.
    """
    blocks = _blocks(text)
    python = [code for language, code in blocks if language in _PYTHON]
    python = python or [code for language, code in blocks if not language]
    if not blocks and text.strip():
        return Extracted(text, fenced=False)
    if entry_point is not None:
        python = [code for code in python if defines(code, entry_point)] or python
    return Extracted(python[-1], fenced=True) if python and python[-1].strip() else None


def assembled(code: str, prefix: str, entry_point: str | None) -> str:
    """Return a task's prefix and the code as one program.

    The prefix ends in a function's head and docstring, as HumanEval's prompts do, which is a whole
    function; code that defines it again replaces it, code that does not is its body.
    """
    if not prefix:
        return code
    if entry_point is None or defines(code, entry_point):
        return f"{prefix.rstrip()}\n\n\n{code}"
    first = next((line for line in code.splitlines() if line.strip()), "")
    body = code if first[:1] in (" ", "\t") else textwrap.indent(code, "    ")
    return f"{prefix.rstrip()}\n{body}"


def defines(code: str, name: str) -> bool:
    """Return whether a line without indentation defines a name: a function, a class or a value."""
    word = re.escape(name)
    return (
        re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{word}\b", code, re.MULTILINE)
        or re.search(rf"^{word}[ \t]*(?::[^=\n]*)?=(?!=)", code, re.MULTILINE)
    ) is not None


def _blocks(text: str) -> list[tuple[str, str]]:
    """Return language and content of each fenced block."""
    fences = list(_FENCE.finditer(text))
    blocks: list[tuple[str, str]] = []
    place = 0
    while place < len(fences):
        end = _closing(fences, place)
        until = len(text) if end is None else fences[end].start()
        blocks.append(_block(text, fences[place], until))
        place = len(fences) if end is None else end + 1
    return blocks


def _closing(fences: list[re.Match[str]], place: int) -> int | None:
    """Return the place of the fence that closes a block, if any does.

    One that is indented more than the block's own stands in a docstring, unless no other comes
    before the next block begins.
    """
    opened, loose = fences[place], None
    for n in range(place + 1, min(len(fences), place + 1 + _MOST_FENCES)):
        is_deeper = _indent(fences[n]) > _indent(opened)
        if fences[n][1].startswith(opened[1]) and fences[n][0].strip() == fences[n][1]:
            if not is_deeper:
                return n
            loose = n if loose is None else loose
        elif loose is not None and not is_deeper:
            break
    return loose


def _indent(fence: re.Match[str]) -> int:
    written = fence[0].expandtabs(4)
    return len(written) - len(written.lstrip())


def _block(text: str, opened: re.Match[str], end: int) -> tuple[str, str]:
    return opened[2].lower(), textwrap.dedent(text[opened.end() + 1 : end])
