"""A tracker that does not answer delays a run by seconds, asks nothing and loses nothing."""

import http.server
import os
import pty
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import wandb
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.recipe.schema import TrackingSection
from gptoss_tune.train.metrics import wandb_tracker


@pytest.fixture
def track(tmp_path, monkeypatch):
    """Return a function that logs two steps to a service, at a closed port unless told."""
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(wandb_tracker, "_START_S", 3.0)
    state = TrainerState(is_world_process_zero=True)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")

    def run(url="http://127.0.0.1:9"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        wandb.teardown()  # it remembers the address as long as the process lives
        tracking = TrackingSection(wandb="online")
        tracker = wandb_tracker.WandbTracker(tracking, tmp_path, {"a": 1}, "0123abcd")
        tracker.on_train_begin(arguments, state, TrainerControl())
        for step in (1, 2):
            state.global_step = step
            tracker.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0 / step})
        tracker.close()
        return list((tmp_path / "wandb").glob("offline-run-*-0123abcd/*.wandb"))

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


@pytest.mark.slow
def test_an_unreachable_service_is_said_and_metrics_are_kept(track, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    begun = time.monotonic()
    assert len(track()) == 1
    assert time.monotonic() - begun < 60, "the service's own limit is 90 s"
    said = capsys.readouterr().err
    assert "wandb takes no metrics" in said and "kept offline in" in said
    assert "a" * 40 not in said


def test_a_key_that_is_not_taken_is_said_and_metrics_are_kept(track, monkeypatch, capsys):
    """A key that has expired, or belongs to another service."""
    monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_PUT = do_POST

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert len(track(f"http://127.0.0.1:{server.server_port}")) == 1
        server.shutdown()
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "wandb takes no metrics" in line]
    assert len(lines) == 1 and "kept offline in" in lines[0] and "wandb login" in lines[0]
    assert re.search(r"takes no metrics \(\w+Error", lines[0]), lines[0]
    assert "b" * 40 not in said
    assert asked and not [path for path in asked if "otel" in path], "telemetry is off"


CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


@pytest.mark.skipif(not CHILDREN.exists(), reason="the process is found through /proc")
def test_a_killed_process_of_wandb_ends_no_run(tmp_path, capsys):
    wandb.teardown()
    before = set(CHILDREN.read_text().split())
    state = TrainerState(is_world_process_zero=True)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    tracking = TrackingSection(wandb="offline")
    tracker = wandb_tracker.WandbTracker(tracking, tmp_path, {}, "4567abcd")
    tracker.on_train_begin(arguments, state, TrainerControl())
    (service,) = set(CHILDREN.read_text().split()) - before
    os.kill(int(service), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while tracker._taking and time.monotonic() < deadline:
        state.global_step += 1
        tracker.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
        time.sleep(0.05)
    for _ in range(3):
        tracker.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("WandbTracker takes no more metrics after step") == 1
    assert "every line is in its metrics.jsonl" in said
    wandb.teardown()  # as at the end of the process: nothing is left that would fail
