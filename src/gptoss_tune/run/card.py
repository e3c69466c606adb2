"""The run card, ``RUN/run.json``: everything that says what a run was and how it went.

The record grows while the run goes on (``record.update_record``); this file holds the facts that
only a card needs, and ``RunCard``, the types of all of them. A card is read years later, so its
fields are written down here and in docs/run-card.md, and a test holds a real run against them.
Beside it lies ``RUN/data.json``, four bytes for each line of the training data, so that
``gptoss-tune reproduce`` can name the row that changed.

What was typed is recorded as the recipe's path and the overrides, which hold no credentials; the
process's arguments and environment are not.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.recipe import DataSource
from gptoss_tune.run.environment import hardware
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.jsonl import read_lines

ReadFile = tuple[str, DataSource, Path | None]
"""Split, source and file of what is read; without a file for a dataset of the Hub."""
_MOST_LINES = 200_000
_PREFERENCES = ("reward_", "logp_", "reference_kl", "kl_estimate")
"""How the metrics begin that a preference run has beside its loss."""
_REWARDS = (
    *("reward", "episode_tokens", "cut_off_share", "groups_without_signal", "entropy"),
    *("mismatch_", "kl_reference", "tool_calls", "failed_"),
)
"""How those begin of a run that learns from rewards."""


class _Part(BaseModel):
    """A part of the card; rooms may add facts of their own to it."""

    model_config = ConfigDict(extra="allow")


class Base(_Part):
    """The base that was trained on."""

    name: str
    """Folder or name on the Hub."""
    revision: str | None
    """As the recipe says it."""
    fingerprint: dict[str, str]
    """sha256 of the configuration, of the start of every tensor, and of all their bytes."""


class DataFile(_Part):
    """One file, or one dataset of the Hub, that was read."""

    split: str
    """train or eval."""
    path: str
    """As the recipe leads to it."""
    sha256: str | None
    """Of the file; null for a dataset of the Hub."""
    revision: str | None
    """Of a dataset of the Hub."""


class Losses(_Part):
    """Mean losses over all trained tokens, by channel where there were any."""

    first: dict[str, float]
    """Of the first logged step."""
    last: dict[str, float]
    """Of the last."""
    eval: dict[str, float]
    """Of the last evaluation, or of the best one that keep_best chose; empty without one."""


class Preferences(_Part):
    """Rewards, log-probabilities and drift of a preference run, under their names as metrics."""

    first: dict[str, float]
    """Of the first logged step."""
    last: dict[str, float]
    """Of the last."""
    eval: dict[str, float]
    """Of the last evaluation; empty without one."""


class Reinforcement(_Part):
    """Rewards, lengths, entropy and mismatch of a run of grpo, under their names as metrics."""

    first: dict[str, float]
    """Of the first logged step."""
    last: dict[str, float]
    """Of the last."""
    eval: dict[str, float]
    """Of the last evaluation, or of the best one; empty without one."""


class Reference(_Part):
    """What the log-probabilities of a preference run were measured against."""

    of: str
    """base, or init_adapter: the adapter that the run began from."""
    rows: int
    tokens: int
    seconds: float
    """That computing the reference's log-probabilities took."""
    cached: bool
    """Whether they were read from the cache instead."""


class ChosenExperts(_Part):
    """The experts that got an adapter, and why those."""

    chosen_by: str
    """data: by a pass of the base over the training data; init_from: by the adapter begun from."""
    experts: int
    """Of a layer of the base."""
    layers: dict[str, list[int]]
    """Numbers of the chosen ones, by layer."""
    share_of_load: dict[str, float] = {}
    """By layer, what part of the loss-weighted tokens' choices falls on the chosen ones."""
    load: list[list[float]] = []
    """By layer, what part falls on each expert; every layer's sum is 1."""
    rows: int = 0
    tokens: int = 0
    """That were read to choose."""
    seconds: float = 0.0
    """That counting took; 0 where it was known from an earlier pass."""
    cached: bool = False


class Best(_Part):
    """The best evaluated weights, which the adapter holds."""

    metric: str
    goal: str
    """min or max."""
    value: float | None
    """Null where no evaluation gave a number: the adapter is then the last step's."""
    step: int | None
    figures: dict[str, float] = {}
    """All figures of the evaluation at that step."""


class EarlyStop(_Part):
    """How often the figure of early stopping got no better."""

    metric: str
    goal: str
    best: float | None
    best_step: int | None
    waited: int
    """Evaluations since the last improvement."""
    stopped: bool
    step: int | None = None
    """After which the run ended; absent where it ran to its end, as are the next two."""
    planned: int | None = None
    reason: str | None = None


