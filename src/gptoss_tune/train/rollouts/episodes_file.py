"""``RUN/rollouts/step-N.jsonl``: the episodes of a step, a line each, for people and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptoss_tune.files.atomic import replacing
from gptoss_tune.run.folder import ROLLOUT, RunFolder
from gptoss_tune.train.rollouts.groups import Group

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_episodes(
    path: Path,
    split: Literal["train", "eval"],
    groups: Sequence[Group],
    advantages: Mapping[int, NDArray[np.float64]] | None = None,
) -> None:
    """Write the episodes of one split, whole or not at all; those of the other one stay.

    Args:
        path: Of the step.
        split: ``train``: played before the step; ``eval``: held out, played after it.
        groups: The episodes.
        advantages: ``[n]`` of the episodes of each group, by its place.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    others = [line for line in _lines(path) if json.loads(line).get("split") != split]
    with replacing(path) as file:
        for line in others:
            file.write(line + "\n")
        for group in groups:
            for number, episode in enumerate(group.episodes):
                more: dict[str, Any] = {"split": split, "group": group.place}
                if advantages is not None:
                    more["advantage"] = float(advantages[group.place][number])
                file.write(episode.line(**more) + "\n")


def forget_episodes(run: RunFolder, step: int) -> None:
    """Remove the episodes of steps past ``step``, which are about to be played again."""
    for path in run.rollouts.glob("*"):
        match = ROLLOUT.fullmatch(path.name)
        if match is not None and int(match[1]) > step:
            path.unlink()


def _lines(path: Path) -> list[str]:
    # Not splitlines: the texts of an episode may hold U+2028 and its like.
    found = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [line for line in found if line]
