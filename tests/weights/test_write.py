"""Written files are whole, aligned and readable by safetensors itself, or not there."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.files.atomic import disk_errors, refuse_existing, staged
from gptoss_tune.weights.safetensors_file import SafetensorsFile, TensorSpec
from gptoss_tune.weights.write import Shard, ShardWriter, index_json, plan_shards, write_shard


def spec(name, *shape, dtype=torch.bfloat16):
    return TensorSpec(name, dtype, shape)


def tensors_for(specs):
    generator = torch.Generator().manual_seed(0)
    return {s.name: torch.randint(0, 100, s.shape, generator=generator).to(s.dtype) for s in specs}


def test_shards_follow_the_model_and_their_size():
    specs = [spec(f"model.layers.{i}.w", 100) for i in (10, 2, 0)]
    specs += [spec("lm_head.weight", 300), spec("model.embed_tokens.weight", 100)]
    shards = plan_shards(specs, max_shard_size=400)
    order = [s.name for shard in shards for s in shard.specs]
    assert order[0] == "model.embed_tokens.weight"
    assert order.index("model.layers.2.w") < order.index("model.layers.10.w")
    for shard in shards:
        size = sum(s.nbytes for s in shard.specs)
        assert size <= 400 or len(shard.specs) == 1
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert [s.name for s in plan_shards(specs)] == ["model.safetensors"]
    assert index_json(plan_shards(specs)) is None
    index = json.loads(index_json(shards))
    assert index["metadata"]["total_size"] == sum(s.nbytes for s in specs)
    assert set(index["weight_map"]) == set(order)


def test_safetensors_reads_what_was_written_in_parts_and_out_of_order(tmp_path):
    specs = [
        spec("scales", 5, 3, dtype=torch.uint8),  # an odd count of bytes before the others
        spec("a", 5, 7),
        spec("b", 2, 3, 4, dtype=torch.float32),
        spec("scalar", dtype=torch.float32),
        spec("empty", 0, 4),
    ]
    (shard,) = plan_shards(specs)
    expected = tensors_for(specs)
    with ShardWriter(tmp_path, shard) as writer:
        for name in ("b", "scalar", "empty", "scales"):
            writer.write(name, expected[name])
        writer.write("a", expected["a"][3:], first_row=3)
        writer.write("a", expected["a"][:3])
    file = tmp_path / "model.safetensors"
    got = load_file(file)
    assert set(got) == set(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert file.stat().st_size == shard.nbytes
    entries = SafetensorsFile(file).entries.values()
    assert all(e.offset % e.spec.dtype.itemsize == 0 for e in entries)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.EOPNOTSUPP])
def test_bytes_are_copied_with_and_without_the_kernels_help(tmp_path, monkeypatch, refusal):
    source = {"x": torch.arange(100_000, dtype=torch.float32), "y": torch.ones(3)}
    save_file(source, tmp_path / "source.safetensors")
    if refusal is not None:

        def refuse(*arguments):
            raise OSError(refusal, os.strerror(refusal))

        monkeypatch.setattr(os, "copy_file_range", refuse)
    opened = SafetensorsFile(tmp_path / "source.safetensors")
    shard = Shard("out.safetensors", (opened.entries["y"].spec, opened.entries["x"].spec))
    with ShardWriter(tmp_path, shard) as writer:
        writer.copy("x", opened)
        writer.copy("y", opened)
    got = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(got[name], source[name]) for name in source)


def test_a_source_cut_while_it_is_copied_is_an_error(tmp_path):
    save_file({"x": torch.ones(1000)}, tmp_path / "source.safetensors")
    opened = SafetensorsFile(tmp_path / "source.safetensors")
    os.truncate(tmp_path / "source.safetensors", 200)
    with (
        pytest.raises(CheckpointError, match="ends inside 'x'"),
        ShardWriter(tmp_path, Shard("out.safetensors", (opened.entries["x"].spec,))) as writer,
    ):
        writer.copy("x", opened)
    assert [p.name for p in tmp_path.iterdir()] == ["source.safetensors"]


def test_an_error_leaves_no_file_and_no_folder(tmp_path):
    specs = (spec("a", 4),)

    def failing():
        yield "a", torch.ones(4, dtype=torch.bfloat16)
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_shard(tmp_path, Shard("m.safetensors", specs), failing())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), staged(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        raise KeyError("y")
    assert list(tmp_path.iterdir()) == []


def test_a_staged_folder_takes_its_name_at_the_end(tmp_path):
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    with staged(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "out" / "file").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(CheckpointError, match="never overwritten"):
        refuse_existing(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="never overwritten"):
        refuse_existing(tmp_path / "link")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_what_the_system_refuses_is_said_plainly(tmp_path, code, words):
    with pytest.raises(MachineError, match=words) as caught, disk_errors(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path / "out") in str(caught.value)
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError("left alone")
