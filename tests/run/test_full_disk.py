"""A real refusal of the kernel: files may not grow past a limit (EFBIG), as on a full disk."""

import errno
import json
import os
import resource

import pytest

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.run import checkpoints
from gptoss_tune.run.checkpoints import disk_full
from gptoss_tune.run.jsonl import append_line, open_lines
from gptoss_tune.run.record import update_record


@pytest.fixture
def limit():
    """Return a function that forbids files larger than some bytes, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def at_most(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield at_most
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_is_written_whole_or_not_at_all(tmp_path, limit):
    path = tmp_path / "metrics.jsonl"
    stream = open_lines(path)
    append_line(stream, json.dumps({"step": 1}))
    limit(path.stat().st_size + 4)
    with pytest.raises(MachineError, match=r"metrics\.jsonl: cannot be written"):
        append_line(stream, json.dumps({"step": 2}))
    stream.close()
    assert path.read_text() == '{"step": 1}\n'


def test_the_record_stays_as_it_was(tmp_path, limit):
    update_record(tmp_path, run_id="this", status="running")
    limit(10)
    with pytest.raises(MachineError, match=r"run\.json"):
        update_record(tmp_path, status="finished")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_a_save_without_room_says_needs_and_has_and_keeps_the_last(tmp_path, limit):
    from safetensors.torch import save_file
    from torch import zeros

    staged = checkpoints.stage(tmp_path)
    save_file({"a": zeros(1000)}, staged / "adapter_model.safetensors")
    checkpoints.publish(staged, tmp_path / "checkpoint-2", step=2)
    limit(1000)
    with pytest.raises(MachineError) as error, disk_full(tmp_path):
        staged = checkpoints.stage(tmp_path)
        save_file({"a": zeros(1000)}, staged / "adapter_model.safetensors")
    assert "no room for a checkpoint: it needs about 0.0 MiB, the disk has" in str(error.value)
    assert "checkpoint-2 is kept" in str(error.value)
    assert error.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    checkpoints.verify(tmp_path / "checkpoint-2")


def test_a_save_without_inodes_does_not_speak_of_free_space(tmp_path, monkeypatch):
    about = list(os.statvfs(tmp_path))
    about[7] = 0  # f_favail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(about))
    with pytest.raises(MachineError, match="no inodes left") as error, disk_full(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "MiB free" not in str(error.value) and "remove files, then the same" in str(error.value)


def test_a_folder_that_was_renamed_under_a_run_is_not_made_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    update_record(run, run_id="this", status="running")
    run.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"not there any more.* Move it back"), disk_full(run):
        checkpoints.stage(run)
    for facts in ({"status": "stopped"}, {"tokens": {}}):
        with pytest.raises(CheckpointError, match=r"run\.json: is not there any more"):
            update_record(run, **facts)
    assert not run.exists()
    (tmp_path / "moved").rename(run)
    assert checkpoints.stage(run).is_dir()
    assert update_record(run, status="finished")["run_id"] == "this"


def test_other_errors_of_a_save_keep_their_names(tmp_path):
    with pytest.raises(CheckpointError, match="exists already"), disk_full(tmp_path):
        raise CheckpointError("exists already")
    with pytest.raises(RuntimeError, match="a bug"), disk_full(tmp_path):
        raise RuntimeError("a bug")


def test_text_is_replaced_only_when_whole(tmp_path, limit):
    path = tmp_path / "recipe.yaml"
    write_text(path, "before")
    limit(3)
    with pytest.raises(MachineError):
        write_text(path, "afterwards")
    assert path.read_text() == "before"
