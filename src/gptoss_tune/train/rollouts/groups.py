"""Groups of episodes: which prompts a phase asks, with which seeds, and what a group says.

Which prompt stands at which place is a function of the run's seed alone, and how far a run has
come is one number in its checkpoints. A number of ranks, a stop or a resume changes neither.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptoss_tune.train.data.sampler import EpochSampler
from gptoss_tune.train.grpo.advantages import group_advantages, has_signal, overlong_penalty
from gptoss_tune.train.rollouts.played import Played

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.recipe.schema import GrpoSection


class PromptOrder:
    """The endless order of the prompts: one epoch after another, each in its own drawn order."""

    def __init__(self, size: int, seed: int) -> None:
        """Order ``size`` prompts."""
        self._epochs, self._size, self._seed = EpochSampler(size, seed=seed), size, seed
        self._known: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def task(self, place: int) -> int:
        """Return the number of the task at ``place``."""
        epoch, row = divmod(place, self._size)
        if self._known[0] != epoch:
            self._known = (epoch, self._epochs.indices(epoch))
        return int(self._known[1][row])

    def seed(self, place: int, index: int) -> int:
        """Return the seed of an episode, its own in the whole run: 0 to ``2**63 - 1``."""
        text = f"episode {self._seed} {place} {index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Group:
    """The episodes of one prompt.

    Attributes:
        place: Of the prompt in the run's order.
        episodes: In the order of their index.
    """

    place: int
    episodes: tuple[Played, ...]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which episodes are compared, ``[n]``: those of which the environment did not fail."""
        return np.array([one.ended != "error" for one in self.episodes], dtype=bool)

    def rewards(self, section: GrpoSection) -> NDArray[np.float64]:
        """Return ``[n]``, the rewards that are compared, with the penalty of overlong answers."""
        totals = np.array([one.rewards.total for one in self.episodes], dtype=np.float64)
        if section.overlong != "shaped":
            return totals
        lengths = np.array([one.longest_answer for one in self.episodes])
        longest, buffer = section.max_new_tokens, section.overlong_buffer
        return totals + overlong_penalty(lengths, longest=longest, buffer=buffer)

    def has_signal(self, section: GrpoSection) -> bool:
        """Return whether its rewards differ, without which it teaches nothing."""
        rewards = self.rewards(section)[self.counted]
        return len(rewards) > 1 and bool(has_signal(rewards[None])[0])

    def advantages(self, section: GrpoSection) -> NDArray[np.float64]:
        """Return ``[n]``; 0 for an episode that is not compared, or has nobody to be compared."""
        counted = self.counted
        found = np.zeros(len(counted))
        if counted.sum() > 1:
            rewards = self.rewards(section)[counted]
            found[counted] = group_advantages(rewards[None], scale_by_std=section.scale_by_std)[0]
        return found
