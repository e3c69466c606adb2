"""What a container is given of this machine: paths of any name, snapshots of the Hub's cache."""

import os
import re
import shutil
from dataclasses import replace

import pytest

from gptoss_tune.errors import CheckpointError

CONTAINERS = ["vllm", "sglang", "triton-server", "tensorrt-llm", "nim"]


def filled_in(text):
    """A text as compose reads it: ``$$`` is a dollar, any other is a variable's."""
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", text), f"compose would fill in {text}"
    return text.replace("$$", "$")


@pytest.mark.parametrize("target", CONTAINERS)
@pytest.mark.parametrize("name", ["a$HOME", "$", "a:b", "two words", "a$$b:ro"])
def test_a_path_of_any_name_is_mounted(bundles, served, target, name, tmp_path):
    path = tmp_path / name
    path.mkdir()
    files = bundles.write(replace(served, path=str(path)), target, tmp_path / "out")
    assert filled_in(bundles.mounts(files)["/models/my-model"]) == str(path)


@pytest.fixture
def snapshot(merged, tmp_path):
    """The model as the Hub's cache holds it, one file in a folder."""
    repository = tmp_path / "models--me--merged"
    folder = repository / "snapshots" / "0123abc"
    (folder / "more").mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in merged.iterdir():
        if path.is_file():
            shutil.copy(path, repository / "blobs" / f"of-{path.name}")
            (folder / path.name).symlink_to(f"../../blobs/of-{path.name}")
    (folder / "more/config.json").symlink_to("../../../blobs/of-config.json")
    return folder


def in_container(mounts, path):
    """A file's bytes at ``path`` as a kernel finds it through the mounts, link by link."""
    for _ in range(5):
        target = max((t for t in mounts if path.startswith(f"{t}/")), key=len, default=None)
        assert target, f"{path} is in no mount"
        here = mounts[target] + path[len(target) :]
        if not os.path.islink(here):
            with open(here, "rb") as file:
                return file.read()
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(here)))
    raise AssertionError("too many links")


@pytest.mark.parametrize("target", CONTAINERS)
def test_links_of_a_snapshot_lead_to_its_files(bundles, served, snapshot, target, tmp_path):
    files = bundles.write(replace(served, path=str(snapshot)), target, tmp_path / "out")
    mounts = bundles.mounts(files)
    for path in snapshot.rglob("*"):
        if path.is_file():
            place = f"/models/my-model/{path.relative_to(snapshot)}"
            assert in_container(mounts, place) == path.read_bytes()


def test_a_link_to_a_snapshot_is_a_snapshot(bundles, served, snapshot, tmp_path):
    (tmp_path / "mine").symlink_to(snapshot)
    files = bundles.write(replace(served, path=str(tmp_path / "mine")), "vllm", tmp_path / "out")
    assert bundles.mounts(files)["/blobs"] == str(snapshot.parent.parent / "blobs")


def test_a_plain_folder_has_one_mount(bundles, served, tmp_path):
    mounts = bundles.mounts(bundles.write(served, "vllm", tmp_path / "out"))
    assert mounts["/models/my-model"] == served.path and "/blobs" not in mounts


@pytest.mark.parametrize("target", CONTAINERS)
@pytest.mark.parametrize("lead", ["relative", "absolute", "around"])
def test_a_link_that_a_container_cannot_follow_is_refused(bundles, served, target, lead, tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "model.safetensors").write_text("x")
    (folder / "config.json").write_text("{}")
    told = {
        "relative": "../other/model.safetensors",
        "absolute": str(other / "model.safetensors"),
        "around": "../folder/config.json",
    }
    (folder / "model.safetensors").symlink_to(told[lead])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a link to .* cp -rL"):
        bundles.write(replace(served, path=str(folder)), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_inside_the_folder_is_one_in_the_container(bundles, served, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("a")
    (folder / "b").symlink_to("a")
    files = bundles.write(replace(served, path=str(folder)), "vllm", tmp_path / "out")
    assert in_container(bundles.mounts(files), "/models/my-model/b") == b"a"
