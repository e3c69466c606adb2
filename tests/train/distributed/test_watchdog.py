"""A rank that is killed or freezes: the other ends by itself and says which one, and where."""

import json
import os
import signal

import pytest

from gptoss_tune.errors import run_command
from gptoss_tune.recipe import load_recipe
from gptoss_tune.run.checkpoints import verify
from gptoss_tune.train.run import train
from gptoss_tune.train.sft import WeightedSftTrainer

TIMEOUT_S = 20
"""Of a silent rank; a busy machine must not be taken for a frozen one."""


def struck_in_step_3(recipe_file, overrides, log, number):
    """What each rank does: train, and rank 1 gets a signal that it cannot catch."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    original = WeightedSftTrainer.training_step

    def strike(self, *args, **kwargs):
        if os.environ["RANK"] == "1" and self.state.global_step == 2:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    WeightedSftTrainer.training_step = strike
    run_command(lambda: train(load_recipe(recipe_file, overrides)), debug=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "rank 1 was killed or crashed: its process is gone"),
        (signal.SIGSTOP, f"rank 1 gave no sign of life for {TIMEOUT_S} s: frozen"),
    ],
    ids=["killed", "frozen"],
)
def test_a_lost_rank_is_named_and_nothing_is_lost(
    recipe_file, on_ranks, losses, tmp_path, number, said
):
    overrides = ["train.save_steps=2", "train.per_device_train_batch_size=1"]
    overrides.append(f"distributed.timeout_seconds={TIMEOUT_S}")
    log = tmp_path / "log"
    first, _ = on_ranks(2, struck_in_step_3, recipe_file, overrides, log, number, wait_for=1)
    assert first == 75
    message = log.read_text()
    assert f"stopped: {said}" in message and "rank 0 stops after step 2" in message
    assert "Traceback" not in message
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "stopped" and record["reason"].startswith(said)
    verify(run / "checkpoint-2", record["run_id"])
    assert not (run / "adapter").exists() and list(losses(run)) == [1, 2]
