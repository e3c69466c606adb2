"""A base is known by all its bytes, which are read once while its files stay as they are."""

import json
import os
import shutil

import pytest

from gptoss_tune.errors import CheckpointError
from gptoss_tune.harmony.dataset.cache import cache_folder
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import fingerprint as fingerprint_module
from gptoss_tune.weights import open_checkpoint

SIZES = {"layers": 1, "experts": 2, "hidden": 32, "intermediate": 64}


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base of its own, a cache of its own, and no wait until a file is old enough for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint_module, "_YOUNG_NS", -1)
    return tiny_checkpoint(tmp_path / "base", seed=1, **SIZES)


def flip_past_the_first_4_kib(base, name="lm_head.weight"):
    checkpoint = open_checkpoint(base)
    file = checkpoint.file_of(name)
    at = file.entries[name].offset + 4096
    with file.path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0x1F]))


def test_a_byte_past_the_first_4_kib_makes_another_base(base):
    checkpoint = open_checkpoint(base)
    before = checkpoint.fingerprint()
    assert checkpoint.is_base_of(before) and checkpoint.is_base_of({})
    flip_past_the_first_4_kib(base)
    other = open_checkpoint(base)
    after = other.fingerprint()
    assert (after["config"], after["weights"]) == (before["config"], before["weights"])
    assert after["content"] != before["content"]
    assert not other.is_base_of(before)
    assert other.is_base_of({"weights": before["weights"]}), "all that an earlier version kept"
    assert not other.is_base_of({"weights": "0" * 64})


def test_the_bytes_are_read_once(base, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(base)
    assert checkpoint.unhashed_bytes() == checkpoint.nbytes()
    expected = checkpoint.fingerprint()
    again = open_checkpoint(base)
    assert again.unhashed_bytes() == 0

    def unread(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(fingerprint_module, "_tensor_hash", unread)
    assert again.fingerprint() == expected
    link = tmp_path / "link"
    link.symlink_to(base)
    assert open_checkpoint(link).fingerprint() == expected


def test_a_file_with_the_size_and_the_time_of_the_one_before_is_read(base):
    """As ``cp -p`` and ``rsync -t`` leave it: only the time of the inode's change is another."""
    file = base / "model.safetensors"
    about = file.stat()
    before = open_checkpoint(base).fingerprint()
    flip_past_the_first_4_kib(base)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file.stat().st_mtime_ns == about.st_mtime_ns
    assert open_checkpoint(base).fingerprint()["content"] != before["content"]


def test_a_copy_and_other_shards_are_the_same_base(base, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    shards = tiny_checkpoint(tmp_path / "shards", seed=1, max_shard_size=200_000, **SIZES)
    assert len(list(shards.glob("*.safetensors"))) > 1
    expected = open_checkpoint(base).fingerprint()
    for folder in (tmp_path / "copy", shards):
        assert open_checkpoint(folder).fingerprint()["content"] == expected["content"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"tensors": 3}', "null"])
def test_a_damaged_cache_is_read_anew(base, damage):
    expected = open_checkpoint(base).fingerprint()
    (kept,) = (cache_folder().parent / "bases").iterdir()
    facts = json.loads(kept.read_text())
    kept.write_text(damage)
    assert open_checkpoint(base).fingerprint() == expected
    assert json.loads(kept.read_text()) == facts, "and kept again"
    facts["tensors"]["lm_head.weight"] = 7
    kept.write_text(json.dumps(facts))
    assert open_checkpoint(base).fingerprint() == expected


def test_without_a_cache_the_base_is_read_each_time(base, tmp_path, monkeypatch):
    expected = open_checkpoint(base).fingerprint()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_checkpoint(base).fingerprint() == expected


def test_a_file_that_changed_a_moment_ago_is_not_kept(base, monkeypatch):
    monkeypatch.setattr(fingerprint_module, "_YOUNG_NS", 3_600_000_000_000)
    open_checkpoint(base).fingerprint()
    assert open_checkpoint(base).unhashed_bytes() > 0


def test_a_file_that_is_cut_while_it_is_read_is_said(base):
    checkpoint = open_checkpoint(base)
    file = base / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    with pytest.raises(CheckpointError, match="the file was cut while it was read"):
        checkpoint.fingerprint()
