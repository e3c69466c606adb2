"""Several runs on one page: their curves over each other, what their recipes differ in, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tune.recipe.dump import by_name
from gptoss_tune.report import facts
from gptoss_tune.report.curves import WITHOUT_NOISE
from gptoss_tune.report.parts.plot import Line, chart
from gptoss_tune.report.parts.read import Run
from gptoss_tune.report.parts.style import DASHES, colour
from gptoss_tune.report.parts.text import table, text

_MOST_CELL = 200


@dataclass(frozen=True)
class _Figure:
    """A metric of which every run gives one line."""

    title: str
    metric: str
    unit: str
    held_out: bool = False
    logarithmic: bool = False
    from_zero: bool = False
    level: tuple[float, str] | None = None
    holds: tuple[float, ...] = ()


_OF_THE_METHOD = ""
"""As a unit: what a run's loss is a mean over."""
_OTHER_METHODS = "These runs have different methods: their losses cannot be compared."
_EVEN, _CHANCE = (0.0, ""), (0.5, "chance")
_FIGURES = (
    _Figure("Training loss", "loss", _OF_THE_METHOD),
    _Figure("Held-out loss", "eval_loss", _OF_THE_METHOD, held_out=True),
    _Figure("Reward", "reward", "reward, mean over episodes"),
    _Figure("Held-out reward", "eval_reward", "reward, mean over episodes", held_out=True),
    _Figure("Length of an episode", "episode_tokens", "tokens, mean", from_zero=True),
    _Figure("Cut off at a limit", "cut_off_share", "share of episodes", holds=(0, 1)),
    _Figure("Groups without signal", "groups_without_signal", "share of groups", holds=(0, 1)),
    _Figure("Entropy", "entropy", "nats per token", from_zero=True),
    _Figure("Sampler against trainer", "mismatch_kl", "KL, nats per token", from_zero=True),
    _Figure("Reward margin", "reward_margin", "reward", level=_EVEN),
    _Figure("Held-out reward margin", "eval_reward_margin", "reward", True, level=_EVEN),
    _Figure("Reward accuracy", "reward_accuracy", "share of pairs", level=_CHANCE, holds=(0, 1)),
    _Figure(
        *("Held-out reward accuracy", "eval_reward_accuracy", "share of pairs", True),
        level=_CHANCE,
        holds=(0, 1),
    ),
    _Figure("Drift of the chosen answers", "logp_drift_chosen", "nats per token", level=_EVEN),
    _Figure("KL to the reference", "reference_kl", "nats per token", from_zero=True),
    _Figure("Loss in the analysis channel", "loss_analysis", "nats per token"),
    _Figure("Loss in the final channel", "loss_final", "nats per token"),
    _Figure("Learning rate", "learning_rate", "learning rate", from_zero=True),
    _Figure("Gradient norm", "grad_norm", "norm of all adapters", logarithmic=True),
    _Figure("Throughput", "tokens_per_second", "tokens/s", from_zero=True),
    _Figure("Evenness of the expert load", "router_entropy", "entropy, mean of layers"),
)


def names(runs: Sequence[Run]) -> list[str]:
    """Return a short name per run, longer where two folders share their last part."""
    short = [run.name for run in runs]
    return [
        name if short.count(name) == 1 else str(run.folder)
        for run, name in zip(runs, short, strict=True)
    ]


def overlaid(runs: Sequence[Run]) -> list[str]:
    """Return the figures of all runs, one line each."""
    called = names(runs)
    units = " / ".join(dict.fromkeys(run.method.loss_unit for run in runs))
    methods = len({run.method.name for run in runs})
    figures = []
    for figure in _FIGURES:
        lines = [
            Line(
                called[place],
                run.series(figure.metric, held_out=figure.held_out),
                colour(place),
                DASHES[place % len(DASHES)],
                dots=figure.held_out,
                noisy=figure.metric not in WITHOUT_NOISE,
            )
            for place, run in enumerate(runs)
        ]
        is_loss = figure.unit == _OF_THE_METHOD
        figures.append(
            chart(
                figure.title,
                lines,
                unit=units if is_loss else figure.unit,
                caption=_OTHER_METHODS if is_loss and methods > 1 else "",
                logarithmic=figure.logarithmic,
                from_zero=figure.from_zero,
                level=figure.level,
                holds=figure.holds,
            )
        )
    return [drawn for drawn in figures if drawn]


def figures_table(runs: Sequence[Run]) -> str:
    """Return the headline facts of the runs side by side."""
    columns = [
        {"status": facts.status(run), **{label: value for value, label, _ in facts.tiles(run)}}
        for run in runs
    ]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [[label, *(column.get(label, "–") for column in columns)] for label in labels]
    return table(["figure", *(text(name, _MOST_CELL) for name in names(runs))], rows)


def differences(runs: Sequence[Run]) -> str:
    """Return the settings in which the recipes differ, and what else was not the same."""
    settings = [{**by_name(run.recipe), **_surroundings(run)} for run in runs]
    keys = list(dict.fromkeys(key for found in settings for key in found))
    rows = [
        [text(key, _MOST_CELL), *(_value(found.get(key)) for found in settings)]
        for key in keys
        if len({repr(found.get(key)) for found in settings}) > 1
    ]
    if not rows:
        return '<p class="note">The recipes, bases, versions and machines are the same.</p>'
    return table(["setting", *(text(name, _MOST_CELL) for name in names(runs))], rows)


def _surroundings(run: Run) -> dict[str, Any]:
    found = {
        "base fingerprint": run.fact("base", "fingerprint"),
        "processes": run.fact("environment", "processes"),
        "GPUs": run.fact("environment", "gpus"),
        "commit": run.fact("environment", "git_commit"),
    }
    libraries = run.fact("environment", "libraries")
    if isinstance(libraries, dict):
        found |= {f"version of {name}": version for name, version in libraries.items()}
    return found


def _value(value: Any) -> str:
    return "–" if value is None else text(value, _MOST_CELL)
