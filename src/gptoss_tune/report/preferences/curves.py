"""The curves of a preference run: what was won, by which answers, and how far from the reference.

A margin alone says little: it grows as well when both answers become less likely and the rejected
one falls faster, until the model writes neither. So the log-probabilities of both, and their drift,
are drawn beside it.
"""

from __future__ import annotations

from statistics import fmean

from gptoss_tune.report.curves import CHANNELS
from gptoss_tune.report.plot import Line, chart
from gptoss_tune.report.preferences.method import Method
from gptoss_tune.report.read import Run
from gptoss_tune.report.style import DASHES, colour
from gptoss_tune.report.text import figure

ALL, GOOD, BAD = "var(--c0)", "var(--c3)", "var(--c5)"
"""Colours of what is of both answers, of the chosen or good, and of the rejected or bad."""

_LAST_LINES = 20

Tile = tuple[str, str, bool]


def preference_curves(run: Run) -> list[str]:
    """Return the figures of a preference run; none of what its metrics do not have."""
    method = run.method
    answers = "answers" if method.sample == "answer" else "pairs"
    at_first = ""
    if _has_reference(run):
        at_first = " All rewards are 0 before the first update: the first value says nothing."
    return [
        _rewards(run, method),
        chart(
            "Reward accuracy",
            _lines(run, [("reward_accuracy", "training", ALL)]),
            unit="share of pairs",
            caption="Share of the pairs whose chosen answer has the higher reward." + at_first,
            level=(0.5, "chance"),
            holds=(0.0, 1.0),
        ),
        chart(
            "Margin by channel",
            _by_channel(run, "reward_margin"),
            unit=f"reward, mean over {answers}",
            caption="What the tokens of each channel add to the margin; together they are it.",
            level=(0.0, ""),
        ),
        _log_probabilities(run, method),
        _drift(run, method),
        chart(
            "KL to the reference",
            [*_lines(run, [("kl", "all channels", ALL)]), *_by_channel(run, "kl")],
            unit="nats per token",
            caption="An estimate at the tokens of the data, exp(r) - 1 - r with r the reference's "
            "log-probability less the model's: not at what the model itself would write.",
            from_zero=True,
        ),
        chart(
            "KL estimate of the loss",
            _lines(run, [("kl_estimate", "training", ALL)]),
            unit="nats per answer",
            caption="The z0 of KTO: an answer counts as won or lost by its reward against this "
            "one, which is estimated from prompts with the answers of others.",
            from_zero=True,
        ),
    ]


def tiles(run: Run) -> list[Tile]:
    """Return the headline facts of a preference run: value and label as HTML, and no bad news."""
    return [*_share_tile(run), *_reward_tiles(run)]


def _share_tile(run: Run) -> list[Tile]:
    values, where = _best_seen(run, "reward_accuracy")
    if not values:
        return []
    return [(_from_to([f"{value:.1%}" for value in values]), f"reward accuracy, {where}", False)]


def _reward_tiles(run: Run) -> list[Tile]:
    """Return the margin; for answers with a label the rewards of the good and the bad."""
    found: list[Tile] = []
    wanted = [("reward_margin", "reward margin")]
    if run.method.name == "kto":
        wanted = [("reward_chosen", "reward of good"), ("reward_rejected", "reward of bad")]
    for metric, label in wanted:
        values, where = _best_seen(run, metric)
        if values:
            shown = _from_to([figure(value, 3) for value in values])
            found.append((shown, f"{label}, {where}", False))
    return found


def _best_seen(run: Run, metric: str) -> tuple[list[float], str]:
    """Return a metric's values on held-out rows, or on the training's where there are none."""
    held_out = [v for _, v in run.series(f"eval_{metric}", held_out=True) if v is not None]
    if held_out:
        return held_out, "held out"
    # A step has a few pairs, and one step's share of them says little.
    last = [v for _, v in run.series(metric) if v is not None][-_LAST_LINES:]
    return [fmean(last)] if last else [], f"training, last {len(last)} lines"


def _from_to(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} → {values[-1]}"


def _lines(run: Run, wanted: list[tuple[str, str, str]]) -> list[Line]:
    """Return the lines of metrics ``(name, title, colour)``, each with its held-out one."""
    found = []
    for metric, title, shade in wanted:
        name = "held out" if title == "training" else f"{title}, held out"
        held_out = run.series(f"eval_{metric}", held_out=True)
        found += [
            Line(title, run.series(metric), shade),
            Line(name, held_out, shade, DASHES[1], dots=True),
        ]
    return found


def _by_channel(run: Run, metric: str) -> list[Line]:
    wanted = [(f"{metric}_{name}", name, colour(n)) for n, name in enumerate(CHANNELS)]
    return _lines(run, wanted)


def _sides(run: Run, metric: str) -> list[Line]:
    chosen, rejected = run.method.sides
    return _lines(run, [(f"{metric}_chosen", chosen, GOOD), (f"{metric}_rejected", rejected, BAD)])


def _rewards(run: Run, method: Method) -> str:
    per_token = " per token" if method.per_token else ""
    if _has_reference(run):
        what = f"how far its log-probability{per_token} lies above the reference's"
    else:
        what = f"its log-probability{per_token}; there is no reference"
    chosen, rejected = method.sides
    less = f"the reward of the {chosen} answers less that of the {rejected} ones"
    return chart(
        "Rewards and their margin",
        [*_sides(run, "reward"), *_lines(run, [("reward_margin", "margin", ALL)])],
        unit=f"reward, mean over {'answers' if method.name == 'kto' else 'pairs'}",
        caption=f"An answer's reward is beta times {what}. The margin is {less}.",
        level=(0.0, ""),
    )


def _log_probabilities(run: Run, method: Method) -> str:
    return chart(
        "Log-probability of the answers",
        _sides(run, "logp"),
        unit="nats per token",
        caption=f"Mean over the counted tokens of the {' and of the '.join(method.sides)} answers; "
        "0 is certainty.",
    )


def _drift(run: Run, method: Method) -> str:
    chosen, rejected = method.sides
    hold = "a smaller learning rate or a larger beta holds it"
    if method.sft_term:
        hold = "method.sft_weight, a smaller learning rate or a larger beta holds it"
    return chart(
        "Drift from the reference",
        _sides(run, "logp_drift"),
        unit="nats per token",
        caption=f"Log-probability per token less the reference's. Where the line of the {chosen} "
        f"answers falls below 0, the model has come to find even these less likely: its margin "
        f"grows only because the {rejected} ones fall faster, and what it writes instead is "
        f"neither; {hold}.",
        level=(0.0, "the reference"),
    )


def _has_reference(run: Run) -> bool:
    """Return whether a metric of the run was measured against a reference."""
    measured = ("logp_drift_chosen", "logp_drift_rejected", "kl")
    return any(
        run.last(metric) is not None or run.last(f"eval_{metric}", held_out=True) is not None
        for metric in measured
    )
