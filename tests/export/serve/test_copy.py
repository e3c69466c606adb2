"""The script that copies a model into a cluster's volume; the pod is a folder here."""

import os
import shutil
import subprocess
from dataclasses import replace

import pytest

KUBECTL = """#!/bin/sh
echo "$*" >> "$FAKE/log"
[ "$1" = exec ] || exit 0
shift; [ "$1" = -i ] && shift; shift 2
case "$*" in *sha256sum*) eval "$DAMAGE";; esac
n=$#
while [ $n -gt 0 ]; do
  a=$(printf %s "$1" | sed "s#/models#$FAKE/models#g"); shift; set -- "$@" "$a"; n=$((n - 1))
done
exec "$@"
"""
UNREADABLE = """#!/bin/sh
for f; do case $f in */config.json) echo "$f: Permission denied" >&2; exit 1;; esac; done
exec {program} "$@"
"""


@pytest.fixture
def copy(bundles, served, tmp_path):
    """Runs the script for a model's folder; the pod's disk stays from one run to the next."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "kubectl").write_text(KUBECTL)
    (fake / "kubectl").chmod(0o755)
    count = iter(range(9))

    def run(source, damage=""):
        out = tmp_path / f"out{next(count)}"
        bundles.write(replace(served, path=str(source)), "vllm", out)
        environment = {"PATH": f"{fake}:{os.environ['PATH']}", "FAKE": str(fake), "DAMAGE": damage}
        (fake / "log").write_text("")
        return subprocess.run(
            [out / "kubernetes/copy-model.sh"], env=environment, capture_output=True, text=True
        )

    run.pod, run.log = fake / "models", fake / "log"
    return run


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_model_is_copied_and_compared(copy, merged):
    done = copy(merged)
    assert done.returncode == 0, done.stderr
    assert tree(copy.pod / "my-model") == tree(merged)
    assert sorted(p.name for p in copy.pod.iterdir()) == ["my-model", "vocabulary"]
    assert (copy.pod / "vocabulary/o200k_base.tiktoken").is_file()
    assert copy.log.read_text().splitlines()[-1] == "delete pod my-model-copy"


def test_nothing_of_an_earlier_model_stays(copy, merged, tmp_path):
    """vLLM takes shards and their index before a single file, so old ones would be served."""
    sharded = tmp_path / "sharded"
    shutil.copytree(merged, sharded)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (sharded / name).write_text("of another model")
    for source in (sharded, merged):
        assert copy(source).returncode == 0
        assert tree(copy.pod / "my-model") == tree(source)


@pytest.mark.parametrize(
    "damage, said",
    [
        ('rm "$FAKE/models/my-model.part/config.json"', "config.json"),
        ('echo x >> "$FAKE/models/my-model.part/config.json"', "config.json: FAILED"),
        ('touch "$FAKE/models/my-model.part/more.safetensors"', "files, expected"),
    ],
    ids=["lost", "changed", "more"],
)
def test_a_copy_that_differs_is_no_model(copy, merged, damage, said):
    assert copy(merged).returncode == 0
    done = copy(merged, damage)
    assert done.returncode != 0 and said in done.stderr + done.stdout
    assert "delete pod" not in copy.log.read_text()
    assert not (copy.pod / "my-model").exists(), "what was not compared would be served"


def test_a_file_that_cannot_be_summed_ends_it_before_the_cluster_is_asked(copy, merged):
    program = copy.log.with_name("sha256sum")
    program.write_text(UNREADABLE.format(program=shutil.which("sha256sum")))
    program.chmod(0o755)
    done = copy(merged)
    assert done.returncode != 0 and "Permission denied" in done.stderr
    assert copy.log.read_text() == ""


def test_a_file_that_cannot_be_packed_ends_it(copy, merged, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(merged, source)
    program = copy.log.with_name("tar")
    program.write_text(
        f'#!/bin/sh\n{shutil.which("tar")} "$@"\ncase "$*" in *-chf*) exit 2;; esac\n'
    )
    program.chmod(0o755)
    done = copy(source)
    assert done.returncode != 0
    assert "delete pod" not in copy.log.read_text() and not (copy.pod / "my-model").exists()
