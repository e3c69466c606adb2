"""Does the final answer say what the analysis came to? Told by the answer that the analysis names.

The last "the answer is X" of the analysis is read, and given to the question's own grader as if it
were the final answer; so is the final. They contradict each other where one of the two is right and
the other wrong and neither contains the other, or where both are one number or one letter, and not
the same. A second model as the judge was the alternative; it reads more and cannot be checked.

Limits. Only a chain of thought that names its answer in such words, in English, is looked at; one
that corrects itself without them is not. What is found is close to certain, what is not found may
be there.
"""

from __future__ import annotations

import re
from typing import Final

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.text import normalized

_NAMED: Final = re.compile(
    r"\b(?:final answer|correct answer|answer|result|choice|option)"
    r"(?: is| =|:| should be| must be| would be)\s*:?\s*(?=(?P<answer>[^\n]{1,120}))",
    re.IGNORECASE,
)
_CLAUSE: Final = re.compile(r"[.,;:?!\n]\s")
_END: Final = re.compile(r"(?<=[^0-9])[.;](?:\s|$)|(?<=[0-9])[.;](?:\s|$)|[,!?](?:\s|$)|\s[-–(]")
_SHORT: Final = re.compile(r"\(?([a-j])\)?|([-+]?[0-9]+(?:\.[0-9]+)?)")
_NEGATED: Final = re.compile(r"\b(?:not|n't|never|unless|if|maybe|perhaps|wrong|could)\b", re.I)


def named_answer(analysis: str) -> str | None:
    """Return the last answer that an analysis names; ``None`` where it names none for sure."""
    found = None
    for match in _NAMED.finditer(analysis):
        before = _CLAUSE.split(analysis[max(0, match.start() - 60) : match.start()])[-1]
        text = match["answer"].strip().strip("*$`\"'“”").strip()
        text = text[: end.start()] if (end := _END.search(text)) else text
        text = text.strip().rstrip(".").strip("*$`\"'“”").strip()
        doubted = _NEGATED.search(before) or _NEGATED.search(text)
        # A doubt takes back what was named before it, too.
        found = None if doubted or not text else text
    return found


def contradicts(grader: Grader, given: Given) -> bool | None:
    """Return whether the final answer is another than the analysis names; ``None``: not known.

    Args:
        grader: Of the question; it reads both.
        given: The answer, channels apart.
    """
    named = named_answer(given.analysis)
    if named is None or given.final is None or not given.final.strip():
        return None
    thought, said = normalized(named), normalized(given.final)
    short = [_SHORT.fullmatch(text) for text in (thought, said)]
    if short[0] and short[1] and short[0].lastindex == short[1].lastindex:
        return _value(short[0]) != _value(short[1])
    if _within(thought, said) or _within(said, thought):
        return False
    right = [grader.judge(Given(text), grader.seconds).passed for text in (named, given.final)]
    return right[0] != right[1]


def _value(match: re.Match[str]) -> str | float:
    return match[1] if match[1] is not None else float(match[2])


def _within(part: str, whole: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", whole) is not None
