import json

import pytest

from gptoss_tune.errors import CheckpointError, DataError, MachineError, RecipeError
from gptoss_tune.train import folder
from gptoss_tune.train.run import train


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


def leave_record(run, recipe, **facts):
    record = {"recipe": recipe.model_dump(mode="json"), **facts}
    (run / "run.json").write_text(json.dumps(record))


def test_a_folder_with_anything_else_in_it_is_left_alone(recipe, run):
    (run / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="is not empty and holds no run"):
        train(recipe())
    assert [p.name for p in run.iterdir()] == ["thesis.tex"]


def test_another_run_is_named_by_its_differences(recipe, run):
    leave_record(run, recipe("train.learning_rate=1e-3", "train.seed=4"), status="stopped")
    with pytest.raises(RecipeError) as error:
        train(recipe())
    assert "train.learning_rate: 0.001 there, 0.005 here" in str(error.value)
    assert "train.seed: 4 there, 0 here" in str(error.value)


def test_a_finished_run_is_not_trained_over(recipe, run):
    leave_record(run, recipe(), status="finished")
    with pytest.raises(RecipeError, match="is finished"):
        train(recipe())


def test_resume_never_refuses_a_folder_with_a_run(recipe, run):
    leave_record(run, recipe(), status="stopped")
    with pytest.raises(RecipeError, match=r"train\.resume is never"):
        train(recipe("train.resume=never"))


def test_how_often_to_save_may_change_between_a_run_and_its_continuation(recipe, run):
    leave_record(run, recipe("train.save_steps=1"), status="stopped")
    start = folder.claim(recipe("train.save_steps=2"))
    assert start.checkpoint is None
    assert "starts again from step 0" in start.notes[0]


def test_a_damaged_checkpoint_that_was_named_is_refused(recipe, run):
    (run / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointError, match="no readable manifest"):
        train(recipe(f"train.resume={run / 'checkpoint-3'}"))


def test_an_unreadable_record_is_said_and_kept(recipe, run):
    (run / "run.json").write_text("{torn")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        folder.claim(recipe())
    assert (run / "run.json").read_text() == "{torn"


def test_an_empty_dataset_stops_before_weights_are_read(recipe, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="empty"):
        train(recipe(f"data.train={empty}"))


def test_no_room_for_checkpoints_is_said_before_the_first_step(recipe, tmp_path, monkeypatch):
    """The disk is asked through the standard library, which here answers for a full one."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(MachineError, match=r"needs .* GiB for its checkpoints"):
        train(recipe())
    assert not (tmp_path / "run" / "run.json").exists()
