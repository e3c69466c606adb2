"""Runs made of files alone, one that a process holds, and the application without a server."""

import json
import math
import os
import platform
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from gptoss_tune.ui.access import ACTION_HEADER, Access
from gptoss_tune.ui.server.app import Services, application

HOST = "127.0.0.1:8765"
RECIPE = {
    "model": {"name_or_path": "openai/gpt-oss-20b"},
    "data": {"train": [{"path": "data/tiny/train.jsonl"}], "reasoning_effort": "low"},
    "train": {"max_steps": 120, "output_dir": "runs/first", "max_grad_norm": 1.0},
    "method": {"name": "sft"},
}


def metrics(step, steps):
    """Return a line of metrics that looks like one of a run that learns."""
    noise = math.sin(step * 12.9898) * 43758.5453 % 1 - 0.5
    loss = 0.62 + 1.9 * math.exp(-step / 18) + 0.12 * noise
    warmed = min(1.0, step / 6)
    return {
        "step": step,
        "epoch": 2 * step / steps,
        "loss": loss,
        "loss_analysis": loss * 1.12 + 0.05 * noise,
        "loss_final": loss * 0.83 - 0.04 * noise,
        "learning_rate": 2e-4 * warmed * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
        "grad_norm": 0.35 + 1.6 * math.exp(-step / 10) + 0.15 * abs(noise),
        "tokens_per_second": 5240 + 210 * noise,
        "seconds_per_step": 6.2,
        "memory_gib": 17.4 + 0.9 * (1 - math.exp(-step / 4)),
        "tokens": 32768.0 * step,
        "trained_tokens_total": 14200.0 * step,
    }


def write_lines(run, first, last, steps, held_out=20):
    """Append the lines of steps to a run's metrics."""
    with (run / "metrics.jsonl").open("a") as stream:
        for step in range(first, last + 1):
            row = metrics(step, steps)
            stream.write(json.dumps(row) + "\n")
            if step % held_out == 0 or step == steps:
                line = {"step": step, "epoch": row["epoch"], "eval_loss": row["loss"] * 1.04}
                line |= {"eval_loss_final": row["loss_final"] * 1.05}
                stream.write(json.dumps(line) + "\n")


def write_evaluation(run, step, answers):
    """Write an evaluation of ``(question, thought, answer, expected)``."""
    samples = [
        {
            "source": f"data/prompts/tiny.jsonl:{number}",
            "effort": "low",
            "prompt": [{"role": "user", "content": question}],
            "messages": [
                {"channel": "analysis", "content": thought},
                {"channel": "final", "content": answer},
            ],
            "tokens": 12 + len(thought.split()),
            "ended": "stop",
            "grade": {"passed": answer == expected, "expected": expected},
            "health": [],
        }
        for number, (question, thought, answer, expected) in enumerate(answers, 1)
    ]
    right = sum(one["grade"]["passed"] for one in samples)
    found = {
        "samples": samples,
        "graded": {"passed": right, "total": len(samples)},
        "health": {"valid": len(samples), "total": len(samples)},
    }
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / f"step-{step}.json").write_text(json.dumps(found))


def write_run(folder, *, status="finished", done=120, steps=120, recipe=(), **changes):
    """Write the files of a run; ``recipe`` replaces sections, ``changes`` entries of its record."""
    folder.mkdir(parents=True)
    written = {**RECIPE, **dict(recipe)}
    written["train"] = {**written["train"], "max_steps": steps, "output_dir": str(folder)}
    record = {
        "run_id": "0123456789abcdef",
        "status": status,
        "started": "2026-01-05T08:00:00Z",
        "recipe": written,
        "base": {"name": written["model"]["name_or_path"]},
        "environment": {"gpus": ["NVIDIA H100 80GB HBM3"], "processes": 1},
        "guard": {"warnings": []},
        "peak_memory_bytes": 18 << 30,
        **changes,
    }
    (folder / "run.json").write_text(json.dumps(record))
    if done:
        write_lines(folder, 1, done, steps)
    return folder


def hold(folder, process=None, host=None):
    """Write the lock of a process into a run's folder, as the process would."""
    number = os.getpid() if process is None else process
    (folder / ".lock").write_text(f"process {number} on {host or platform.node()}")
    return folder


@pytest.fixture(scope="session")
def write():
    """Return the functions that write a run and what comes to it."""
    return SimpleNamespace(
        run=write_run, lines=write_lines, evaluation=write_evaluation, hold=hold, metrics=metrics
    )


@pytest.fixture
def runs(tmp_path):
    """The folder of a server."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


class Client:
    """A browser that was let in, as far as a test without a browser needs one."""

    def __init__(self, services):
        self.services = services
        self.app = application(services)
        self.plain = TestClient(self.app, base_url=f"http://{HOST}", follow_redirects=False)
        self.let_in = TestClient(
            self.app,
            base_url=f"http://{HOST}",
            cookies={services.access.cookie: services.access.token},
        )

    def get(self, path, **options):
        return self.let_in.get(path, **options)

    def post(self, path, body=None, headers=(), client=None):
        sent = {"origin": f"http://{HOST}", ACTION_HEADER: self.services.access.action_token}
        return (client or self.let_in).post(
            path, json=body or {}, headers={**sent, **dict(headers)}
        )


@pytest.fixture
def client(runs, tmp_path, monkeypatch):
    """Return a client of a server for ``runs``, in a current folder of its own."""
    monkeypatch.chdir(tmp_path)
    services = Services(runs, Access(8765))
    yield Client(services)
    for job in services.close():
        job.process.kill()
