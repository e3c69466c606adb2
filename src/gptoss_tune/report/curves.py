"""The curves of one run: losses, preferences, learning rate, gradients, throughput, memory.

Of a preference run a margin alone says little: it grows as well when both answers become less
likely and the rejected one falls faster, until the model writes neither. So the log-probabilities
of both, and their drift, are drawn beside it.
"""

from __future__ import annotations

from gptoss_tune.harmony.conversation import CHANNELS as TRAINED_CHANNELS
from gptoss_tune.harmony.conversation import TEXT
from gptoss_tune.report.parts.plot import Line, chart
from gptoss_tune.report.parts.read import Run
from gptoss_tune.report.parts.style import DASHES, colour
from gptoss_tune.report.parts.text import number
from gptoss_tune.run.method import Method

CHANNELS = (*TRAINED_CHANNELS, "other", TEXT)
"""Channels in the order of the page; ``other`` is what stands in none, ``text`` is raw text."""
WITHOUT_NOISE = ("learning_rate", "memory_gib")
"""Metrics that are drawn without a running mean."""
_COLOURS, _MOST_SOURCES = 7, 24
_ALL, _GOOD, _BAD = "var(--c0)", "var(--c3)", "var(--c5)"
"""Colours of what is of both answers, of the chosen or good, and of the rejected or bad."""


def losses(run: Run) -> list[str]:
    """Return the figures of the loss: the whole of it, and by channel."""
    mean = [
        Line("training", run.series("loss"), "var(--c0)"),
        Line("held out", run.series("eval_loss", held_out=True), "var(--c5)", "7 4", dots=True),
    ]
    by_channel = []
    for place, name in enumerate(CHANNELS):
        by_channel.append(Line(name, run.series(f"loss_{name}"), colour(place)))
        held_out = run.series(f"eval_loss_{name}", held_out=True)
        by_channel.append(Line(f"{name}, held out", held_out, colour(place), DASHES[1], dots=True))
    method, caption = run.method, "Mean over all trained tokens of a step, by their loss weights"
    if method.reinforcement:
        caption = (
            "The value of the objective, whose gradient is meant and not its height: it says "
            "nothing of success"
        )
    elif method.preferences:
        caption = f"Mean over all {method.sample}s of a step, by their weights"
    return [
        chart("Loss", mean, unit=method.loss_unit, caption=f"{caption}, on all ranks."),
        _held_out_by_source(run),
        chart(
            "Loss by channel",
            by_channel,
            unit="nats per token",
            caption="Mean over the trained tokens of a channel, whatever their weights.",
        ),
    ]


def _held_out_by_source(run: Run) -> str:
    """Return the figure of the held-out loss of each source; empty where there is one in all."""
    begin = "eval_weight_"
    named = {name.removeprefix(begin): None for row in run.held_out for name in row
             if name.startswith(begin)}  # fmt: skip
    lines = [
        Line(
            name,
            run.series(f"eval_loss_{name}", held_out=True),
            colour(place),
            DASHES[place // _COLOURS % len(DASHES)],
            dots=True,
        )
        for place, name in enumerate(list(named)[:_MOST_SOURCES])
    ]
    left = len(named) - len(lines)
    more = f" {left:,} more are in the metrics." if left > 0 else ""
    return chart(
        "Held-out loss by source",
        lines,
        unit=run.method.loss_unit,
        caption="The held-out loss is their mean, by the loss weights of what each source holds."
        + more,
    )


def optimisation(run: Run) -> list[str]:
    """Return the figures of the step size: learning rate and gradient norm."""
    clip = number(run.fact("recipe", "train", "max_grad_norm"))
    return [
        _one(run, "learning_rate", "Learning rate", 0, "learning rate"),
        chart(
            "Gradient norm",
            [Line("gradient norm", run.series("grad_norm"), colour(2))],
            unit="norm of all adapters",
            logarithmic=True,
            caption="Before clipping; above the dashed line it is clipped.",
            level=None if clip is None else (clip, f"clipped at {clip:g}"),
        ),
    ]


def machine(run: Run) -> list[str]:
    """Return the figures of speed and memory."""
    where = "allocated on a GPU, rank 0" if run.fact("environment", "gpus") else (
        "resident size of the process, rank 0: there is no GPU"
    )  # fmt: skip
    return [
        _one(
            run,
            "tokens_per_second",
            "Throughput",
            0,
            "tokens/s",
            "All tokens read, context included, padding not, on all ranks, over wall time; "
            "evaluations and checkpoints in between count as time.",
        ),
        _one(run, "seconds_per_step", "Time of a step", 3, "s"),
        _one(run, "memory_gib", "Peak memory", 4, "GiB", f"Highest so far, {where}."),
    ]


def _one(run: Run, metric: str, title: str, place: int, unit: str, caption: str = "") -> str:
    """Return the figure of one metric of training, above 0."""
    line = Line(title.lower(), run.series(metric), colour(place), noisy=metric not in WITHOUT_NOISE)
    return chart(title, [line], unit=unit, caption=caption, from_zero=True)


def preferences(run: Run) -> list[str]:
    """Return the figures of a preference run; none of what its metrics do not have."""
    method = run.method
    if method.reinforcement:  # a component of its rewards may be called as one of these
        return []
    answers = "answers" if method.sample == "answer" else "pairs"
    at_first = ""
    if _has_reference(run):
        at_first = " All rewards are 0 before the first update: the first value says nothing."
    return [
        _rewards(run, method),
        chart(
            "Reward accuracy",
            _lines(run, [("reward_accuracy", "training", _ALL)]),
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
            [
                *_lines(run, [("reference_kl", "all channels", _ALL)]),
                *_by_channel(run, "reference_kl"),
            ],
            unit="nats per token",
            caption="An estimate at the tokens of the data, half the square of how far their "
            "log-probability is from the reference's: not at what the model itself would write.",
            from_zero=True,
        ),
        chart(
            "KL estimate of the loss",
            _lines(run, [("kl_estimate", "training", _ALL)]),
            unit="nats per answer",
            caption="The z0 of KTO: an answer counts as won or lost by its reward against this "
            "one, which is estimated from prompts with the answers of others.",
            from_zero=True,
        ),
    ]


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
    return _lines(
        run, [(f"{metric}_chosen", chosen, _GOOD), (f"{metric}_rejected", rejected, _BAD)]
    )


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
        [*_sides(run, "reward"), *_lines(run, [("reward_margin", "margin", _ALL)])],
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
    measured = ("logp_drift_chosen", "logp_drift_rejected", "reference_kl")
    return any(
        run.last(metric) is not None or run.last(f"eval_{metric}", held_out=True) is not None
        for metric in measured
    )
