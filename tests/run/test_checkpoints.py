import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from gptoss_tune.errors import CheckpointError
from gptoss_tune.run import checkpoints
from gptoss_tune.run.folder import STAGING


def make(run, step, text="weights", owner="this", **facts):
    staged = checkpoints.stage(run)
    (staged / "sub").mkdir()
    (staged / "adapter.safetensors").write_text(text)
    (staged / "sub" / "state.json").write_text("{}")
    facts = {"run_id": owner, "step": step, "fingerprint": {"seed": 0}, **facts}
    checkpoints.publish(staged, run / f"checkpoint-{step}", **facts)
    return run / f"checkpoint-{step}"


def test_published_checkpoint_verifies(tmp_path):
    folder = make(tmp_path, 3)
    manifest = checkpoints.verify(folder, "this")
    assert manifest.facts == {"run_id": "this", "step": 3, "fingerprint": {"seed": 0}}
    assert set(manifest.files) == {"adapter.safetensors", "sub/state.json"}
    assert not (tmp_path / STAGING).exists()


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


def flip_manifest(folder):
    path = folder / checkpoints.MANIFEST
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


def no_manifest(folder):
    (folder / checkpoints.MANIFEST).unlink()


def manifest_is_a_folder(folder):
    no_manifest(folder)
    (folder / checkpoints.MANIFEST).mkdir()


def manifest_is_a_pipe(folder):
    no_manifest(folder)
    os.mkfifo(folder / checkpoints.MANIFEST)


def names_a_file_outside(folder):
    path = folder / checkpoints.MANIFEST
    content = json.loads(path.read_text())
    content["files"]["../secret.json"] = content["files"].pop("sub/state.json")
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))
    (folder / "sub" / "state.json").rename(folder.parent / "secret.json")


def add_a_file(folder):
    (folder / "extra.json").write_text("{}")


def add_a_pickle(folder):
    (folder / "optimizer.pt").write_bytes(b"\x80\x02.")


def link_outside(folder):
    target = folder.parent / "elsewhere.json"
    (folder / "sub" / "state.json").rename(target)
    (folder / "sub" / "state.json").symlink_to(target)


def link_a_folder(folder):
    (folder / "sub").rename(folder.parent / "elsewhere")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")


def link_itself(folder):
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def pipe_for_a_file(folder):
    drop(folder)
    os.mkfifo(folder / "adapter.safetensors")


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip, "adapter.safetensors is damaged"),
        (cut, "state.json is damaged"),
        (drop, "adapter.safetensors is missing"),
        (tear_manifest, "no readable manifest"),
        (flip_manifest, "manifest.json is damaged"),
        (no_manifest, "no readable manifest"),
        (manifest_is_a_folder, "no readable manifest"),
        (manifest_is_a_pipe, "no readable manifest"),
        (names_a_file_outside, "secret.json is missing"),
        (add_a_file, "extra.json is not in the manifest"),
        (add_a_pickle, "optimizer.pt is neither safetensors nor JSON"),
        (link_outside, "state.json is a link"),
        (link_a_folder, "sub is a link"),
        (link_itself, "is a link"),
        (pipe_for_a_file, "is a link or device"),
    ],
)
def test_damage_is_found_and_the_newest_whole_one_taken(tmp_path, damage, message):
    whole, newer = make(tmp_path, 9), make(tmp_path, 10)
    damage(newer)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.verify(newer)
    found, passed_over = checkpoints.newest_complete(tmp_path, "this")
    assert found is not None and found[0] == whole
    assert len(passed_over) == 1 and message in passed_over[0]
    # The run goes on from 9 and comes to 10 again.
    (aside,) = checkpoints.set_aside_newer(tmp_path, 9)
    assert aside.name == "refused-checkpoint-10" and os.path.lexists(aside)
    make(tmp_path, 10)
    checkpoints.verify(tmp_path / "checkpoint-10", "this")


def test_a_checkpoint_of_another_run_or_another_name_is_passed_over(tmp_path):
    make(tmp_path, 4)
    make(tmp_path, 6, owner="other")
    (make(tmp_path, 5)).rename(tmp_path / "checkpoint-7")
    found, passed_over = checkpoints.newest_complete(tmp_path, "this")
    assert found is not None and found[0].name == "checkpoint-4"
    assert "checkpoint-7: holds step 5; its name was changed" in passed_over[0]
    assert "checkpoint-6: is a checkpoint of another run (other, not this)" in passed_over[1]


def test_nothing_that_was_set_aside_is_replaced(tmp_path):
    for text in ("first", "second"):
        make(tmp_path, 2, text)
        checkpoints.set_aside_newer(tmp_path, 0)
    kept = sorted(tmp_path.glob("refused-*/adapter.safetensors"))
    assert [path.read_text() for path in kept] == ["first", "second"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path):
    whole, locked = make(tmp_path, 1), make(tmp_path, 2)
    locked.chmod(0)
    found, passed_over = checkpoints.newest_complete(tmp_path)
    locked.chmod(0o700)
    assert found is not None and found[0] == whole and "checkpoint-2" in passed_over[0]


def test_a_pickle_is_not_published(tmp_path):
    staged = checkpoints.stage(tmp_path)
    (staged / "training_args.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match="neither safetensors nor JSON"):
        checkpoints.publish(staged, tmp_path / "checkpoint-1", run_id="this", step=1)
    assert not (tmp_path / "checkpoint-1").exists()


def test_newest_is_by_number_not_by_name(tmp_path):
    for step in (2, 10, 9):
        make(tmp_path, step)
    found, _ = checkpoints.newest_complete(tmp_path)
    assert found is not None and found[0] == tmp_path / "checkpoint-10"
    checkpoints.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoints.published(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_what_a_kept_checkpoint_needs_is_kept_and_what_another_needed_is_not(tmp_path):
    for step in (1, 2, 3, 4, 5):
        make(tmp_path, step)
    needs = {"checkpoint-5": {5}, "checkpoint-4": {2, 9}, "checkpoint-3": {1}}
    checkpoints.prune(tmp_path, 2, lambda kept: needs[kept.name])
    assert [checkpoints.step_of(path) for path in checkpoints.published(tmp_path)] == [5, 4, 2]


def test_a_crash_before_the_rename_leaves_no_checkpoint(tmp_path):
    staged = checkpoints.stage(tmp_path)
    (staged / "adapter.safetensors").write_text("half")
    assert checkpoints.newest_complete(tmp_path) == (None, [])
    assert not any(checkpoints.stage(tmp_path).iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="open files are named through /proc")
def test_every_byte_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    """What a power loss leaves is what was synced: the library's calls are watched, and made."""
    done = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def watched_rename(path, target):
        done.append(f"{path} -> {target}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    final = make(tmp_path, 3)
    staging = tmp_path / STAGING
    named = done.index(f"{staging} -> {final}")
    files = ("adapter.safetensors", "sub/state.json", checkpoints.MANIFEST, "sub", ".")
    assert {str(staging / name) for name in files} <= set(done[:named])
    assert str(tmp_path) in done[named:]


def test_nothing_is_replaced(tmp_path):
    make(tmp_path, 1)
    with pytest.raises(CheckpointError, match="exists already"):
        make(tmp_path, 1)
