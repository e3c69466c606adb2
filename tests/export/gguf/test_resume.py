"""A merge to GGUF that is killed at any point is completed inside its file, with the same bytes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.export.gguf.container import JOURNAL, UNFINISHED
from gptoss_tune.export.merge.produce import Producer
from gptoss_tune.export.merge.staging import check_room
from gptoss_tune.files.atomic import staging_folder

SCRIPT = Path(__file__).with_name("kill_and_resume.py")
OPTIONS = {"expert_format": "mxfp4", "accept_loss": True}


class Stop(BaseException):
    """Stands for Ctrl-C."""


def stop_after(steps):
    seen = []

    def progress(done, total):
        seen.append(done)
        if len(seen) == steps:
            raise Stop

    return progress


@pytest.fixture
def stopped(light, adapter, gguf, tmp_path):
    """A merge that was stopped after 20 steps: its output and its staging folder."""
    out = tmp_path / "tuned"
    with pytest.raises(Stop):
        gguf.merge(light, adapter, out, progress=stop_after(20), **OPTIONS)
    assert not out.exists()
    return out, staging_folder(out)


def lines(staging):
    return [json.loads(line) for line in (staging / JOURNAL).read_text().splitlines()]


def recording(monkeypatch):
    """Note the steps that are computed from here on."""
    computed, produce = [], Producer.tensors

    def noting(self, step, survival):
        computed.append(step.source)
        return produce(self, step, survival)

    monkeypatch.setattr(Producer, "tensors", noting)
    return computed


def test_finished_tensors_are_kept(stopped, light, adapter, gguf, packed_gguf, lab, monkeypatch):
    out, staging = stopped
    kept = [line["step"] for line in lines(staging)]
    assert len(kept) == 20
    assert [p.name for p in staging.glob("*.gguf*")] == [f"tuned-mxfp4.gguf{UNFINISHED}"]
    computed = recording(monkeypatch)
    gguf.merge(light, adapter, out, **OPTIONS)
    assert len(computed) > 10
    assert not set(computed) & set(kept)
    assert lab.digests(out) == lab.digests(packed_gguf[0])
    assert [p.name for p in out.parent.iterdir()] == ["tuned"]


DAMAGES = ("a bit", "cut", "torn line", "no journal", "between", "header")


@pytest.mark.parametrize(
    "damage", [pytest.param(d, marks=[pytest.mark.slow] * (d != "a bit")) for d in DAMAGES]
)
def test_what_was_damaged_meanwhile_is_written_again(
    stopped, light, adapter, gguf, packed_gguf, lab, monkeypatch, damage
):
    out, staging = stopped
    file, journal = staging / f"tuned-mxfp4.gguf{UNFINISHED}", staging / JOURNAL
    content, wanted = bytearray(file.read_bytes()), set()
    from gptoss_tune.weights.gguf.file import open_gguf

    tensors = open_gguf(packed_gguf[0]).tensors
    noted = lines(staging)
    if damage == "a bit":
        content[tensors["blk.0.ffn_up_exps.weight"].offset + 100] ^= 0x10
        wanted = {"model.layers.0.mlp.experts.gate_up_proj"}
    elif damage == "cut":
        entry = tensors["token_embd.weight"]
        del content[entry.offset + entry.nbytes // 2 :]
        gone = {name for name, each in tensors.items() if each.offset >= entry.offset}
        wanted = {line["step"] for line in noted if gone & set(line["hashes"])}
        assert "model.embed_tokens.weight" in wanted
    elif damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-20])
        wanted = {noted[-1]["step"]}
    elif damage == "no journal":
        journal.unlink()
        wanted = {line["step"] for line in noted}
    elif damage == "between":
        entry = tensors["blk.0.attn_sinks.weight"]  # 4 heads: 16 of 32 bytes
        assert entry.nbytes == 16
        content[entry.offset + 20] = 7
    else:
        content[50] ^= 1
    file.write_bytes(content)
    computed = recording(monkeypatch)
    gguf.merge(light, adapter, out, **OPTIONS)
    assert wanted == set(computed) & {line["step"] for line in noted}
    assert lab.digests(out) == lab.digests(packed_gguf[0])


def test_one_stopped_while_it_is_verified_computes_nothing_again(
    light, adapter, gguf, packed_gguf, lab, tmp_path, monkeypatch
):
    out = tmp_path / "tuned"

    def refuse(folder):
        assert (folder / "tuned-mxfp4.gguf").exists()
        raise Stop

    with pytest.raises(Stop):
        gguf.merge(light, adapter, out, inspect=refuse, **OPTIONS)
    computed = recording(monkeypatch)
    gguf.merge(light, adapter, out, **OPTIONS)
    assert computed == []
    assert lab.digests(out) == lab.digests(packed_gguf[0])


def test_another_merge_does_not_continue_this_one(
    stopped, light, adapter, gguf, lab, tmp_path, monkeypatch
):
    out, _ = stopped
    computed = recording(monkeypatch)
    gguf.merge(light, {adapter: -1.0}, out, **OPTIONS)
    assert len(computed) == len(set(computed)) > 30
    gguf.merge(light, {adapter: -1.0}, tmp_path / "x" / "tuned", **OPTIONS)
    assert lab.digests(out) == lab.digests(tmp_path / "x" / "tuned")


def test_a_link_in_the_staging_folder_is_not_written_through(
    stopped, light, adapter, gguf, tmp_path
):
    out, staging = stopped
    other = tmp_path / "precious"
    other.write_text("mine")
    file = staging / f"tuned-mxfp4.gguf{UNFINISHED}"
    file.unlink()
    file.symlink_to(other)
    with pytest.raises(MachineError, match="circle of links"):
        gguf.merge(light, adapter, out, **OPTIONS)
    assert other.read_text() == "mine"


def test_a_full_disk_is_known_before(light, gguf, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000_000))
    with pytest.raises(MachineError, match="GB more, the disk has") as refused:
        gguf.merge(light, None, tmp_path / "out", expert_format="mxfp4")
    needed, free = re.findall(r"[\d.]+(?= GB)", str(refused.value))
    assert float(needed) > float(free) and abs(float(free) - 0.05) < 0.051
    assert not any(tmp_path.iterdir())


def test_so_many_digits_are_shown_as_tell_two_sizes_apart(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=59_999_999))
    for needed, said in ((60_000_000, "0.060000000 GB more"), (80_000_000, "0.08 GB more")):
        with pytest.raises(MachineError, match=said):
            check_room(tmp_path, needed)
    check_room(tmp_path, 59_999_999)


def test_two_at_once_are_not_let_in(light, adapter, gguf, tmp_path):
    out = tmp_path / "tuned"

    def second(folder):
        with pytest.raises(MachineError, match="another merge is writing it"):
            gguf.merge(light, adapter, out, **OPTIONS)

    gguf.merge(light, adapter, out, inspect=second, **OPTIONS)
    assert out.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("expert_format, parts", [("mxfp4", 1), ("bf16", 2)])
def test_ten_kills_give_ten_identical_results(light, adapter, tmp_path, expert_format, parts):
    size = "45000000000" if parts == 1 else "30000000"
    arguments = [str(light), str(adapter), str(tmp_path), expert_format, "10", size]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["identical"] == 10
    assert result["interrupted"] >= 5, "too few kills fell into the merge to prove anything"
    assert result["inside"] >= 3, "too few kills fell between two tensors"
    assert result["files"] == 4 + parts
    assert result["left"] == []
