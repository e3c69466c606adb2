"""What the loop keeps of an episode: its samples, rewards and messages, as arrays and JSON.

An ``Episode`` holds objects of an environment, which no file of a run may: a run folder may come
from anyone, and what rebuilds objects runs code. So all that training, the ledger and people need
is taken over once, when an episode is over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_tune.environments.environment import EpisodeEnd, Rewards
from gptoss_tune.rollout.episode import Episode, EpisodeSample

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ARRAYS = ("input_ids", "sampled", "logps", "channels", "choices")
_FACTS = (
    *("task", "source", "index", "ended", "tokens", "longest_answer", "tool_calls"),
    *("failed_calls", "version", "seconds"),
)


@dataclass(frozen=True)
class Played:
    """One episode that is over.

    Attributes:
        task: Number of its task in the split.
        source: ``file:line`` of it.
        index: Its place in the group.
        samples: What is trained of it, in order.
        rewards: What it earned, finite numbers all of them.
        ended: Why it ended.
        faults: What was not harmony about it.
        messages: All of it for people.
        tokens: How many the model wrote.
        longest_answer: How many of them in its longest answer.
        tool_calls: Calls that it made.
        failed_calls: Those of them that were no use.
        version: Of the weights that played it.
        seconds: How long it took.
    """

    task: int
    source: str
    index: int
    samples: tuple[EpisodeSample, ...]
    rewards: Rewards
    ended: EpisodeEnd
    faults: tuple[str, ...]
    messages: tuple[dict[str, str | None], ...]
    tokens: int
    longest_answer: int
    tool_calls: int
    failed_calls: int
    version: int
    seconds: float

    @property
    def cut_off(self) -> bool:
        """Whether a limit ended it."""
        return self.ended in ("length", "turns", "tokens", "time")

    def line(self, **more: Any) -> str:
        """Return it as a line of ``RUN/rollouts/step-N.jsonl``, for people and the report."""
        facts = {
            **{name: getattr(self, name) for name in _FACTS},
            "faults": self.faults,
            "rewards": asdict(self.rewards),
            "messages": self.messages,
            **more,
        }
        return json.dumps(facts, ensure_ascii=False)


def played(episode: Episode) -> Played:
    """Return what is kept of ``episode``; a reward that is no finite number counts 0 as failed."""
    outcome = episode.outcome
    return Played(
        task=episode.task,
        source=episode.source,
        index=episode.index,
        samples=episode.samples,
        rewards=finite(episode.rewards),
        ended=outcome.ended,
        faults=tuple(outcome.faults),
        messages=tuple(episode.messages),
        tokens=int(outcome.tokens),
        longest_answer=max((_longest_run(sample.sampled) for sample in episode.samples), default=0),
        tool_calls=len(outcome.uses),
        failed_calls=sum(use.mistake is not None for use in outcome.uses),
        version=episode.version,
        seconds=episode.seconds,
    )


def finite(rewards: Rewards) -> Rewards:
    """Return ``rewards`` with 0 in the place of what is no finite number, which is a failure."""
    odd = {name: v for name, v in rewards.components.items() if not math.isfinite(v)}
    if not odd and math.isfinite(rewards.total):
        return rewards
    failed = {name: f"gave {value}, which is no finite number" for name, value in odd.items()}
    if not odd:
        failed = {"total": f"came to {rewards.total}, which is no finite number"}
    components = {name: 0.0 if name in odd else v for name, v in rewards.components.items()}
    return Rewards(0.0, components, {**rewards.failed, **failed})


def to_arrays(episodes: Sequence[Played]) -> tuple[dict[str, NDArray[Any]], str]:
    """Return arrays by ``episode.sample.name``, and the rest as JSON."""
    arrays: dict[str, NDArray[Any]] = {}
    facts = []
    for number, one in enumerate(episodes):
        for place, sample in enumerate(one.samples):
            for name in _ARRAYS:
                value = getattr(sample, name)
                if value is not None:
                    arrays[f"{number}.{place}.{name}"] = np.ascontiguousarray(value)
        facts.append(
            {
                **{name: getattr(one, name) for name in _FACTS},
                "samples": len(one.samples),
                "rewards": asdict(one.rewards),
                "faults": one.faults,
                "messages": one.messages,
            }
        )
    return arrays, json.dumps(facts, ensure_ascii=False)


def from_arrays(arrays: dict[str, NDArray[Any]], text: str) -> list[Played]:
    """Return the episodes of ``to_arrays``.

    Raises:
        KeyError, TypeError, ValueError: These are none.
    """
    found = []
    for number, facts in enumerate(json.loads(text)):
        samples = tuple(
            EpisodeSample(**{name: arrays.get(f"{number}.{place}.{name}") for name in _ARRAYS})  # pyright: ignore[reportArgumentType]
            for place in range(int(facts["samples"]))
        )
        if any(s.input_ids is None or len(s.input_ids) != len(s.logps) for s in samples):
            raise ValueError(f"episode {number} lacks tokens")
        found.append(
            Played(
                **{name: facts[name] for name in _FACTS},
                samples=samples,
                rewards=Rewards(**facts["rewards"]),
                faults=tuple(facts["faults"]),
                messages=tuple(facts["messages"]),
            )
        )
    return found


def _longest_run(sampled: NDArray[np.bool_]) -> int:
    return max((len(list(run)) for drawn, run in groupby(sampled.tolist()) if drawn), default=0)
