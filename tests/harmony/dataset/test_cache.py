"""The rendered cache: whole or built again, as private as its sources, nothing left behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.harmony.dataset import cache, render_rows
from gptoss_tune.harmony.dataset import load as load_module
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.recipe import DataSection


def chat(number):
    return {"prompt": f"Question {number}", "completion": f"Answer {number}"}


@pytest.fixture
def load(vocabulary):
    def run(train, **settings):
        data = DataSection.model_validate({"train": train, **settings})
        return load_dataset(data, split="train", vocabulary=vocabulary)["input_ids"][:]

    return run


def folders():
    return sorted(entry for entry in cache.cache_folder().iterdir() if entry.is_dir())


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) * 2 // 5] ^= 1
    file.write_bytes(raw)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


DAMAGE = {"a flipped bit": flip, "a cut": cut, "no bytes": empty, "no file": os.unlink}
NAMES = ("tokens.arrow", "about.npz", "sources.jsonl", "report.json", cache.MANIFEST)


@pytest.mark.parametrize("packing", [False, True])
def test_damage_to_any_file_is_seen_and_the_rows_are_rendered_again(
    packing, load, write_jsonl, capsys
):
    path = write_jsonl([chat(number) for number in range(20)])
    before = load(path, packing=packing)
    assert capsys.readouterr().err == ""
    assert load(path, packing=packing) == before
    for kind, damage in DAMAGE.items():
        for name in NAMES:
            for folder in folders():
                if (folder / name).exists():
                    damage(folder / name)
                    assert load(path, packing=packing) == before, (kind, name)
                    said = f"{folder}: the rendered data are damaged; they are rendered again\n"
                    assert capsys.readouterr().err == said


def test_the_files_of_a_folder_are_hashed_once_in_a_process(load, write_jsonl, monkeypatch):
    path = write_jsonl([chat(1)])
    load(path)
    hashed = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda file: hashed.append(file.name) or real(file))
    for _ in range(3):
        load(path)
    assert sorted(hashed) == ["about.npz", "report.json", "sources.jsonl", "tokens.arrow"]


def test_files_that_others_add_are_no_damage(load, write_jsonl, capsys):
    path = write_jsonl([chat(1)])
    load(path)
    (folders()[0] / "cache-of-datasets.arrow").write_bytes(b"x")
    load(path)
    assert capsys.readouterr().err == ""


def test_all_files_are_synced_before_the_folder_has_its_name(load, write_jsonl, monkeypatch):
    done = []
    sync, replace = cache.sync, os.replace
    monkeypatch.setattr(cache, "sync", lambda path: done.append(path.name) or sync(path))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("named") or replace(a, b))
    load(write_jsonl([chat(1)]))
    before = done[: done.index("named")]
    assert set(NAMES) < set(before) and before[-1] == folders()[0].name
    assert done[-1] == "data"


def test_a_file_that_is_edited_while_it_is_read_is_not_kept(load, write_jsonl, monkeypatch):
    path = write_jsonl([chat(number) for number in range(3)])
    real = load_module.render_rows

    def edited(rows, *rest):
        write_jsonl([chat(number) for number in range(100, 103)])
        return real(rows, *rest)

    monkeypatch.setattr(load_module, "render_rows", edited)
    with pytest.raises(DataError, match=r"rows\.jsonl: was changed while it was read, so nothing"):
        load(path)
    assert folders() == []
    monkeypatch.setattr(load_module, "render_rows", real)
    load(path)


@pytest.mark.parametrize("packing", [False, True])
def test_what_a_file_keeps_from_others_its_rendering_does_too(packing, load, write_jsonl, tmp_path):
    tmp_path.chmod(0o755)
    path = write_jsonl([chat(1)])
    readable = all(folder.stat().st_mode & stat.S_IXOTH for folder in (tmp_path, *tmp_path.parents))
    os.chmod(path, 0o600)
    load(path, packing=packing)
    assert len(folders()) == 1 + packing
    for folder in folders():
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    if readable:
        other = write_jsonl([chat(2)], "other.jsonl")
        os.chmod(other, 0o644)
        old = set(folders())
        load(other)
        (folder,) = set(folders()) - old
        assert folder.stat().st_mode & stat.S_IROTH
        # Made private later: what is kept of it becomes so as well.
        os.chmod(other, 0o600)
        load(other)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_cannot_enter_makes_its_files_private(load, write_jsonl, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    path = write_jsonl([chat(1)], "closed/rows.jsonl")
    os.chmod(path, 0o644)
    load(path)
    assert stat.S_IMODE(folders()[0].stat().st_mode) == 0o700


def test_what_a_killed_process_left_is_removed_and_a_living_one_s_is_not(load, write_jsonl):
    root = cache.cache_folder()
    root.mkdir(parents=True)
    host = cache._host()
    left = root / f"building-{'a' * 32}-{host}-x1"
    living = root / f"building-{'b' * 32}-{host}-x2"
    elsewhere = root / f"building-{'c' * 32}-another-x3"
    for folder in (left, living, elsewhere):
        (folder / "inner").mkdir(parents=True)
    with cache._locked(root / f"{'b' * 32}.lock"):
        load(write_jsonl([chat(1)]))
    assert not left.exists() and living.exists() and elsewhere.exists()


def test_the_place_is_taken_by_a_machine_whose_locks_are_not_seen(write_jsonl, load, monkeypatch):
    path = write_jsonl([chat(1)])
    expected = load(path)
    (place,) = folders()
    kept = place.rename(place.with_name("kept"))

    def build_while_another_finishes(folder):
        for name in NAMES[:-1]:
            (folder / name).write_bytes((kept / name).read_bytes())
        kept.rename(place)

    assert cache.built_once(place.name, build_while_another_finishes) == place
    assert load(path) == expected


def test_waiting_for_another_process_is_said(load, write_jsonl, monkeypatch, capsys):
    path = write_jsonl([chat(1)])
    load(path)
    (place,) = folders()
    os.rename(place, place.with_name("moved"))
    monkeypatch.setattr(cache, "WAIT_SAID_AFTER", 0.2)
    held = cache._locked(cache.cache_folder() / f"{place.name}.lock")
    held.__enter__()
    timer = threading.Timer(0.6, held.__exit__, (None, None, None))
    timer.start()
    load(path)
    timer.join()
    assert "another process renders the same data; this one waits for it" in capsys.readouterr().err


def test_a_private_folder_of_someone_else_is_an_error_of_the_machine(monkeypatch, tmp_path):
    (cache.cache_folder() / "key").mkdir(parents=True)
    os.chmod(cache.cache_folder() / "key", 0o755)
    monkeypatch.setattr(cache, "_is_whole", lambda place: True)
    monkeypatch.setattr(
        type(tmp_path), "chmod", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not yours"))
    )
    with pytest.raises(MachineError, match="not yours"):
        cache.built_once("key", lambda _: None, private=True)


CODE = """
import sys, time
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import DataSection
if __name__ == "__main__":
    data = DataSection.model_validate({"train": sys.argv[1], "dataset_num_proc": 2})
    load_dataset(data, split="train", vocabulary=load_vocabulary())
