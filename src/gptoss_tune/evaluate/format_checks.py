"""Format checks of an answer: is it healthy harmony; each names what it found in one line.

The faults of tuned gpt-oss models that users report: thinking that is lost or never ends, a chain
of thought in the answer, channels that do not exist, calls of tools that nobody declared or with
arguments that are not JSON, no ``<|return|>``. A rule is a comparison on the tokens and texts of
one answer; a second model as the judge was the alternative: it is not there in the middle of a
training run, and its verdicts change with its version.

Limits. A loop is found when the very same tokens repeat, not when the same idea does. A chain of
thought in the final channel is found by its markers, by its usual first words, or when the final
text repeats most of the analysis word for word; one that was reworded is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from gptoss_tune.evaluate.parse import Answer, Said
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.harmony.conversation import BUILTIN_TOOLS, CHANNELS

LONGEST_PERIOD: Final = 64
"""Longest loop that is looked for, in tokens."""
FEWEST_REPEATED: Final = 60
"""Tokens that a loop must cover, and four turns of it at least: a table's rule is shorter."""
FEWEST_COPIED: Final = 20
"""Words in a row that the final text must share with the analysis to be a copy of it."""
SHARE_COPIED: Final = 0.6
"""Share of the analysis that such a run must be: quoting a draft of the answer is no copy."""

_MARKERS = re.compile(
    r"<\|[a-z_]+\|>|</?think(?:ing)?>|\bassistant ?(?:final|analysis|commentary)\b"
    r"|^(?:analysis|commentary)(?=[A-Z:]|$)",
    re.MULTILINE,
)
_THINKING_ALOUD = re.compile(
    r"(?:the user (?:asks|is asking|asked (?:me|us|for|to)|wants|says|said)\b"
    r"|(?:let me|let['’]s) think\b"
    r"|(?:okay|ok|alright|hmm),? (?:so,? )?"
    r"(?:the user|(?:let me|let['’]s) (?:think|see)|i need to)\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")


def problems(answer: Answer, question: Question, max_analysis_tokens: int | None) -> list[str]:
    """Return what is wrong with an answer, one line each; empty for a healthy one.

    Args:
        answer: As read.
        question: What was asked; it says which tools may be called.
        max_analysis_tokens: A longer chain of thought is runaway; ``None``: only a loop is.
    """
    return format_faults(answer, question.recipients, max_analysis_tokens)


def format_faults(
    answer: Answer, recipients: frozenset[str], max_analysis_tokens: int | None = None
) -> list[str]:
    """Return ``problems`` of an answer that may call ``recipients``."""
    return [
        *answer.faults,
        *_structure(answer),
        *_thinking(answer, max_analysis_tokens),
        *_leaks(answer),
        *_calls(answer, recipients),
    ]


def _structure(answer: Answer) -> list[str]:
    found = []
    for said in answer.messages:
        if said.channel is not None and said.channel not in CHANNELS:
            found.append(f"unknown channel {said.channel[:40]!r}")
    if answer.ended == "length":
        found.append(f"no end: neither <|return|> nor <|call|> in {len(answer.token_ids)} tokens")
    elif answer.ended == "endoftext":
        found.append("ends in <|endoftext|> instead of <|return|> or <|call|>")
    last = answer.messages[-1] if answer.messages else None
    if answer.ended == "return":
        if last is None or last.channel != "final":
            found.append(f"ends in <|return|> in channel {last.channel if last else None!r}")
        elif not last.content.strip():
            found.append("the final answer is empty")
    finals = [n for n, said in enumerate(answer.messages) if said.channel == "final"]
    if finals and finals[0] < len(answer.messages) - 1:
        found.append("goes on after its final answer")
    return found


def _thinking(answer: Answer, limit: int | None) -> list[str]:
    found = []
    if limit is not None and answer.analysis_tokens > limit:
        found.append(
            f"runaway analysis: {answer.analysis_tokens} tokens, the limit is {limit} "
            "(evaluation.max_analysis_tokens)"
        )
    for said in answer.messages:
        if (period := repeated_period(said.token_ids)) is not None:
            name = "runaway analysis" if said.channel == "analysis" else "runaway text"
            tokens = "token repeats" if period == 1 else "tokens repeat"
            found.append(f"{name}: the same {period} {tokens} without end")
    return found


def repeated_period(token_ids: Sequence[int]) -> int | None:
    """Return the length of a loop that the tokens are caught in somewhere; ``None`` for none."""
    ids = np.asarray(token_ids, dtype=np.int64)
    for period in range(1, min(LONGEST_PERIOD, len(ids) // 4) + 1):
        needed = max(FEWEST_REPEATED, 4 * period) - period
        equal = ids[period:] == ids[:-period]
        breaks = np.flatnonzero(~equal)
        edges = np.concatenate(([-1], breaks, [len(equal)]))
        if int(np.diff(edges).max()) - 1 >= needed:
            return period
    return None


def _leaks(answer: Answer) -> list[str]:
    final = answer.final
    if not final:
        return []
    found = []
    if marker := _MARKERS.search(final):
        found.append(f"chain of thought in the final channel: the marker {marker[0]!r}")
    if aloud := _THINKING_ALOUD.match(final.lstrip()):
        found.append(f"chain of thought in the final channel: it begins {aloud[0]!r}")
    thought = " ".join(s.content for s in answer.messages if s.channel == "analysis")
    words = [word.lower() for word in _WORD.findall(thought)]
    copied = _longest_shared(words, [word.lower() for word in _WORD.findall(final)])
    if copied >= FEWEST_COPIED and copied >= SHARE_COPIED * len(words):
        found.append(
            f"chain of thought in the final channel: {copied} of its {len(words)} words repeated"
        )
    return found


def _longest_shared(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest run of words that both hold."""
    numbers = {word: n for n, word in enumerate(dict.fromkeys(left))}
    longer = np.array([numbers.get(word, -1) for word in right], dtype=np.int64)
    runs = np.zeros(len(longer) + 1, dtype=np.int64)
    best = 0
    for word in left:
        runs[1:] = np.where(longer == numbers[word], runs[:-1] + 1, 0)
        best = max(best, int(runs.max()))
    return best


def _calls(answer: Answer, recipients: frozenset[str]) -> list[str]:
    found = []
    for said in answer.messages:
        if said.recipient is not None:
            found += _call(said, recipients)
    last = answer.messages[-1] if answer.messages else None
    called = last is not None and last.recipient is not None
    if answer.ended == "call" and not called:
        found.append("ends in <|call|> without a recipient")
    if answer.ended != "call" and called and answer.ended != "length":
        found.append("a call that does not end in <|call|>")
    if any(said.recipient is not None for said in answer.messages[:-1]):
        found.append("goes on after a call instead of waiting for its result")
    return found


def _call(said: Said, recipients: frozenset[str]) -> list[str]:
    recipient = said.recipient or ""
    found = []
    if recipient not in recipients:
        known = ", ".join(sorted(recipients)) or "none"
        found.append(f"calls the unknown tool {recipient[:60]!r} (declared: {known})")
    builtin = recipient.split(".")[0] in BUILTIN_TOOLS
    if said.channel != "commentary" and not (builtin and said.channel == "analysis"):
        found.append(f"a call in channel {said.channel!r}; calls belong in 'commentary'")
    if recipient == "python":
        return found  # its argument is code, not JSON
    try:
        arguments = json.loads(said.content)
    except (ValueError, RecursionError):
        found.append(f"arguments of {recipient[:60]!r} are not JSON")
    else:
        if not isinstance(arguments, dict):
            found.append(f"arguments of {recipient[:60]!r} are JSON, but no object")
    return found
