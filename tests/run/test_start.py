import json
import shutil
from collections import namedtuple

import pytest

from gptoss_tune.errors import CheckpointError, DataError, MachineError, RecipeError
from gptoss_tune.plan.architecture import architecture_of
from gptoss_tune.plan.disk import SMALL_FILES_BYTES, RunFiles, run_files
from gptoss_tune.run import checkpoints
from gptoss_tune.run.start import check_disk
from gptoss_tune.train.run import train


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


def leave_record(run, recipe, **facts):
    known = {"run_id": "this", "fingerprint": {}, "changes": []}
    record = {"recipe": recipe.model_dump(mode="json"), **known, **facts}
    (run / "run.json").write_text(json.dumps(record))


def leave_checkpoint(run, step, owner="this", **facts):
    staged = checkpoints.stage(run)
    (staged / "state.json").write_text("{}")
    facts = {"run_id": owner, "step": step, "fingerprint": {"batch": step}, **facts}
    checkpoints.publish(staged, run / f"checkpoint-{step}", **facts)
    return run / f"checkpoint-{step}"


def test_a_folder_with_anything_else_in_it_is_left_alone(recipe, run):
    (run / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="is not empty and holds no run"):
        train(recipe())
    assert [p.name for p in run.iterdir()] == ["thesis.tex"]


def test_a_checkpoint_that_is_not_there_is_named(recipe, tmp_path, claim):
    with pytest.raises(CheckpointError, match="checkpoint-7: no such folder; expected a checkp"):
        claim(recipe(f"train.resume={tmp_path / 'checkpoint-7'}"))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("file", "something else of that name"),
        ("file/run", "a part of its path is a file"),
        ("x" * 300, "its name is too long"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_with_the_reason(
    recipe, tmp_path, name, reason, claim
):
    (tmp_path / "file").write_text("of somebody's")
    with pytest.raises(MachineError, match=f"{name}: cannot be written: {reason}"):
        claim(recipe(f"train.output_dir={tmp_path / name}"))


def test_a_run_killed_in_its_first_file_starts_again(recipe, run, claim):
    (run / "run.json.part").write_text('{"run_id": ')
    start = claim(recipe())
    assert (start.checkpoint, start.step) == (None, 0)


def test_a_run_killed_after_its_first_file_starts_again(recipe, run, monkeypatch, claim):
    def killed(*_):
        raise SystemExit("killed")

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="killed"):
        patch.setattr("gptoss_tune.run.card.write_text", killed)
        train(recipe())
    assert [path.name for path in run.iterdir()] == ["run.json"]
    start = claim(recipe())
    assert (start.checkpoint, start.step) == (None, 0)


def test_a_finished_run_is_not_trained_over(recipe, run):
    leave_record(run, recipe(), status="finished")
    with pytest.raises(RecipeError, match="is finished"):
        train(recipe())


def test_resume_never_refuses_a_folder_with_a_run(recipe, run):
    leave_record(run, recipe(), status="stopped")
    with pytest.raises(RecipeError, match=r"train\.resume is never"):
        train(recipe("train.resume=never"))


def test_a_run_without_checkpoints_starts_again_under_its_own_name(recipe, run, claim):
    leave_record(run, recipe(), fingerprint={"batch": 2}, changes=[{"name": "steps"}])
    start = claim(recipe())
    assert (start.checkpoint, start.step, start.run_id) == (None, 0, "this")
    assert (start.before, start.changes) == ({"batch": 2}, ({"name": "steps"},))
    assert "starts again from step 0" in start.notes[0]


def test_the_newest_checkpoint_of_the_run_says_what_is_continued(recipe, run, claim):
    leave_record(run, recipe(), fingerprint={"batch": 9})
    for step, owner in ((2, "this"), (4, "this"), (6, "other")):
        leave_checkpoint(run, step, owner)
    start = claim(recipe())
    assert (start.checkpoint, start.step) == (run / "checkpoint-4", 4)
    assert start.before == {"batch": 4}
    assert "another run (other, not this)" in start.notes[0]
    assert (run / "checkpoint-6").exists(), "nothing is written before the recipe is known to fit"


