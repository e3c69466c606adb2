"""What all answers of a source show of a wrong habit: one text for all, or all cut at one length.

A model that generated the answers with a limit of tokens, or a script that cut them to a number of
characters, leaves many unfinished ones of exactly the largest length. Finished texts are of many
lengths, and fixed-size ones (a hash, a label) are short or the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.render import Example
from gptoss_tune.harmony.vocabulary import RETURN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.harmony.dataset.arrow import SampleFile

FEWEST_ANSWERS: Final = 10
"""Different rows from which on their answers are compared."""
ONE_TEXT: Final = 0.95
"""Share of the rows with the same answer from which on it is told."""
FEWEST_CUT: Final = 5
CUT_SHARE: Final = 0.01
"""Unfinished answers of the largest length, and their share, from which on they are told."""
_SHORTEST_CUT: Final = {"characters": 200, "tokens": 64}
_LAST_WORDS: Final = 40


class Answer(NamedTuple):
    """The last answer of a row.

    Attributes:
        key: Hash of its text; 0: the row ends without an answer.
        characters: Of its text; negative where it stops in the middle of a sentence.
        tokens: Likewise.
    """

    key: int
    characters: int
    tokens: int


NO_ANSWER: Final = Answer(0, 0, 0)


def answer_of(conversation: Conversation, example: Example) -> Answer:
    """Return the last answer of a conversation; ``example`` is the sample that ends in it."""
    last = conversation.messages[-1]
    # Without its end an answer was cut to data.max_length, and is not told by its length.
    if not last.is_final or example.input_ids[-1] != RETURN:
        return NO_ANSWER
    text = last.text.strip()
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    span = example.spans[-1]
    sign = -1 if _is_unfinished(text) else 1
    key = int.from_bytes(digest, "little") or 1
    return Answer(key, sign * len(last.text), sign * (span.end - span.body - 1))


def _is_unfinished(text: str) -> bool:
    """Whether a text stops after a letter or a comma, among words."""
    return (
        text[-1:] != "" and (text[-1].isalpha() or text[-1] == ",") and " " in text[-_LAST_WORDS:]
    )


class Places(NamedTuple):
    """What is wrong with some answers, and where they stand."""

    said: str
    places: list[str]
    of: int


def answer_habits(samples: SampleFile) -> Iterator[Places]:
    """Yield what the answers of a source teach, whole rows counted once each."""
    answered = np.flatnonzero(samples.answer_keys)
    # A row that is there twice says the same twice.
    answered = answered[np.unique(samples.row_keys[answered], return_index=True)[1]]
    answered.sort()
    if len(answered) < FEWEST_ANSWERS:
        return
    keys = samples.answer_keys[answered]
    known, counts = np.unique(keys, return_counts=True)
    if counts.max() >= ONE_TEXT * len(keys):
        same = answered[keys == known[counts.argmax()]]
        yield Places(
            "have the same answer: the model learns to give it whatever is asked; add other "
            "answers, or remove most of these rows",
            _places(samples, same),
            len(keys),
        )
        return
    for unit, lengths in (
        ("characters", samples.answer_characters),
        ("tokens", samples.answer_tokens),
    ):
        cut = _cut(lengths[answered], keys, _SHORTEST_CUT[unit])
        if cut.any():
            longest = int(-lengths[answered[cut]].max())
            yield Places(
                f"have an answer that stops in the middle of a sentence at {longest:,} {unit}, the "
                "most that any has: they were cut there, and the model learns to stop so; generate "
                "them with a larger limit, or remove them",
                _places(samples, answered[cut]),
                len(keys),
            )
            return


def _cut(lengths: NDArray[np.int32], keys: NDArray[np.uint64], shortest: int) -> NDArray[np.bool_]:
    """Return which answers are unfinished and of the largest length, none where few are."""
    longest = np.abs(lengths).max()
    cut = lengths == -longest
    enough = max(FEWEST_CUT, CUT_SHARE * len(lengths))
    if longest < shortest or len(np.unique(keys[cut])) < enough:
        return np.zeros_like(cut)
    return cut


def _places(samples: SampleFile, rows: NDArray[np.int64]) -> list[str]:
    return [samples.sources[row] for row in rows]
