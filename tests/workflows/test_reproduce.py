"""Two runs held against each other: losses over the same steps, adapters value by value."""

import json

import pytest
import torch
from safetensors.torch import save_file

from gptoss_tune.workflows.reproduce import StepPair, compare

LOSSES = {1: 3.0, 2: 2.75, 3: 2.5, 4: 2.0, 5: 1.75, 6: 1.5}


@pytest.fixture
def leave_run(tmp_path):
    """Return a function from a name and lines of losses to a run's folder."""

    def leave(name, losses, value=1.0):
        adapter = tmp_path / name / "adapter"
        adapter.mkdir(parents=True)
        save_file({"lora_A": torch.full((2, 3), value)}, adapter / "adapter_model.safetensors")
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in losses.items()]
        lines.append(json.dumps({"step": 6, "eval_loss": 1.0}))
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return leave


def means(*ends):
    """Return lines of ``LOSSES`` that end at ``ends``."""
    starts = (0, *ends)
    spans = zip(starts, ends, strict=False)
    return {b: sum(LOSSES[n] for n in range(a + 1, b + 1)) / (b - a) for a, b in spans}


def test_a_line_of_a_stopped_run_is_joined_with_the_next(leave_run):
    whole = leave_run("whole", means(3, 6))
    stopped = leave_run("stopped", means(2, 3, 5, 6))
    found = compare(stopped, whole)
    assert found.verdict == "exact", "these means are exact in floating point"
    assert found.steps == (StepPair(3, 2.75, 2.75), StepPair(6, 1.75, 1.75))
    assert compare(whole, stopped).verdict == "exact"


def test_a_loss_that_differs_inside_a_joined_line_shows(leave_run):
    whole = leave_run("whole", means(3, 6))
    other = leave_run("other", {**means(2, 3, 5, 6), 5: 2.0})
    found = compare(whole, other)
    assert found.verdict == "different" and found.unequal == ()
    assert [pair.step for pair in found.steps if pair.then != pair.now] == [6]


def test_a_run_that_ended_early_is_another(leave_run):
    whole, short = leave_run("whole", means(2, 4, 6)), leave_run("short", means(2, 4))
    found = compare(whole, short)
    assert found.verdict == "different" and found.steps[-1] == StepPair(6, 1.75 - 0.125, None)


def test_an_adapter_that_differs_is_named(leave_run):
    whole, other = leave_run("whole", LOSSES), leave_run("other", LOSSES, value=1.0 + 2**-20)
    found = compare(whole, other)
    assert found.verdict == "within fp32 reduction error" and found.unequal == ("lora_A",)
    assert found.loss_difference == 0.0 and found.factor_difference == 2**-20
