"""Reading a GGUF: what the library reads, and no header of a stranger is believed."""

import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.gguf.file import is_gguf, open_gguf


def write(path, *, tensors=3, split=0):
    """A file by the library, with keys of every kind."""
    writer = GGUFWriter(path, "gpt-oss", split_max_tensors=split)
    writer.add_uint8("a.uint8", 200)
    writer.add_int8("a.int8", -3)
    writer.add_uint16("a.uint16", 60_000)
    writer.add_int16("a.int16", -600)
    writer.add_int32("a.int32", -5)
    writer.add_uint64("a.uint64", 2**40)
    writer.add_int64("a.int64", -(2**40))
    writer.add_float64("a.float64", 0.1)
    writer.add_float32("a.float32", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße")
    writer.add_array("a.words", ["one", "", "drei"])
    writer.add_array("a.numbers", [1, 2, 3])
    for number in range(tensors):
        data = np.arange(12, dtype=np.float32).reshape(3, 4) + number
        writer.add_tensor(f"t{number}", data)
    blocks = np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)
    writer.add_tensor("packed", blocks, raw_dtype=GGMLQuantizationType.MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "small.gguf")


def test_keys_and_tensors_are_those_that_the_library_reads(file):
    ours, theirs = open_gguf(file), GGUFReader(file)
    expected = {name: field for name, field in theirs.fields.items() if "GGUF." not in name}
    assert list(ours.keys) == list(expected)
    for name, field in expected.items():
        assert ours.keys[name].value == field.contents(), name
        assert ours.keys[name].type == " of ".join(kind.name for kind in field.types), name
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert (entry.type, entry.offset) == (tensor.tensor_type.name, tensor.data_offset)
        assert entry.nbytes == tensor.n_bytes
        rows = tensor.data.view(np.uint8).reshape(len(tensor.data), -1)
        assert ours.read_rows(tensor.name, 1, 2) == rows[1].tobytes()


def edited(file, old, new):
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    "old, new, said",
    [
        (b"GGUF\x03", b"GGUX\x03", "does not begin with GGUF"),
        (b"GGUF\x03", b"GGUF\x02", "version 2, expected 3"),
        (text("a.string"), struct.pack("<Q", 2**40) + b"a.string", "bytes of a text"),
        (text("a.string"), struct.pack("<Q", 2**25) + b"a.string", "goes on behind its end"),
        (text("a.uint16"), text("a.uint64"), "'a.uint64' twice"),
        (text("t1"), text("t0"), "two tensors 't0'"),
        (text("t1") + b"\2", text("t1") + b"\7", "with 7 axes is no tensor"),
        (text("a.string") + b"\x08", text("a.string") + b"\x63", "a value of type 99"),
    ],
)
def test_what_a_header_claims_is_not_believed(file, old, new, said):
    edited(file, old, new)
    with pytest.raises(CheckpointError, match=said):
        open_gguf(file)


def test_a_tensor_over_another_is_refused(file):
    shape = struct.pack("<IQQI", 2, 4, 3, 0)
    edited(file, text("t1") + shape + struct.pack("<Q", 64), text("t1") + shape + bytes(8))
    with pytest.raises(CheckpointError, match="overlaps"):
        open_gguf(file)


def test_a_cut_file_names_the_tensor(file):
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="ends inside the data of 'packed'"):
        open_gguf(file)


def test_several_files_are_one_model(tmp_path):
    write(tmp_path / "big.gguf", split=2)
    names = [f"big-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    whole = open_gguf(tmp_path)
    assert list(whole.tensors) == ["t0", "t1", "t2", "packed"]
    assert "split.no" not in whole.keys
    assert open_gguf(tmp_path / names[1]).keys == whole.keys
    assert whole.read_rows("packed", 1, 2)[0] == 34


def test_a_missing_or_a_foreign_part_is_named(tmp_path):
    write(tmp_path / "big.gguf", split=2)
    second = tmp_path / "big-00002-of-00002.gguf"
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match=r"big-00002-of-00002\.gguf is missing, one of 2"):
        open_gguf(tmp_path)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "big.gguf", tensors=5, split=3)
    second.write_bytes((tmp_path / "other" / second.name).read_bytes())
    with pytest.raises(CheckpointError, match="not of one model"):
        open_gguf(tmp_path)
    second.write_bytes(kept)
    open_gguf(tmp_path)


def test_which_of_two_models_is_asked(tmp_path):
    write(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(a\.gguf, b\.gguf\)"):
        open_gguf(tmp_path)
    assert open_gguf(tmp_path / "b.gguf").tensors


def test_what_is_a_gguf(tmp_path):
    write(tmp_path / "a.gguf")
    assert is_gguf(tmp_path) and is_gguf(tmp_path / "a.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert not is_gguf(tmp_path)  # a checkpoint with a GGUF beside it
    assert not is_gguf(tmp_path / "config.json")