class RunCard(_Part):
    """A finished run's ``run.json``."""

    status: str
    """running, finished, stopped, or stopped by the guard."""
    command: dict[str, Any]
    """The recipe's path and the overrides as typed."""
    recipe: dict[str, Any]
    """The resolved recipe, defaults included."""
    base: Base
    data: list[DataFile]
    """Every file and dataset that was read, in the recipe's order."""
    environment: dict[str, Any]
    """Versions, commit, GPUs, processes."""
    hardware: dict[str, Any]
    """CPU, cores, bytes of memory, GPUs with theirs, driver."""
    seeds: dict[str, int]
    steps: int
    """Optimizer steps."""
    losses: Losses
    preferences: Preferences | None = None
    """Of a preference run alone."""
    reinforcement: Reinforcement | None = None
    """Of a run that learns from rewards alone."""
    rollouts: dict[str, Any] | None = None
    """Of such a run: what sampled, in which environment, and counts of episodes and calls."""
    reference: Reference | None = None
    """Of a run with a reference alone."""
    chosen_experts: ChosenExperts | None = None
    """Of a run whose ``lora.experts`` chooses some alone."""
    best: Best | None = None
    """Of a run with ``train.keep_best`` alone."""
    early_stopping: EarlyStop | None = None
    """Of a run with ``train.early_stopping`` alone."""
    tokens: dict[str, Any]
    """Trained tokens, by channel and by dataset."""
    tokens_per_second: float | None
    """Tokens through the model over the time between the first logged step and the last."""
    seconds: float
    """Of the last start of the run."""
    peak_memory_bytes: int
    """GPU allocation of rank 0, or its resident size on a CPU."""
    guard: dict[str, Any]
    """What was checked, left out and warned of."""
    verification: list[dict[str, Any]] = []
    """What ``merge`` and ``verify`` found about exports of this run."""
    data_warnings: list[str] = []
    """What was told of the data before the first step: rows that teach a wrong habit, lost keys."""
    not_finite: dict[str, str] = {}
    """What is null above because JSON has no form for it: ``{"eval_loss": "nan"}``."""
    unread_metrics: int = 0
    """Lines of ``metrics.jsonl`` that were damaged when the run ended."""


def opening_facts(
    run: Path, command: list[str], files: Iterable[ReadFile], seed: int
) -> dict[str, Any]:
    """Return what is known before the first step, and write ``RUN/data.json``.

    Args:
        run: The run's folder.
        command: The recipe's path and the overrides, as typed; empty where nothing was typed.
        files: What the recipe's data are, as ``harmony.sources.open.listed_files`` finds them.
        seed: Of the recipe.
    """
    data, lines = [], {}
    for split, source, found in files:
        data.append(
            {
                "split": split,
                "path": source.path if found is None else str(found),
                "sha256": None if found is None else sha256_of(found),
                "revision": source.revision,
            }
        )
        if found is not None:
            lines[str(found)] = line_marks(found)
    write_text(RunFolder(run).data_lines, json.dumps(lines) + "\n")
    return {
        "command": {"recipe": command[0] if command else None, "overrides": command[1:]},
        "data": data,
        "hardware": hardware(),
        "seeds": {"seed": seed, "data_seed": seed},
    }


def closing_facts(run: Path, published: int | None = None) -> dict[str, Any]:
    """Return losses, throughput and what a method won, as ``RUN/metrics.jsonl`` has them.

    The run is over and its adapter written, so a damaged line is counted and not refused; a line
    without one of the figures counts for the others.

    Args:
        run: The run's folder.
        published: Step of the weights that the adapter holds, whose evaluation is told; ``None``:
            the last one's.

    Raises:
        CheckpointError: The file is a link, no regular file, or of no sane size.
    """
    damaged: list[int] = []
    rows: list[dict[str, float]] = []
    lines = read_lines(RunFolder(run).metrics, lambda number, _: damaged.append(number))
    for number, row in lines:
        if isinstance(row, dict):
            rows.append({name: v for name, v in row.items() if type(v) in (int, float)})
        else:
            damaged.append(number)
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row or "eval_reward" in row]
    if published is not None:
        evaluations = [row for row in evaluations if row.get("step") == published]

    def figures(*begin: str) -> dict[str, dict[str, float]]:
        held_out = [f"eval_{name}" for name in begin]
        return {
            "first": _named(steps[:1], begin),
            "last": _named(steps[-1:], begin),
            "eval": _named(evaluations[-1:], held_out),
        }

    found: dict[str, Any] = {"unread_metrics": len(damaged)} if damaged else {}
    rewarded = any("reward" in row or "eval_reward" in row for row in rows)
    won = figures(*(_REWARDS if rewarded else _PREFERENCES))
    if any(won.values()):
        found["reinforcement" if rewarded else "preferences"] = won
    return found | {"losses": figures("loss"), "tokens_per_second": _throughput(steps)}


def _named(rows: list[dict[str, float]], begin: Iterable[str]) -> dict[str, float]:
    """Return the figures of a row whose names begin so; none without a row."""
    return {name: v for row in rows for name, v in row.items() if name.startswith(tuple(begin))}


def _throughput(steps: list[dict[str, float]]) -> float | None:
    """Return tokens over time, the first logged stretch left out: it holds what is done once."""
    tokens = seconds = 0.0
    counted = [row for row in steps if row.keys() >= {"tokens", "tokens_per_second"}]
    for before, row in itertools.pairwise(counted):
        made, rate = row["tokens"] - before["tokens"], row["tokens_per_second"]
        if made > 0 and rate > 0:
            tokens += made
            seconds += made / rate
    return tokens / seconds if seconds else None


def line_marks(path: Path) -> str | None:
    """Return eight hex digits (CRC-32) a line of a text file; None for other or huge ones."""
    if path.suffix not in (".jsonl", ".ndjson", ".csv"):
        return None
    marks = []
    with path.open("rb") as stream:
        for line in stream:
            mark = zlib.crc32(line.rstrip(b"\r\n"))
            marks.append(f"{mark:08x}")
            if len(marks) > _MOST_LINES:
                return None
    return "".join(marks)
