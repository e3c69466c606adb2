"""A tracker that does not answer delays a run by seconds, asks nothing and loses nothing."""

import os
import pty
import sys
import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.recipe.schema import TrackingSection
from gptoss_tune.train import callbacks


@pytest.fixture
def track(tmp_path, monkeypatch):
    """Return a function that logs two steps to a service at a closed port."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(callbacks, "_WANDB_START_S", 3.0)
    state = TrainerState(is_world_process_zero=True)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")

    def run():
        tracker = callbacks.WandbMetrics(TrackingSection(wandb="online"), tmp_path, {"a": 1})
        tracker.on_train_begin(arguments, state, TrainerControl())
        for step in (1, 2):
            state.global_step = step
            tracker.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0 / step})
        tracker.close()
        return list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))

    return run


def test_without_a_key_nobody_is_asked(track, monkeypatch, capsys):
    """Standard input is a terminal here, at which nobody sits.

    The first test of the file: wandb remembers a key as long as the process lives.
    """
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    master, slave = pty.openpty()
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert len(track()) == 1
        assert sys.stdin is terminal
    os.close(master)
    assert "No API key" in capsys.readouterr().err


def test_an_unreachable_service_is_said_and_metrics_are_kept(track, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    begun = time.monotonic()
    assert len(track()) == 1
    assert time.monotonic() - begun < 60, "the service's own limit is 90 s"
    said = capsys.readouterr().err
    assert "wandb takes no metrics" in said and "kept offline in" in said
    assert "a" * 40 not in said
