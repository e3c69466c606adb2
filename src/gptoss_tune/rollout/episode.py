"""A played episode, and the samples that are trained of it.

Sampled ids are kept as they are and never rendered again. Harmony drops earlier thoughts when a
user speaks again, so what stood before an answer differs from turn to turn: an episode becomes one
sample for each stretch in which nothing was dropped, and all share its advantage.

N tokens of a sample, L layers, K experts of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptoss_tune.environments.environment import Outcome, Rewards

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class EpisodeSample:
    """One row to train on.

    Attributes:
        input_ids: ``[N]`` int32: prompts, answers and results of tools, as the model saw them.
        sampled: ``[N]`` bool, whether the model drew the token.
        logps: ``[N]`` fp32, the sampler's log-probability of each drawn token, else 0.
        channels: ``[N]`` int8, numbers of ``harmony.conversation.CHANNEL_NAMES``.
        choices: ``[N, L, K]`` uint8, the sampler's experts (the last token, which nothing follows,
            has those of the one before); ``None`` where it did not tell.
    """

    input_ids: NDArray[np.int32]
    sampled: NDArray[np.bool_]
    logps: NDArray[np.float32]
    channels: NDArray[np.int8]
    choices: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Episode:
    """One episode that is over.

    Attributes:
        task: Number of its task in the split.
        source: ``file:line`` of it.
        index: Its place in the group.
        samples: What is trained of it, in order.
        outcome: What happened.
        rewards: What it earned.
        messages: All of it for people: role, channel, recipient, content.
        version: Of the weights that played it.
        seconds: How long it took.
    """

    task: int
    source: str
    index: int
    samples: tuple[EpisodeSample, ...]
    outcome: Outcome
    rewards: Rewards
    messages: tuple[dict[str, str | None], ...]
    version: int
    seconds: float

    @property
    def cut_off(self) -> bool:
        """Whether a limit ended it."""
        return self.outcome.ended in ("length", "turns", "tokens", "time")
