"""The curves of a run that learns from rewards.

A reward alone says little: it grows as well when answers are cut, when a component is gamed, or
when the policy has forgotten to try anything else. So its components, the length, what was cut off
and the entropy are drawn beside it, and how far the sampler's probabilities are from the trainer's,
which is what makes such runs break.
"""

from __future__ import annotations

from gptoss_tune.report.parts.plot import Line, chart
from gptoss_tune.report.parts.read import Run
from gptoss_tune.report.parts.style import DASHES, colour
from gptoss_tune.report.parts.text import number

_MOST_COMPONENTS, _COLOURS = 14, 7
_ALL, _HELD_OUT, _BAD = "var(--c1)", "var(--c3)", "var(--c5)"
_NO_COMPONENTS = ("reward_std",)


def components(run: Run) -> list[str]:
    """Return the names of the rewards' components that the metrics have, in their order."""
    found: dict[str, None] = {}
    for row in (*run.train, *run.held_out):
        for key in row:
            name = key.removeprefix("eval_")
            if name.startswith("reward_") and name not in _NO_COMPONENTS:
                found[name.removeprefix("reward_")] = None
    return list(found)


def rewards(run: Run) -> list[str]:
    """Return all figures of a run that learns from rewards; none of any other run."""
    if not run.method.reinforcement:
        return []
    figures = [
        _reward(run),
        _by_component(run),
        _signal(run),
        _length(run),
        _shares(run),
        _entropy(run),
        _mismatch(run),
        _weights(run),
        _reference(run),
        _calls(run),
        _spread(run),
        *_sampling(run),
        _failures(run),
    ]
    return [drawn for drawn in figures if drawn]


def _reward(run: Run) -> str:
    return chart(
        "Reward",
        _both(run, "reward"),
        unit="reward, mean over episodes",
        caption="Training: episodes sampled with the recipe's temperature. Held out: one episode "
        "of each held-out prompt, the likeliest tokens.",
    )