def test_a_checkpoint_that_was_named(recipe, run, tmp_path, claim):
    leave_record(run, recipe())
    for step in (2, 4):
        leave_checkpoint(run, step)
    elsewhere = leave_checkpoint(tmp_path, 7, "other")
    assert claim(recipe(f"train.resume={run / 'checkpoint-4'}")).step == 4
    with pytest.raises(RecipeError, match=r"checkpoint-2 is older than .*checkpoint-4"):
        claim(recipe(f"train.resume={run / 'checkpoint-2'}"))
    with pytest.raises(CheckpointError, match="of another run"):
        claim(recipe(f"train.resume={elsewhere}"))
    with pytest.raises(CheckpointError, match="expected a folder named checkpoint-STEP"):
        claim(recipe(f"train.resume={run}"))
    # In a folder of its own, a run may go on from a checkpoint of another.
    fork = claim(recipe(f"train.resume={elsewhere}", f"train.output_dir={tmp_path / 'fork'}"))
    assert (fork.step, fork.before) == (7, {"batch": 7})
    assert fork.run_id not in ("this", "other")


def test_a_damaged_checkpoint_that_was_named_is_refused(recipe, run, claim):
    leave_record(run, recipe())
    (run / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointError, match="no readable manifest"):
        claim(recipe(f"train.resume={run / 'checkpoint-3'}"))


def test_a_record_of_another_version_is_not_guessed_at(recipe, run, claim):
    (run / "run.json").write_text(json.dumps({"recipe": {}, "run_id": "this"}))
    with pytest.raises(CheckpointError, match="does not say fingerprint, changes"):
        claim(recipe())
    leave_record(run, recipe(), changes=["train.seed"])
    with pytest.raises(CheckpointError, match=r"changes\[0\] is 'train\.seed', expected a mapping"):
        claim(recipe())


def test_an_unreadable_record_is_said_and_kept(recipe, run, claim):
    (run / "run.json").write_text("{torn")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        claim(recipe())
    assert (run / "run.json").read_text() == "{torn"


def test_an_empty_dataset_stops_before_weights_are_read(recipe, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="empty"):
        train(recipe(f"data.train={empty}"))


Usage = namedtuple("Usage", "total used free")


def test_no_room_for_checkpoints_is_said_before_the_weights_are_read(recipe, run, monkeypatch):
    """The disk is asked through the standard library, which here answers for a full one."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(MachineError, match=r"needs .* GiB for its checkpoints"):
        train(recipe())
    assert not (run / "run.json").exists()


def test_checkpoints_that_lie_there_need_no_room_again(run, monkeypatch):
    files = RunFiles(adapter=1000, checkpoint=4000, checkpoints=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 12_999))
    with pytest.raises(MachineError):
        check_disk(run, files)
    folder_of_2 = leave_checkpoint(run, 2)
    (folder_of_2 / "filler.json").write_bytes(b" " * 4000)
    check_disk(run, files)


@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit"])
def test_the_disk_is_counted_as_a_plan_counts_it(recipe, base, tmp_path, optim):
    if optim == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    settings = recipe(f"train.optim={optim}", "train.max_steps=1", "train.save_steps=1")
    train(settings)
    planned = run_files(architecture_of(str(base)), settings.lora, settings.train)
    sizes = {
        name: sum(path.stat().st_size for path in (tmp_path / "run" / name).rglob("*.*"))
        for name in ("checkpoint-1", "adapter")
    }
    assert sizes["adapter"] == pytest.approx(planned.adapter, abs=SMALL_FILES_BYTES)
    assert 0 <= planned.checkpoint - sizes["checkpoint-1"] < SMALL_FILES_BYTES
