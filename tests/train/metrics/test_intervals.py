"""When a run logs, saves and evaluates, where the intervals do not divide each other."""

import json

import pytest

from gptoss_tune.files.strict_json import read_object
from gptoss_tune.train import sft
from gptoss_tune.train.run import train


class Killed(BaseException):
    """Stands for a process that dies between two steps."""


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def dies_at(monkeypatch):
    """Return a function that lets the next run die after the line of a step."""

    def die(step):
        original = sft.WeightedSftTrainer.log

        def log(self, logs, start_time=None):
            original(self, logs, start_time)
            if self.state.global_step == step:
                raise Killed

        monkeypatch.setattr(sft.WeightedSftTrainer, "log", log)

    yield die
    monkeypatch.undo()


@pytest.mark.slow
def test_no_step_is_lost_between_lines_and_a_resumed_run_has_its_own_intervals(
    recipe, losses, tmp_path, dies_at, monkeypatch
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(f"train.output_dir={whole}", "train.max_steps=7"))
    each = losses(whole)

    def mean(first, last):
        return pytest.approx(sum(each[n] for n in range(first, last + 1)) / (last - first + 1))

    settings = (f"train.output_dir={parts}", "train.max_steps=7")
    dies_at(4)
    with pytest.raises(Killed):
        train(recipe(*settings, "train.logging_steps=4", "train.save_steps=3"))
    monkeypatch.undo()
    # The line of a checkpoint ends the sum that the checkpoint does not hold.
    assert losses(parts) == {3: mean(1, 3), 4: mean(4, 4)}
    summary = train(recipe(*settings, "train.logging_steps=2", "train.save_steps=2"))
    assert losses(parts) == {3: mean(1, 3), 4: mean(4, 4), 6: mean(5, 6), 7: mean(7, 7)}
    assert {path.name for path in parts.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-7"}
    assert summary.loss == each[7]
    tokens = [row["tokens"] for row in lines(whole) if "tokens" in row]
    assert [row["tokens"] for row in lines(parts) if "tokens" in row] == [
        tokens[n - 1] for n in (3, 4, 6, 7)
    ]
    loads = [json.loads(line) for line in (parts / "layers.jsonl").read_text("utf-8").splitlines()]
    assert [(row["step"], row["load_steps"]) for row in loads if "expert_load" in row] == [
        (1, 1),
        (4, 1),
        (6, 2),
        (7, 1),
    ]
    for row in loads[1:]:
        steps = row["load_steps"]
        read = tokens[row["step"] - 1] - tokens[row["step"] - 1 - steps]
        # The last token of each of a step's 2 rows predicts nothing; 4 experts for the others.
        assert sum(row["expert_load"][0]) == 4 * (read - 2 * steps)


def test_a_run_shorter_than_its_logging_interval_has_a_loss(recipe, losses, tmp_path):
    summary = train(recipe("train.logging_steps=10", "train.max_steps=2"))
    assert losses(tmp_path / "run") == {2: summary.loss}
    record = read_object(tmp_path / "run" / "run.json")  # strict: NaN is no JSON
    assert record["loss"] == record["losses"]["last"]["loss"] == summary.loss
