"""A merge killed at any point is completed by the next run, with the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.files.atomic import staging_folder

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
@pytest.mark.parametrize("expert_format", ["bf16", "mxfp4"])
def test_ten_kills_give_ten_identical_results(base, adapter, tmp_path, expert_format):
    arguments = [str(base), str(adapter), str(tmp_path), expert_format, "10"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["identical"] == 10
    assert result["interrupted"] >= 3, "too few kills fell into the merge to prove anything"
    assert result["kept_shards"] >= 1
    assert result["files"] > 15
    assert result["left"] == []


class Stop(BaseException):
    """Stands for Ctrl-C."""


def stop_after(shards):
    seen = []

    def progress(done, total):
        seen.append(done)
        if len(seen) == shards:
            raise Stop

    return progress


def test_a_resumed_merge_keeps_whole_shards(base, adapter, merged, tmp_path, lab):
    checkpoint, opened = lab.open(base, adapter)
    out = tmp_path / "out"
    options = MergeOptions(max_shard_size=150_000)
    with pytest.raises(Stop):
        merge(checkpoint, opened, out, options, progress=stop_after(3))
    assert not out.exists()
    kept = {p.name: p.stat().st_mtime_ns for p in staging_folder(out).glob("*.safetensors")}
    assert len(kept) == 3
    merge(checkpoint, opened, out, options)
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    assert {name: after[name] for name in kept} == kept
    assert len(after) > 3
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_merge_does_not_continue_this_one(base, adapter, tmp_path, lab):
    checkpoint, opened = lab.open(base, adapter)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        options = MergeOptions(max_shard_size=150_000)
        merge(checkpoint, opened, out, options, progress=stop_after(3))
    lab.merge(base, {adapter: -1.0}, out, max_shard_size=150_000)
    lab.merge(base, {adapter: -1.0}, tmp_path / "expected", max_shard_size=150_000)
    assert lab.digests(out) == lab.digests(tmp_path / "expected")


@pytest.mark.parametrize("damage", ["a bit", "cut", "no note", "a torn note"])
def test_a_damaged_staged_shard_is_written_again(base, adapter, tmp_path, lab, damage):
    checkpoint, opened = lab.open(base, adapter)
    out, options = tmp_path / "out", MergeOptions(max_shard_size=150_000)
    with pytest.raises(Stop):
        merge(checkpoint, opened, out, options, progress=stop_after(3))
    shard = sorted(staging_folder(out).glob("*.safetensors"))[1]
    note = shard.with_name(f"{shard.name}.note.json")
    content = bytearray(shard.read_bytes())
    if damage == "a bit":
        content[-100] ^= 0x10
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-100])
    elif damage == "no note":
        note.unlink()
    else:
        note.write_bytes(note.read_bytes()[:20])
    merge(checkpoint, opened, out, options)
    lab.merge(base, adapter, tmp_path / "expected", max_shard_size=150_000)
    assert lab.digests(out) == lab.digests(tmp_path / "expected")
