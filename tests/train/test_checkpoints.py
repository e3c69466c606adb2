import pytest

from gptoss_tune.errors import CheckpointError
from gptoss_tune.train import checkpoints


def make(run, step, text="weights"):
    staged = checkpoints.stage(run)
    (staged / "sub").mkdir()
    (staged / "adapter.safetensors").write_text(text)
    (staged / "sub" / "state.json").write_text("{}")
    checkpoints.publish(staged, run / f"checkpoint-{step}")
    return run / f"checkpoint-{step}"


def test_published_checkpoint_verifies(tmp_path):
    folder = make(tmp_path, 3)
    checkpoints.verify(folder)
    assert not (tmp_path / checkpoints.STAGING).exists()


def flip(folder):
    path = folder / "adapter.safetensors"
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)


def cut(folder):
    (folder / "sub" / "state.json").write_text("")


def drop(folder):
    (folder / "adapter.safetensors").unlink()


def tear_manifest(folder):
    path = folder / checkpoints.MANIFEST
    path.write_text(path.read_text()[:20])


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip, "adapter.safetensors is damaged"),
        (cut, "state.json is damaged"),
        (drop, "adapter.safetensors is missing"),
        (tear_manifest, "no readable manifest"),
    ],
)
def test_damage_is_found_and_the_newest_whole_one_taken(tmp_path, damage, message):
    whole, newer = make(tmp_path, 9), make(tmp_path, 10)
    damage(newer)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.verify(newer)
    found, passed_over = checkpoints.newest_complete(tmp_path)
    assert found == whole
    assert len(passed_over) == 1 and message in passed_over[0]


def test_newest_is_by_number_not_by_name(tmp_path):
    for step in (2, 10, 9):
        make(tmp_path, step)
    assert checkpoints.newest_complete(tmp_path)[0] == tmp_path / "checkpoint-10"
    checkpoints.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoints.published(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_a_crash_before_the_rename_leaves_no_checkpoint(tmp_path):
    staged = checkpoints.stage(tmp_path)
    (staged / "adapter.safetensors").write_text("half")
    assert checkpoints.newest_complete(tmp_path) == (None, [])
    assert not any(checkpoints.stage(tmp_path).iterdir())


def test_nothing_is_replaced(tmp_path):
    make(tmp_path, 1)
    with pytest.raises(CheckpointError, match="exists already"):
        make(tmp_path, 1)
