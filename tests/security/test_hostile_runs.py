"""Run folders, output folders and working directories that someone else prepared."""

import json
import os
import pickle
import subprocess

import pytest
import torch

from gptoss_tune.run.environment import git_commit


@pytest.fixture
def run(place):
    folder = place / "run"
    folder.mkdir()
    return folder


LINKS = ("run.json.part", "metrics.jsonl.partial", "adapter", "wandb", ".staging", "nonfinite")


@pytest.mark.parametrize("name", LINKS)
def test_a_run_folder_with_a_link_out_of_it_is_not_written_to(place, recipe, run, refused, name):
    target = place / "precious"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    (run / "run.json").write_text("{}")
    (run / name).symlink_to(target)
    refused(["train", recipe], f"holds '{name}', a link to .*precious outside", file=run)


def test_a_folder_of_something_else_is_not_written_to(recipe, run, refused):
    (run / "thesis.tex").write_text("years of work")
    refused(["train", recipe], "is not empty and holds no run", file=run)


@pytest.mark.parametrize(
    "text",
    ["[]", "{torn", '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", '{"recipe": 7}', "\x80"],
    ids=["a list", "torn", "nested", "a number", "no UTF-8"],
)
def test_a_record_that_is_none_stops_the_run(recipe, run, refused, text):
    (run / "run.json").write_bytes(text.encode("latin-1"))
    refused(["train", recipe], r"run\.json", file=run)


def checkpoint(run, files, listed=None, name="checkpoint-3"):
    """A checkpoint whose manifest is true, as whoever has the tool can write it."""
    from gptoss_tune.files.digest import digest_of, sha256_of
    from gptoss_tune.run.checkpoints import MANIFEST

    folder = run / name
    folder.mkdir(parents=True)
    for file, raw in files.items():
        (folder / file).write_bytes(raw)
    entries = {
        file: {"sha256": sha256_of(folder / file), "bytes": (folder / file).stat().st_size}
        for file in (listed or files)
    }
    content = {"run_id": "x", "step": 3, "fingerprint": {}, "files": entries}
    (folder / MANIFEST).write_text(json.dumps({**content, "sha256": digest_of(content)}))
    return folder


PICKLES = (
    *("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin", "pytorch_model.bin"),
    *("random_states_0.pkl", "custom_checkpoint_0.pkl"),
)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_in_a_checkpoint_is_refused_by_name(place, recipe, poison, refused, name):
    """rng_state.pth is CVE-2026-1839, custom_checkpoint_0.pkl what accelerate executes."""
    folder = checkpoint(place / "theirs", {name: poison})
    reason = f"{name} is neither safetensors nor JSON"
    refused(["train", recipe, f"train.resume={folder}"], reason, file=folder, may_write=["run"])


def test_the_pickles_are_real(place, poison, canary):
    """The control: what the test above plants does execute where a library loads it."""
    path = place / "rng_state.pth"
    path.write_bytes(poison)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists()


def test_a_manifest_that_leads_astray(place, recipe, refused):
    (place / "secret.json").write_text("{}")
    listed = ["../../secret.json"]
    folder = checkpoint(place / "theirs", {}, listed)
    refused(["train", recipe, f"train.resume={folder}"], "is missing", may_write=["run"])
    (folder / "b.json").write_text("{}")
    refused(["train", recipe, f"train.resume={folder}"], "missing|not in", may_write=["run"])


def test_a_checkpoint_that_is_a_link(place, recipe, refused):
    real = checkpoint(place / "theirs", {"a.json": b"{}"})
    real.rename(place / "elsewhere")
    real.symlink_to(place / "elsewhere")
    (place / "elsewhere" / "b.json").symlink_to(place / "recipe.yaml")
    command = ["train", recipe, f"train.resume={real}"]
    refused(command, "link|expected a folder named", may_write=["run"])


def test_a_staging_folder_that_is_a_link_is_not_emptied(base, adapter, place, refused):
    precious = place / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    (place / ".out.incomplete").symlink_to(precious)
    command = ["merge", adapter, "--base", base, "--out", place / "out"]
    refused(command, "is a link; nothing is written through it", file=".out.incomplete")


def test_an_output_folder_that_exists_is_left_alone(base, adapter, place, refused):
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("years of work")
    for command in ("merge", "adapter"):
        arguments = [command, adapter, "--base", base, "--out", place / "out"]
        refused(arguments, "already exists and is never overwritten", file=place / "out")


def test_a_merged_folder_with_a_stranger_in_it_is_not_uploaded(base, adapter, place):
    from gptoss_tune.errors import CheckpointError
    from gptoss_tune.export.hub.files import _merged_files

    (base / "config.json.bak").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds 'config\.json\.bak', which no merge writes"):
        _merged_files(base)
    (base / "config.json.bak").unlink()
    assert "tokenizer.json" in _merged_files(base)


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments], check=True)


@pytest.fixture
def checkout(place):
    """A checkout with one commit, which the current directory is in."""
    git("init", "--quiet")
    (place / "here" / "a.txt").write_text("a")
    git("add", "a.txt")
    git("commit", "--quiet", "--message", "a")
    return place / "here"


def test_a_commit_is_recorded_with_what_changed(checkout):
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    assert git_commit() == head
    (checkout / "a.txt").write_text("b")
    assert git_commit() == f"{head}-dirty"


@pytest.mark.parametrize("trick", ["fsmonitor", "filter", "hook"])
def test_a_checkout_cannot_run_programs_through_git(checkout, canary, trick):
    program = checkout / "evil.sh"
    program.write_text(f"#!/bin/sh\nmkdir -p {canary}\ncat\n")
    program.chmod(0o755)
    if trick == "fsmonitor":
        git("config", "core.fsmonitor", str(program))
    elif trick == "filter":
        git("config", "filter.x.clean", str(program))
        (checkout / ".gitattributes").write_text("*.txt filter=x\n")
    else:
        hook = checkout / ".git" / "hooks" / "post-index-change"
        hook.parent.mkdir(exist_ok=True)
        program.rename(hook)
    (checkout / "a.txt").write_text("c")
    os.utime(checkout / "a.txt", (1, 1))
    expected = "-unchecked" if trick == "filter" else "-dirty"
    assert (git_commit() or "").endswith(expected)
    assert not canary.exists()
    # The control: the usual question runs it.
    subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, check=False)
    subprocess.run(["git", "status"], capture_output=True, check=False)
    assert canary.exists()
