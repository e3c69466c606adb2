"""The bar of a long run fits a terminal of 80 columns; a pipe gets one plain line a step."""

import io
import math
import re

import pytest
from rich.console import Console
from transformers import TrainerState

from gptoss_tune.train.metrics import progress
from gptoss_tune.train.metrics.progress import ProgressDisplay
from gptoss_tune.train.metrics.spark import spark

LOGS = {
    "loss": 12.3456,
    "grad_norm": 0.5321,
    "learning_rate": 1.95e-5,
    "tokens_per_second": 12345.6,
    "memory_gib": 76.54,
}


WORST = {"reward_margin": -99.996, "reward_accuracy": 1.0, "loss": 24.9999}


def shown(terminal, *, width=80, steps=1, stream=None, **more):
    stream = stream or io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=terminal, color_system=None, soft_wrap=not terminal
    )
    display = ProgressDisplay(console)
    state = TrainerState(is_world_process_zero=True, global_step=11_999, max_steps=20_000)
    state.num_train_epochs = 4
    display.on_train_begin(None, state, None)
    for step in range(steps):
        state.global_step, state.epoch = 12_000 + step, 1.25
        display.on_step_end(None, state, None)
        display.on_log(None, state, None, {**LOGS, "loss": 12.3456 + steps - step - 1} | more)
    display.close()
    return stream.getvalue()


def last_frame(drawn, lines=2):
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n").splitlines()
    return [frame.rstrip() for frame in frames if frame.strip()][-lines:]


def test_a_bar_with_the_times_stands_above_the_figures():
    bar, figures = last_frame(shown(True))
    for figure in ("12000/20000", "epoch 1.25/4", "elapsed", "left"):
        assert figure in bar, bar
    assert figures.startswith("loss 12.346  lr 1.9e-5  grad 0.532  12,346 tok/s  76.5 GiB")
    assert max(len(bar), len(figures)) <= 80 and "…" not in bar + figures


def test_the_loss_is_a_curve_where_there_is_room():
    _, wide = last_frame(shown(True, width=120, steps=8))
    assert wide.endswith("█▇▆▅▄▃▂▁"), wide
    _, narrow = last_frame(shown(True, width=64, steps=8))
    assert narrow.endswith("76.5 GiB"), narrow


def test_a_curve_is_not_drawn_for_a_stream_that_cannot_show_it():
    class Ascii(io.StringIO):
        encoding = "ascii"

    assert "█" not in shown(True, width=120, steps=8, stream=Ascii())


def test_a_pipe_gets_a_plain_line_with_the_time_left():
    line = shown(False).strip()
    assert re.fullmatch(
        r"step 12000/20000  loss 12\.346  lr 1\.9e-5  grad 0\.532  12,346 tok/s  76\.5 GiB"
        r"  eta \d+:\d\d",
        line,
    ), line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(7, "0:07"), (760, "12:40"), (11_100, "3:05:00"), (187_200, "2d 04:00"), (-1, "0:00")],
)
def test_a_duration_is_read_at_a_glance(seconds, words):
    assert progress.clock(seconds) == words


def test_a_curve_shows_the_whole_of_a_long_run_and_skips_what_is_no_number():
    assert spark([float(n) for n in range(64)], 8) == "▁▂▃▄▅▆▇█"
    assert spark([1.0, math.nan, 3.0], 10) == "▁ █"
    assert spark([2.0, 2.0], 10) == "▁▁" and spark([math.inf], 4) == " "


@pytest.mark.parametrize("more", [WORST, {"reward_margin": 0.25}], ids=["pairs", "answers"])
def test_a_preference_run_shows_what_was_won_in_80_columns(more):
    _, figures = last_frame(shown(True, **more))
    plain = shown(False, **more).strip()
    assert "12000/20000" in plain and len(figures) <= 80
    for line in (figures, plain):
        assert "…" not in line and "76.5 GiB" in line and "12,346 tok/s" in line, line
        assert ("margin -100.00  acc 100%" if "loss" in more else "margin 0.250") in line, line
        assert "lr " not in line and ("acc" in line) == ("reward_accuracy" in more), line


