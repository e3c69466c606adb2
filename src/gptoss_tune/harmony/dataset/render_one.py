"""One row -> what the model is trained on: for a notebook, and for a look at a single row."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.render import Example, Renderer, RenderSettings
from gptoss_tune.harmony.sources.padding import without_padding
from gptoss_tune.harmony.vocabulary import load_vocabulary


def render(
    row: dict[str, Any],
    *,
    checkpoint: str | Path | None = None,
    reasoning_effort: Effort = "medium",
    date: str = "2025-06-28",
    channel_weights: dict[str, float] | None = None,
    turns: Literal["all", "last"] = "all",
) -> list[Example]:
    """Return the samples of one row: its tokens as served, and the weight of predicting each.

    ``{"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]}``
    gives one sample. Several answers, each with its own thoughts, give one each: a server drops the
    thoughts of earlier turns, so the context of each answer is another.

    Args:
        row: Of any format that ``data.train`` may have.
        checkpoint: Folder whose tokenizer must agree; ``None``: the shipped vocabulary.
        reasoning_effort: ``data.reasoning_effort``.
        date: ``data.date``.
        channel_weights: ``data.channel_weights``; channels that are not named have 1.
        turns: ``data.turns``.

    Raises:
        DataError: The row cannot be trained on.
    """
    usual = RenderSettings()
    unknown = set(channel_weights or {}) - {name for name, _ in usual.channel_weights}
    if unknown:
        raise ValueError(f"channel_weights: no channels of the names {sorted(unknown)}")
    weights = {**dict(usual.channel_weights), **(channel_weights or {})}
    settings = RenderSettings(reasoning_effort, date, tuple(weights.items()), turns)
    return Renderer(load_vocabulary(checkpoint), settings).render(
        read_row(without_padding(row)[0], "row")
    )
