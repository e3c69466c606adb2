"""Transformers' own trackers get every figure, continue after a resume, and end no run."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from gptoss_tune.recipe.schema import Tracker, TrackingSection
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.metrics.transformers_tracker import TransformersTracker

OWN = {"wandb", "trackio"}


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none")


def track(name, run, arguments, after, lines):
    tracker = TransformersTracker(name, TrackingSection(report_to=[name]), run)
    state = TrainerState(is_world_process_zero=True, global_step=after)
    tracker.on_train_begin(arguments, state, TrainerControl())
    for step in lines:
        state.global_step = step
        logs = {"loss": after + 1 / step, "note": "no figure"}
        tracker.on_log(arguments, state, TrainerControl(), logs=logs)
    tracker.on_log(arguments, state, TrainerControl(), logs={"eval_loss": 0.25})
    tracker.close()


def test_what_a_recipe_may_name_is_what_transformers_knows_but_for_our_own():
    assert set(Tracker.__args__) == set(INTEGRATION_TO_CALLBACK) - OWN


def test_tensorboard_keeps_the_run_in_its_folder_and_a_resume_replaces_lines(tmp_path, arguments):
    run = tmp_path / "run"
    track("tensorboard", run, arguments, 0, [1, 2, 3])
    track("tensorboard", run, arguments, 2, [3, 4])  # resumed after step 2
    events = EventAccumulator(str(RunFolder(run).tensorboard)).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({1: 1, 2: 1 / 2, 3: 2 + 1 / 3, 4: 2 + 1 / 4})
    assert [event.step for event in events.Scalars("eval/loss")] == [4]


def test_a_library_that_is_not_there_costs_a_word_and_not_the_run(tmp_path, arguments, capsys):
    track("comet_ml", tmp_path / "run", arguments, 0, [1])
    said = capsys.readouterr().err
    assert "TransformersTracker cannot be opened" in said and "the run goes on" in said


def test_other_ranks_track_nothing(tmp_path, arguments):
    tracker = TransformersTracker(
        "tensorboard", TrackingSection(report_to=["tensorboard"]), tmp_path
    )
    state = TrainerState(is_world_process_zero=False)
    tracker.on_train_begin(arguments, state, TrainerControl())
    tracker.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
    tracker.close()
    assert not RunFolder(tmp_path).tensorboard.exists()
