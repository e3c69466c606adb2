"""The bar of a long run fits a terminal of 80 columns; a pipe gets one plain line a step."""

import io
import re

from rich.console import Console
from transformers import TrainerState

from gptoss_tune.train.metrics.progress import ProgressDisplay

LOGS = {
    "loss": 12.3456,
    "learning_rate": 1.95e-5,
    "tokens_per_second": 12345.6,
    "memory_gib": 76.54,
}


def shown(terminal):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    display = ProgressDisplay(console)
    state = TrainerState(is_world_process_zero=True, global_step=11_999, max_steps=20_000)
    display.on_train_begin(None, state, None)
    state.global_step = 12_000
    display.on_step_end(None, state, None)
    display.on_log(None, state, None, LOGS)
    display.close()
    return stream.getvalue()


def test_the_bar_and_its_figures_take_one_line():
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(True)).replace("\r", "\n").splitlines()
    last = [frame for frame in frames if frame.strip()][-1]
    for figure in ("12000/20000", "loss 12.346", "lr 1.9e-5", "12,346 tok/s", "76.5 GiB", "eta"):
        assert figure in last, last
    assert "…" not in last


def test_a_pipe_gets_a_plain_line():
    assert shown(False).strip() == (
        "step 12000/20000  loss 12.346  lr 1.9e-5  12,346 tok/s  76.5 GiB"
    )


def test_a_held_out_loss_that_is_no_number_is_warned_about():
    for loss, warned in ((1.5, False), (float("nan"), True), (float("inf"), True)):
        console = Console(file=io.StringIO(), width=200)
        display = ProgressDisplay(console)
        state = TrainerState(is_world_process_zero=True, global_step=2, max_steps=2)
        display.on_log(None, state, None, {"eval_loss": loss})
        said = console.file.getvalue()
        assert said.startswith("step 2: eval loss ")
        assert (f"warning: the held-out loss is {loss}: " in said) == warned