def _by_component(run: Run) -> str:
    named = components(run)
    lines = []
    for place, name in enumerate(named[:_MOST_COMPONENTS]):
        dash = DASHES[place // _COLOURS % len(DASHES)]
        lines.append(Line(name, run.series(f"reward_{name}"), colour(place), dash))
        held_out = run.series(f"eval_reward_{name}", held_out=True)
        lines.append(Line(f"{name}, held out", held_out, colour(place), DASHES[2], dots=True))
    left = len(named) - _MOST_COMPONENTS
    more = f" {left:,} more are in the metrics." if left > 0 else ""
    return chart(
        "Reward by component",
        lines,
        unit="before its weight, mean over episodes",
        caption="The reward is their sum by method.rewards." + more,
    )


def _signal(run: Run) -> str:
    return chart(
        "Groups without signal",
        [Line("groups", run.series("groups_without_signal"), _ALL)],
        unit="share of groups",
        caption="Groups whose episodes all earned the same: nothing is learnt from them. Near 1 "
        "the prompts are too easy or too hard; method.dynamic_sampling samples others in their "
        "place.",
        holds=(0.0, 1.0),
    )


def _length(run: Run) -> str:
    return chart(
        "Length of an episode",
        _both(run, "episode_tokens"),
        unit="tokens that the model wrote, mean",
        caption="Of all answers of an episode; results of tools are not counted.",
        from_zero=True,
    )


def _shares(run: Run) -> str:
    return chart(
        "Cut off at a limit",
        _both(run, "cut_off_share"),
        unit="share of episodes",
        caption="Episodes that a limit of tokens, turns or time ended (method.overlong says what "
        "is learnt from them).",
        holds=(0.0, 1.0),
    )


def _entropy(run: Run) -> str:
    return chart(
        "Entropy",
        [Line("entropy", run.series("entropy"), colour(3))],
        unit="nats per token",
        caption="Of the policy at the drawn tokens. Where it falls to 0 all episodes of a group "
        "are the same, and learning ends.",
        from_zero=True,
    )


def _mismatch(run: Run) -> str:
    """Return the KL of sampler and trainer with its bound; by powers of ten where it is not 0."""
    drawn = run.series("mismatch_kl")
    values = [value for _, value in drawn if value is not None]
    limit = number(run.fact("recipe", "method", "mismatch_kl_limit"))
    return chart(
        "Sampler against trainer",
        [Line("KL", drawn, colour(1), noisy=False)],
        unit="nats per token",
        logarithmic=bool(values) and min(values) > 0,
        caption="KL of the sampler's probabilities from the trainer's, at the drawn tokens: 0 when "
        "both compute the same. At the dashed line the run stops (method.mismatch_kl_limit).",
        level=None if limit is None else (limit, f"stops at {limit:g}"),
        from_zero=bool(values) and min(values) <= 0,
    )


def _weights(run: Run) -> str:
    return chart(
        "Tokens held back",
        [
            Line("clipped", run.series("clipped_share"), colour(0)),
            Line("importance weight capped", run.series("importance_capped_share"), colour(1)),
        ],
        unit="share of trained tokens",
        caption="Clipped: the ratio to the weights that sampled has left its bounds. Capped: the "
        "trainer finds the token far likelier, or less likely, than the sampler did.",
        holds=(0.0, 0.01),
    )


def _reference(run: Run) -> str:
    return chart(
        "KL to the reference",
        [Line("KL", run.series("kl_reference"), _ALL)],
        unit="nats per token",
        caption="At the tokens that the policy itself drew.",
        from_zero=True,
    )


def _calls(run: Run) -> str:
    calls = run.series("tool_calls")
    if not any(value for _, value in calls):
        return ""
    return chart(
        "Calls of tools",
        [
            Line("calls", calls, _ALL),
            Line("that failed", run.series("failed_calls"), _BAD, DASHES[1]),
        ],
        unit="per episode",
        caption="Failed: an unknown tool, arguments that do not fit, or a tool that raised or took "
        "too long; the model is told so and goes on.",
        from_zero=True,
    )


def _spread(run: Run) -> str:
    return chart(
        "Spread of rewards in a group",
        [Line("standard deviation", run.series("reward_std"), colour(4))],
        unit="reward, mean over groups",
        caption="What the episodes of one prompt differ by; advantages come of it.",
        from_zero=True,
    )


def _sampling(run: Run) -> list[str]:
    return [
        chart(
            "Sampling",
            [Line("tokens", run.series("rollout_tokens_per_second"), colour(0))],
            unit="drawn tokens/s",
            caption="Over the time of playing, the tools' time included.",
            from_zero=True,
        ),
        chart(
            "Episodes a second",
            [Line("episodes", run.series("rollouts_per_second"), colour(2))],
            unit="episodes/s",
            from_zero=True,
        ),
        chart(
            "Time of playing",
            [Line("playing", run.series("rollout_seconds"), colour(5))],
            unit="s, between two lines of the metrics",
            from_zero=True,
        ),
    ]


def _failures(run: Run) -> str:
    failed, resampled = run.series("failed_rewards"), run.series("resampled")
    held_out = run.series("eval_failed_rewards", held_out=True)
    lines = [
        Line("rewards that failed", failed, _BAD),
        Line("groups sampled again", resampled, colour(1), DASHES[1]),
        Line("held out: rewards that failed", held_out, _HELD_OUT, "7 4", dots=True),
    ]
    shown = [line for line in lines if any(value for _, value in line.series)]
    return chart(
        "Counted and passed over",
        shown,
        unit="between two lines of the metrics",
        caption="A reward that raises or hangs counts 0 for its component, an environment that "
        "fails for its episode.",
        from_zero=True,
    )


def _both(run: Run, metric: str) -> list[Line]:
    """Return a metric's line in training and on held-out prompts."""
    return [
        Line("training", run.series(metric), _ALL),
        Line("held out", run.series(f"eval_{metric}", held_out=True), _HELD_OUT, "7 4", dots=True),
    ]
