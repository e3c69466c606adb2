"""What a run's rollouts came to: figures of a line of metrics, and counts kept in checkpoints.

Every rank has all episodes, so nothing is summed over ranks. Where the prompts of the next phase
begin stands in the checkpoint too (``rollouts.json``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.run.record import update_record
from gptoss_tune.train.observers.observer import LogLine, StepObserver
from gptoss_tune.train.rollouts.phase import Phase

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import GrpoSection

_TOTALS = ("episodes", "tokens", "tool_calls", "failed_calls", "failed_rewards", "prompts")


class RolloutObserver(StepObserver):
    """Counts the episodes of a run.

    Attributes:
        cursor: Place of the next phase's first prompt.
    """

    file = "rollouts.json"
    kept = "count of episodes"

    def __init__(
        self,
        section: GrpoSection,
        run: Path,
        facts: dict[str, Any],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin at the first prompt.

        Args:
            section: The recipe's method.
            run: The run's folder.
            facts: What ``run.json`` says of environment and sampler.
            close: Gives back what the sampler holds.
        """
        self.cursor = 0
        self._section, self._run, self._facts, self._close = section, run, facts, close
        self._totals: Counter[str] = Counter(dict.fromkeys(_TOTALS, 0))
        self._failed: Counter[str] = Counter()
        self._held_out: dict[str, int] = {}
        self._since_log: list[Phase] = []

    def note(self, phase: Phase) -> None:
        """Count a phase that is over."""
        episodes = [one for group in phase.played for one in group.episodes]
        failed = Counter(name for one in episodes for name in one.rewards.failed)
        self._failed.update(failed)
        self._totals.update(
            prompts=len(phase.played),
            episodes=len(episodes),
            tokens=sum(one.tokens for one in episodes),
            tool_calls=sum(one.tool_calls for one in episodes),
            failed_calls=sum(one.failed_calls for one in episodes),
            failed_rewards=failed.total(),
        )
        self.cursor = phase.cursor
        self._since_log.append(phase)

    def note_held_out(self, step: int, figures: Mapping[str, float], *, write: bool) -> None:
        """Keep what failed in the newest evaluation, and write it down: a run may end with one.

        Args:
            step: Whose weights played.
            figures: Of ``held_out_figures``; none without prompts.
            write: Whether this rank writes the record.
        """
        if not figures:
            return
        self._held_out = {"step": step, "failed_rewards": int(figures["failed_rewards"])}
        if write:
            update_record(self._run, rollouts=self._record())

    def figures(self, line: LogLine) -> dict[str, float]:
        """Return the means over the episodes since the last line, if a phase ended since."""
        phases, section = self._since_log, self._section
        groups = [group for phase in phases for group in phase.played]
        episodes = [one for group in groups for one in group.episodes]
        if not episodes:
            return {}
        count = len(episodes)
        names = sorted({name for one in episodes for name in one.rewards.components})
        spread = [float(np.std([one.rewards.total for one in group.episodes])) for group in groups]
        seconds = sum(phase.seconds for phase in phases)
        tokens = sum(one.tokens for one in episodes)
        kept = sum(len(phase.groups) for phase in phases)
        return {
            "reward": sum(one.rewards.total for one in episodes) / count,
            **{
                f"reward_{name}": sum(one.rewards.components.get(name, 0.0) for one in episodes)
                / count
                for name in names
            },
            "reward_std": sum(spread) / len(spread),
            "groups_without_signal": sum(not g.has_signal(section) for g in groups) / len(groups),
            "resampled": float(len(groups) - kept),
            "episode_tokens": tokens / count,
            "cut_off_share": sum(one.cut_off for one in episodes) / count,
            "tool_calls": sum(one.tool_calls for one in episodes) / count,
            "failed_calls": sum(one.failed_calls for one in episodes) / count,
            "failed_rewards": float(sum(len(one.rewards.failed) for one in episodes)),
            "rollout_seconds": seconds,
            "rollout_tokens_per_second": tokens / max(seconds, 1e-9),
            "rollouts_per_second": count / max(seconds, 1e-9),
        }

    def after_log(self, line: LogLine) -> None:
        """Begin the next line."""
        self._since_log = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write down what plays."""
        if state.is_world_process_zero:
            update_record(self._run, rollouts=self._record())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the counts into the run's record."""
        if state.is_world_process_zero:
            update_record(self._run, rollouts=self._record())

    def _record(self) -> dict[str, Any]:
        found = {**self._facts, **self._totals, "failed_by_component": dict(self._failed)}
        return found | ({"held_out": self._held_out} if self._held_out else {})

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the cursor, for a checkpoint."""
        return {
            "cursor": self.cursor,
            "totals": dict(self._totals),
            "failed": dict(self._failed),
            "held_out": self._held_out,
        }

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Go on from a checkpoint's counts.

        Raises:
            KeyError, TypeError, ValueError: It holds none.
        """
        self.cursor = int(state["cursor"])
        if self.cursor < 0:
            raise ValueError(f"cursor is {self.cursor}")
        self._totals = Counter({name: int(state["totals"][name]) for name in _TOTALS})
        self._failed = Counter({str(name): int(n) for name, n in state["failed"].items()})
        self._held_out = {str(name): int(n) for name, n in state.get("held_out", {}).items()}

    def close(self) -> None:
        """Give back what the sampler holds."""
        self._close()
