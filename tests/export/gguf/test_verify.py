"""What ``verify`` says of a right GGUF, and of one with a single fault in it."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.gguf.lora import write_lora
from gptoss_tune.export.verify.gguf import _differing
from gptoss_tune.export.verify.verify import verify
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.gguf.file import GgufKey, open_gguf
from gptoss_tune.workflows import finished_run

BLOCK = 17


@pytest.fixture
def copy(packed_gguf, tmp_path):
    """A GGUF to damage, without the hashes that would tell at once."""
    folder = Path(shutil.copytree(packed_gguf[0], tmp_path / "tuned"))
    (folder / "manifest.json").unlink()
    return folder


def checks_of(lab, place, base, *adapters, **options):
    checkpoint, opened = lab.open(base, *adapters)
    return {c.name: c for c in verify(place, checkpoint, opened, logits=False, **options).checks}


def edit(folder, name, change):
    """Change the bytes of one tensor."""
    (file,) = folder.glob("*.gguf")
    entry = open_gguf(folder).tensors[name]
    content = bytearray(file.read_bytes())
    data = content[entry.offset : entry.offset + entry.nbytes]
    content[entry.offset : entry.offset + entry.nbytes] = change(data)
    assert len(content) == file.stat().st_size
    file.write_bytes(content)


def flip(place, bit):
    def change(data):
        data[place] ^= bit
        return data

    return change


def test_a_right_file_is_green_with_a_table_by_kind(packed_gguf, light, adapter, lab):
    checkpoint, opened = lab.open(light, adapter)
    result = verify(packed_gguf[0], checkpoint, opened)
    checks = {check.name: check for check in result.checks}
    assert {name: check.passed for name, check in checks.items()} == dict.fromkeys(
        [
            *("files", "hashes", "keys", "tensors", "values", "finite", "untouched tensors"),
            *("changes", "logits"),
        ],
        True,
    )
    kinds = {line["kind"]: line for line in checks["values"].figures["kinds"]}
    assert {(kind, line["tensors"], line["type"]) for kind, line in kinds.items()} == {
        *(("embedding", 1, "BF16"), ("output", 1, "BF16"), ("norms", 5, "F32")),
        *(("attention", 8, "BF16"), ("attention biases", 8, "F32"), ("sinks", 2, "F32")),
        *(("router", 4, "F32"), ("experts gate", 2, "MXFP4"), ("experts up", 2, "MXFP4")),
        *(("experts down", 2, "MXFP4"), ("experts biases", 6, "F32")),
    }
    assert {line["max_difference"] for line in kinds.values()} == {0.0}
    assert json.loads(json.dumps(result.as_dict()))["checks"]
    assert len(result.targets) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, place, bit, said",
    [
        ("blk.1.ffn_gate_exps.weight", 5 * BLOCK + 3, 0x10, "expert 0 differ"),
        ("blk.1.ffn_down_exps.weight", -1, 0x01, "expert 3 differ"),
        ("blk.0.ffn_up_exps.weight", 0, 0x01, "expert 0 differ"),  # a scale
        ("blk.0.attn_q.weight", 1001, 0x80, "differ"),
        ("token_embd.weight", -2, 0x01, "differ"),
        ("blk.1.attn_sinks.weight", 2, 0x01, "differ"),
        ("blk.0.ffn_gate_inp.weight", 0, 0x01, "differ"),  # a bit that bf16 has not
        ("blk.1.ffn_up_exps.bias", 6, 0x40, "differ"),
    ],
)
def test_a_flipped_bit_is_red_with_its_tensor(copy, light, adapter, lab, name, place, bit, said):
    edit(copy, name, flip(place, bit))
    checks = checks_of(lab, copy, light, adapter)
    assert checks["values"].passed is False
    assert checks["values"].detail.startswith(f"{name}: ")
    assert said in checks["values"].detail
    kinds = {line["kind"]: line["max_difference"] for line in checks["values"].figures["kinds"]}
    assert sum(furthest > 0 for furthest in kinds.values()) == 1


def test_gate_and_up_swapped_are_red(copy, light, adapter, lab):
    held = {}
    names = ("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")
    for name in names:
        edit(copy, name, lambda data, name=name: held.setdefault(name, bytes(data)))
    for name, other in zip(names, reversed(names), strict=True):
        edit(copy, name, lambda data, other=other: held[other])
    detail = checks_of(lab, copy, light, adapter)["values"].detail
    assert "blk.0.ffn_gate_exps.weight: expert 0" in detail
    assert "blk.0.ffn_up_exps.weight: expert 0" in detail


def test_the_releases_order_of_nibbles_is_red(copy, light, adapter, lab):
    def as_released(data):
        for start in range(0, len(data), BLOCK):
            block = data[start + 1 : start + BLOCK]
            values = [b & 15 for b in block] + [b >> 4 for b in block]
            pairs = zip(values[0::2], values[1::2], strict=True)
            data[start + 1 : start + BLOCK] = bytes(low | high << 4 for low, high in pairs)
        return data

    edit(copy, "blk.1.ffn_down_exps.weight", as_released)
    checks = checks_of(lab, copy, light, adapter)
    assert checks["values"].detail.startswith("blk.1.ffn_down_exps.weight: expert 0 differ")
    assert checks["changes"].passed is False


def rewritten(folder, *, leave_out=(), keys=None):
    """The file written again by the library, without some tensors, with other keys."""
    (file,) = folder.glob("*.gguf")
    reader = GGUFReader(file)
    writer = GGUFWriter(file.with_suffix(".new"), "gpt-oss")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        if keys and name in keys:
            value = keys[name]
            if value is None:
                continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, value, field.types[0], sub_type)
    for tensor in reader.tensors:
        if tensor.name not in leave_out:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file.with_suffix(".new").replace(file)


@pytest.mark.slow
def test_other_keys_and_missing_tensors_are_named(copy, light, adapter, lab):
    changed = {
        "gpt-oss.rope.scaling.factor": 16.0,
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.chat_template": None,
    }
    rewritten(copy, leave_out=("blk.1.attn_sinks.weight",), keys=changed)
    checks = checks_of(lab, copy, light, adapter)
    assert checks["keys"].passed is False
    for said in (
        *("gpt-oss.rope.scaling.factor is FLOAT32 16.0, expected FLOAT32 32.0",),
        *("tokenizer.ggml.pre is STRING 'gpt-2', expected STRING 'gpt-4o'",),
        *("tokenizer.chat_template is missing",),
    ):
        assert said in checks["keys"].detail
    assert checks["tensors"].passed is False
    assert checks["tensors"].detail == "blk.1.attn_sinks.weight is missing"
    assert checks["values"].passed is None


def test_of_a_long_value_the_first_place_that_differs_is_shown(copy, light, adapter, lab):
    (file,) = copy.glob("*.gguf")
    keys = open_gguf(copy).keys
    template = keys["tokenizer.chat_template"].value
    token = keys["tokenizer.ggml.tokens"].value[65]
    piece = template[2000:2100].encode()
    content = file.read_bytes()
    entry = struct.pack("<Q", len(token.encode())) + token.encode()
    start = content.index(b"tokenizer.ggml.tokens")
    place = content.index(entry, start) + 8
    content = content[:place] + b"?" * len(token.encode()) + content[place + len(token.encode()) :]
    assert content.count(piece) == 1 and len(content) == file.stat().st_size
    file.write_bytes(content.replace(piece, b"~" + piece[1:]))
    detail = checks_of(lab, copy, light, adapter)["keys"].detail
    assert f"tokenizer.ggml.tokens at index 65 is '?', expected {token!a}" in detail
    assert "tokenizer.chat_template at character 2000 is '~" in detail
    assert f"expected {template[2000:2010]!a}"[:-1] in detail


@pytest.mark.parametrize(
    "found, said",
    [
        ("ab" * 100, "k at character 200 is its end, expected 'cd' (length 200, expected 202)"),
        ("ab" * 100 + "cde", "k at character 202 is 'e', expected its end (length 203, expected"),
        ("short", "k at character 0 is 'short', expected 'abab"),
    ],
)
def test_a_value_that_is_longer_or_shorter_is_told_by_its_length(found, said):
    wanted = "ab" * 100 + "cd"
    told = _differing("k", GgufKey("STRING", found), GgufKey("STRING", wanted))
    assert told.startswith(said)
    assert _differing("k", None, GgufKey("STRING", "x")) == "k is missing, expected STRING 'x'"


def test_factors_alone_are_no_model(light, adapter, lab, tmp_path):
    checkpoint, (opened, *_) = lab.open(light, adapter)
    file = write_lora(opened.adapter, tmp_path / "mine-lora")
    for given in ((), (checkpoint, [opened])):
        (only,) = verify(file, *given).checks
        assert (only.name, only.passed) == ("files", False)
        assert "is a GGUF 'adapter' of 'gpt-oss'" in only.detail and "--lora" in only.detail


def test_another_base_is_red(packed_gguf, lab, light, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", layers=2, experts=4, seed=9)
    shutil.copyfile(light / "tokenizer.json", other / "tokenizer.json")
    checkpoint, opened = lab.open(other)
    checks = {c.name: c for c in verify(packed_gguf[0], checkpoint, opened, logits=False).checks}
    assert checks["keys"].passed and checks["tensors"].passed
    assert not checks["values"].passed
    assert not checks["untouched tensors"].passed


def test_without_the_adapter_its_changes_are_red(packed_gguf, light, lab):
    checks = checks_of(lab, packed_gguf[0], light)
    assert not checks["values"].passed
    assert "differs from the base, and no adapter targets it" in checks["untouched tensors"].detail


def test_hashes_and_the_file_alone(packed_gguf, light, tmp_path):
    folder = Path(shutil.copytree(packed_gguf[0], tmp_path / "tuned"))
    (file,) = folder.glob("*.gguf")
    alone = {c.name: c.passed for c in verify(file).checks}
    assert alone == {
        **{"files": True, "hashes": True, "keys": True, "tensors": None, "values": None},
        **{"finite": None, "untouched tensors": None, "changes": None, "logits": None},
    }
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert {c.name: c.passed for c in verify(folder).checks}["hashes"] is False
    file.write_bytes(content[:-100_000])
    (only,) = verify(folder).checks
    assert (only.name, only.passed) == ("files", False)
    assert "ends inside the data of" in only.detail


def test_a_file_of_another_program_is_held_to_the_changes(light, adapter, lab, gguf, tmp_path):
    out = tmp_path / "dense"
    gguf.merge(light, adapter, out, expert_format="bf16")
    for name in ("merge_report.json", "manifest.json"):
        (out / name).unlink()
    checks = checks_of(lab, out, light, adapter)
    assert all(check.passed for name, check in checks.items() if name != "hashes")
    assert "not those that are made from the folder's name" in checks["keys"].detail
    edit(out, "blk.0.attn_norm.weight", flip(2, 1))  # no adapter changes a norm
    assert checks_of(lab, out, light, adapter)["values"].passed is False


@pytest.mark.slow
def test_a_change_that_another_machine_rounded_is_held_to_the_changes(copy, light, adapter, lab):
    edit(copy, "blk.0.ffn_up_exps.weight", flip(3 * BLOCK + 5, 0x01))  # half a step of one value
    assert checks_of(lab, copy, light, adapter)["values"].passed is False
    lab.edit_json(copy / "merge_report.json", computed_by="torch 1.0 on abacus")
    values = checks_of(lab, copy, light, adapter)["values"]
    assert values.passed is True
    assert "1 that an adapter changes are rounded otherwise, see changes" in values.detail
    edit(copy, "blk.0.ffn_up_exps.weight", flip(3 * BLOCK, 0x08))  # a scale of 2^8 more or less
    assert checks_of(lab, copy, light, adapter)["changes"].passed is False


def test_a_file_beside_another_merges_is_not_held_to_its_hashes(packed_gguf, tmp_path):
    folder = Path(shutil.copytree(packed_gguf[0], tmp_path / "tuned"))
    (file,) = folder.glob("*.gguf")
    other = Path(shutil.copyfile(file, folder / "other.gguf"))
    checks = {check.name: check for check in verify(other).checks}
    assert checks["hashes"].passed is None
    assert "names other.gguf" in checks["hashes"].detail


@pytest.mark.slow
def test_a_merge_is_verified_before_it_gets_its_name(light, adapter, tmp_path, monkeypatch):
    from gptoss_tune.export.gguf import container

    encode = container.encode

    def swapped(target, parts):
        data = encode(target, parts)
        return data.flip(0) if target.name == "blk.1.ffn_gate_inp.weight" else data

    monkeypatch.setattr(container, "encode", swapped)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_gate_inp\.weight: rows 0 to 3 differ"):
        finished_run.merge(
            adapter, tmp_path / "out", format="gguf", base=light, accept_loss=True, verified=True
        )
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    # What was staged has the hash of what was written: it is refused again until it is removed.
    shutil.rmtree(tmp_path / ".out.incomplete")
    done = finished_run.merge(
        adapter, tmp_path / "out", format="gguf", base=light, accept_loss=True
    )
    assert done.verification is not None and done.verification.passed
    assert done.folder == tmp_path / "out"


def test_other_readers_end_in_one_error(packed_gguf):
    with pytest.raises(CheckpointError, match="is a GGUF, the file of"):
        open_checkpoint(packed_gguf[0])
    with pytest.raises(CheckpointError, match="is a GGUF, the file of"):
        open_checkpoint(packed_gguf[0] / "tuned-mxfp4.gguf")
