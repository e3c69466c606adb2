"""The curves of one run: losses, learning rate, gradients, throughput, memory."""

from __future__ import annotations

from gptoss_tune.harmony.conversation import CHANNELS as TRAINED_CHANNELS
from gptoss_tune.report.plot import Line, chart
from gptoss_tune.report.read import Run
from gptoss_tune.report.style import DASHES, colour
from gptoss_tune.report.text import number

CHANNELS = (*TRAINED_CHANNELS, "other")
"""Channels in the order of the page; ``other`` is what stands in none of the three."""
WITHOUT_NOISE = ("learning_rate", "memory_gib")
"""Metrics that are drawn without a running mean."""


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
    if method.preferences:
        caption = f"Mean over all {method.sample}s of a step, by their weights"
    return [
        chart("Loss", mean, unit=method.loss_unit, caption=f"{caption}, on all ranks."),
        chart(
            "Loss by channel",
            by_channel,
            unit="nats per token",
            caption="Mean over the trained tokens of a channel, whatever their weights.",
        ),
    ]


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