def test_a_held_out_line_of_a_preference_run_says_what_was_won():
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, width=80))
    state = TrainerState(is_world_process_zero=True, global_step=2, max_steps=2)
    figures = {"eval_loss": 0.5, "eval_reward_margin": 1.25, "eval_reward_accuracy": 0.875}
    display.on_log(None, state, None, figures)
    assert stream.getvalue().strip() == "step 2: eval loss 0.5000  margin 1.250  acc 88%"


REWARDS = {
    **{"reward": -99.996, "reward_answer": 0.5, "reward_margin": 0.5, "reward_accuracy": 1.0},
    **{"episode_tokens": 12345.6, "cut_off_share": 1.0, "mismatch_kl": 2.345e-5},
}


def test_a_run_on_rewards_shows_them_in_80_columns_and_no_loss():
    _, figures = last_frame(shown(True, **REWARDS))
    plain = shown(False, **REWARDS).strip()
    assert len(figures) <= 80, figures
    for line in (figures, plain):
        assert "reward -100.00  12346 tok  cut 100%  kl 2e-5  grad 0.532" in line, line
        assert "loss" not in line and "margin" not in line and "76.5 GiB" in line, line
    exact = shown(False, reward=0.25, episode_tokens=41.0, cut_off_share=0.0, mismatch_kl=0.0)
    assert "reward 0.250  41 tok  kl 0  grad" in exact and "cut" not in exact
    # The second of two steps on the same episodes has none of its own.
    second = shown(False, mismatch_kl=0.0)
    assert "kl 0  grad" in second and "reward" not in second and "loss" not in second


def test_the_curve_of_a_run_on_rewards_is_that_of_the_reward():
    """It rises where the loss falls."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    display = ProgressDisplay(console)
    state = TrainerState(is_world_process_zero=True, global_step=0, max_steps=9)
    display.on_train_begin(None, state, None)
    for step in range(8):
        logs = {**LOGS, "loss": float(8 - step), "reward": float(step)}
        display.on_log(None, state, None, logs)
    display.close()
    _, figures = last_frame(console.file.getvalue())
    assert figures.endswith("▁▂▃▄▅▆▇█"), figures


def test_a_held_out_line_of_rewards_tells_their_components():
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, width=200))
    state = TrainerState(is_world_process_zero=True, global_step=2, max_steps=2)
    figures = {"eval_reward": 0.75, "eval_reward_answer": 0.5, "eval_episode_tokens": 41.0}
    display.on_log(None, state, None, figures)
    display.on_log(None, state, None, figures | {"eval_reward_format": 1.0})
    first, second = stream.getvalue().splitlines()
    assert first == "step 2: held-out reward 0.750  41 tok"
    assert second == "step 2: held-out reward 0.750  answer 0.500  format 1.000  41 tok"


@pytest.mark.parametrize("value", [0.0, -9.9999, 99.999, -1234.5, 1e5, -1e300, math.nan, -math.inf])
def test_a_short_figure_takes_7_columns_at_most(value):
    found = progress._short(value)
    assert len(found) <= 7
    assert float(found) == pytest.approx(value, rel=0.5, abs=1e-3, nan_ok=True)


def test_a_held_out_loss_that_is_no_number_is_warned_about():
    for loss, warned in ((1.5, False), (float("nan"), True), (float("inf"), True)):
        console = Console(file=io.StringIO(), width=200)
        display = ProgressDisplay(console)
        state = TrainerState(is_world_process_zero=True, global_step=2, max_steps=2)
        display.on_log(None, state, None, {"eval_loss": loss})
        said = console.file.getvalue()
        assert said.startswith("step 2: eval loss ")
        assert (f"warning: the held-out loss is {loss}: " in said) == warned