"""


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_killed(by, tmp_path, write_jsonl, load):
    text = "word " * 400
    rows = [{"prompt": f"{number} {text}", "completion": text} for number in range(10_000)]
    path = write_jsonl(rows, "big.jsonl")
    script = tmp_path / "render.py"
    script.write_text(CODE)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    parent = subprocess.Popen([sys.executable, str(script), path], env=environment)

    def children():
        found = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def grown():
        files = cache.cache_folder().glob("building-*/*/tokens.arrow")
        return any(file.stat().st_size > 0 for file in files)

    for _ in range(600):
        if len(children()) >= 3 and grown():
            break
        time.sleep(0.1)
    workers = children()
    assert len(workers) >= 2
    os.kill(parent.pid, by)
    parent.wait(timeout=30)
    for _ in range(100):
        alive = [pid for pid in workers if is_running(pid)]
        if not alive:
            break
        time.sleep(0.1)
    assert alive == []
    load(write_jsonl([chat(1)]))
    assert list(cache.cache_folder().glob("building-*")) == []


def test_a_worker_without_a_parent_watches_nothing(monkeypatch):
    monkeypatch.setattr(render_rows, "parent_process", lambda: None)
    assert render_rows._leave_with_parent() is None
    assert not any(thread.name == "parent" for thread in threading.enumerate())


def test_a_manifest_that_is_no_manifest_is_damage(load, write_jsonl, capsys):
    path = write_jsonl([chat(1)])
    before = load(path)
    for text in ("[]", "{", "null", "[" * 100_000, json.dumps({"tokens.arrow": 3})):
        (folders()[0] / cache.MANIFEST).write_text(text)
        assert load(path) == before
        assert "are damaged" in capsys.readouterr().err
