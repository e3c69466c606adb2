"""The bar of a long run fits a terminal of 80 columns; a pipe gets one plain line a step."""

import io
import math
import re

import pytest
from rich.console import Console
from transformers import TrainerState

from gptoss_tune.train.metrics import progress
from gptoss_tune.train.metrics.progress import ProgressDisplay

LOGS = {
    "loss": 12.3456,
    "learning_rate": 1.95e-5,
    "tokens_per_second": 12345.6,
    "memory_gib": 76.54,
}


WORST = {"reward_margin": -99.996, "reward_accuracy": 1.0, "loss": 24.9999}


def shown(terminal, **more):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    display = ProgressDisplay(console)
    state = TrainerState(is_world_process_zero=True, global_step=11_999, max_steps=20_000)
    display.on_train_begin(None, state, None)
    state.global_step = 12_000
    display.on_step_end(None, state, None)
    display.on_log(None, state, None, LOGS | more)
    display.close()
    return stream.getvalue()


def last_frame(drawn):
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n").splitlines()
    return [frame for frame in frames if frame.strip()][-1]


def test_the_bar_and_its_figures_take_one_line():
    last = last_frame(shown(True))
    for figure in ("12000/20000", "loss 12.346", "lr 1.9e-5", "12,346 tok/s", "76.5 GiB", "eta"):
        assert figure in last, last
    assert "…" not in last


def test_a_pipe_gets_a_plain_line():
    assert shown(False).strip() == (
        "step 12000/20000  loss 12.346  lr 1.9e-5  12,346 tok/s  76.5 GiB"
    )


@pytest.mark.parametrize("more", [WORST, {"reward_margin": 0.25}], ids=["pairs", "answers"])
def test_a_preference_run_shows_what_was_won_in_80_columns(more):
    last = last_frame(shown(True, **more))
    plain = shown(False, **more).strip()
    for line in (last, plain):
        assert len(line) <= 80 and "…" not in line, line
        assert "12000/20000" in line and "76.5 GiB" in line, line
        assert ("margin -100.00  acc 100%" if "loss" in more else "margin 0.250") in line, line
        assert "lr " not in line and ("acc" in line) == ("reward_accuracy" in more), line
    assert "eta" in last and "12,346 tok/s" in plain


def test_a_held_out_line_of_a_preference_run_says_what_was_won():
    stream = io.StringIO()
    display = ProgressDisplay(Console(file=stream, width=80))
    state = TrainerState(is_world_process_zero=True, global_step=2, max_steps=2)
    figures = {"eval_loss": 0.5, "eval_reward_margin": 1.25, "eval_reward_accuracy": 0.875}
    display.on_log(None, state, None, figures)
    assert stream.getvalue().strip() == "step 2: eval loss 0.5000  margin 1.250  acc 88%"


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
