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
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for found in _FENCE.finditer(text):
        if opened is None:
            opened = found
        elif found[1].startswith(opened[1]) and found[0].strip() == found[1]:
            blocks.append(_block(text, opened, found.start()))
            opened = None
    return blocks if opened is None else [*blocks, _block(text, opened, len(text))]


def _block(text: str, opened: re.Match[str], end: int) -> tuple[str, str]:
    return opened[2].lower(), textwrap.dedent(text[opened.end() + 1 : end])
