"""Lines of metrics on the way through a crash: synced with a checkpoint, never lost in silence."""

import json
import os

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.errors import MachineError
from gptoss_tune.run import checkpoints
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.metrics.metrics_file import MetricsFile, cut_back
from gptoss_tune.train.metrics.trackers import Tracker


def line(step, **figures):
    return json.dumps({"step": step, "loss": 1.0, **figures}) + "\n"


@pytest.fixture
def run(tmp_path):
    """A run of four steps, each with its lines."""
    folder = RunFolder(tmp_path)
    for path in (folder.metrics, folder.layers):
        path.write_text("".join(line(step) for step in (1, 2, 3, 4)))
    return folder


def steps(path):
    return [json.loads(text)["step"] for text in path.read_text().splitlines()]


def test_whole_files_are_cut_back_without_a_word(run):
    assert cut_back(run, 4) == []
    assert steps(run.metrics) == steps(run.layers) == [1, 2, 3, 4]


def test_lines_past_the_checkpoint_are_told(run):
    with run.metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # torn, as a kill leaves it
    assert cut_back(run, 3) == [
        "metrics.jsonl: 1 line past step 3 are dropped, those steps are trained again",
        "layers.jsonl: 1 line past step 3 are dropped, those steps are trained again",
    ]
    assert steps(run.metrics) == [1, 2, 3]


def test_a_run_from_another_runs_checkpoint_has_no_layers_of_step_1(run):
    run.metrics.write_text("".join(line(step) for step in (101, 102, 103)))
    run.layers.write_text("")
    assert cut_back(run, 103) == []


@pytest.mark.parametrize(
    ("content", "last"),
    [
        ("", 0),
        (line(1) + line(2), 2),
        (line(1) + "\0" * 80, 1),
        (line(1) + "\0" * 80 + "\n" + line(3), 3),
        ("not json\n" * 4, 0),
        (line(1) + line("2") + line(True) + "[]\n", 1),
        (None, 0),
    ],
    ids=["empty", "shorter", "zeros at the end", "zeros", "no JSON", "no steps", "gone"],
)
def test_what_a_power_loss_took_is_told(run, content, last):
    if content is None:
        run.metrics.unlink()
    else:
        run.metrics.write_text(content)
    (note,) = cut_back(run, 4)
    assert f"ends at step {last}, and the run goes on from step 4" in note


def test_damaged_lines_before_the_end_are_counted(run):
    run.metrics.write_text(line(1) + "\0\0\n" + "{\n" + line(4))
    (note,) = cut_back(run, 4)
    assert "2 damaged lines were dropped, it ends at step 4" in note


def test_layers_have_no_line_for_every_step_but_for_the_first(run):
    run.layers.write_text(line(1))
    assert cut_back(run, 4) == []
    run.layers.write_text("")
    (note,) = cut_back(run, 4)
    assert note.startswith("layers.jsonl: it ends at step 0")


def test_lines_are_synced(run, monkeypatch):
    synced = []
    original = os.fsync

    def fsync(number):
        synced.append(os.fstat(number).st_ino)
        original(number)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.sync_lines(run.path)
    assert synced == [path.stat().st_ino for path in (run.metrics, run.layers)]
    run.layers.unlink()
    checkpoints.sync_lines(run.path)


class Broken(Tracker):
    """A tracker that fails at one of its three places."""

    def __init__(self, place):
        self.place, self.calls = place, []

    def _do(self, what):
        self.calls.append(what)
        if what == self.place:
            raise BrokenPipeError(32, "hf_" + "a" * 30)

    def open(self, step):
        self._do("open")

    def write(self, state, logs):
        self._do("write")

    def shut(self):
        self._do("shut")


@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ("open", ["open"]),
        ("write", ["open", "write"]),
        ("shut", ["open", "write", "write", "shut"]),
    ],
)
def test_a_tracker_that_fails_is_given_up_with_one_word(tmp_path, capsys, place, calls):
    tracker = Broken(place)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    state = TrainerState(is_world_process_zero=True)
    tracker.on_train_begin(arguments, state, TrainerControl())
    for _ in range(2):
        tracker.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
    tracker.close()
    assert tracker.calls == calls
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the run goes on" in said and "hf_" not in said


def test_the_metrics_themselves_are_no_luxury(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "nowhere" / "metrics.jsonl")
    with pytest.raises(MachineError):
        file.on_train_begin(None, TrainerState(is_world_process_zero=True), TrainerControl())
    file.close()  # as a run does; what was never opened needs no closing
