"""The samples of an episode as it is played: ids as they were drawn, never rendered again.

A sample grows by what was sampled and by what stands between two answers. Where a user speaks
again, earlier thoughts go, and ``<|return|>`` becomes ``<|end|>``: there the next sample begins,
with what stays as its prompt. So every drawn token is trained once, under the id that was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptoss_tune.errors import MachineError
from gptoss_tune.harmony.render import CHANNEL_NUMBERS, NO_CHANNEL
from gptoss_tune.harmony.vocabulary import (
    CALL,
    CHANNEL,
    END,
    ENDOFTEXT,
    MESSAGE,
    ORDINARY_TOKENS,
    RETURN,
    Vocabulary,
)
from gptoss_tune.rollout.episode import EpisodeSample
from gptoss_tune.rollout.sampler import Sampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ENDS = (END, CALL, RETURN, ENDOFTEXT)


class SampleInProgress:
    """One sample while its episode goes on.

    Attributes:
        ids: So far.
        answered: Whether anything of it was sampled.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        """Begin with a prompt, up to and including ``<|start|>assistant``."""
        self.ids: list[int] = list(prompt)
        self.answered = False
        self._sampled = [False] * len(self.ids)
        self._logps = [0.0] * len(self.ids)
        self._channels = [NO_CHANNEL] * len(self.ids)
        self._choices: list[NDArray[np.uint8]] | None = []
        self._chosen = 0

    def add_answer(self, sampled: Sampled, channels: Sequence[int]) -> None:
        """Add what was sampled after the ids so far.

        Experts of tokens that an earlier answer's forward passes have seen stay those of that
        answer; the rest, which this answer's prefill was the first to see, are taken from it.

        Args:
            sampled: The answer.
            channels: Number of each of its tokens.

        Raises:
            MachineError: The sampler gave arrays that do not fit its tokens.
        """
        count, places = len(sampled.token_ids), len(self.ids) + len(sampled.token_ids) - 1
        if len(sampled.logps) != count:
            raise MachineError(
                f"the sampler gave {len(sampled.logps)} log-probabilities for {count} tokens"
            )
        if sampled.choices is None:
            self._choices = None
        elif len(sampled.choices) != places:
            raise MachineError(
                f"the sampler gave experts of {len(sampled.choices)} tokens, expected {places}: "
                "those of the prompt and of all sampled tokens but the last"
            )
        elif self._choices is not None:
            self._choices.append(np.asarray(sampled.choices[self._chosen :], dtype=np.uint8))
            self._chosen = places
        self.ids += sampled.token_ids
        self._sampled += [True] * count
        self._logps += map(float, sampled.logps)
        self._channels += channels
        self.answered = self.answered or count > 0

    def add_context(self, ids: Sequence[int]) -> None:
        """Add what the model did not write: a tool's message, and the next opening."""
        self.ids += ids
        self._sampled += [False] * len(ids)
        self._logps += [0.0] * len(ids)
        self._channels += [NO_CHANNEL] * len(ids)

    def finished(self) -> EpisodeSample:
        """Return the sample, up to its last sampled token."""
        length = len(self._sampled) - self._sampled[::-1].index(True)
        choices = None
        if self._choices:
            chosen = np.concatenate(self._choices)
            choices = np.concatenate([chosen, chosen[-1:]])
        return EpisodeSample(
            input_ids=np.array(self.ids[:length], dtype=np.int32),
            sampled=np.array(self._sampled[:length], dtype=np.bool_),
            logps=np.array(self._logps[:length], dtype=np.float32),
            channels=np.array(self._channels[:length], dtype=np.int8),
            choices=choices,
        )


def messages_of(token_ids: Sequence[int]) -> list[list[int]]:
    """Cut an answer's ids behind each token that ends a message; the last may have none."""
    found: list[list[int]] = [[]]
    for token in token_ids:
        found[-1].append(token)
        if token in _ENDS:
            found.append([])
    return found if found[-1] else found[:-1]


def channel_of(message: Sequence[int], vocabulary: Vocabulary) -> str | None:
    """Return the word behind ``<|channel|>`` in the header of one message; ``None`` without one."""
    header = list(message[: message.index(MESSAGE)]) if MESSAGE in message else list(message)
    if CHANNEL not in header:
        return None
    named = header[header.index(CHANNEL) + 1 :]
    stop = next((n for n, token in enumerate(named) if token >= ORDINARY_TOKENS), len(named))
    words = vocabulary.decode(named[:stop]).split()
    return words[0] if words else None


def channel_numbers(token_ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Return the channel's number of each token of an answer, also of one that is no harmony."""
    numbers: list[int] = []
    for message in messages_of(token_ids):
        number = CHANNEL_NUMBERS.get(channel_of(message, vocabulary) or "", NO_CHANNEL)
        numbers += [number] * len(message)
    return numbers
