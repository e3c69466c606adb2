"""Checkpoints made to deceive: each is refused by the commands that would read it."""

import json
import os
import struct

import pytest
import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.config import read_config

INDEX = "model.safetensors.index.json"
DEEP = "[" * 200_000 + "]" * 200_000


def weights(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# A shard's whole content, and the reason it is refused with.
SHARDS = {
    "header longer than the file": (weights(b"{}", length=2**40), "not a whole safetensors"),
    "header length of 2^64-1": (weights(b"{}", length=2**64 - 1), "not a whole safetensors"),
    "header length 0": (weights(b"", length=0), "not a whole safetensors"),
    "header no JSON": (weights(b"__import__('os').mkdir('canary')"), "header cannot be read"),
    "header a list": (weights([1]), "header cannot be read"),
    "header nested": (weights(DEEP.encode()), "nested too deeply"),
    "header latin-1": (weights('{"é": 1}'.encode("latin-1")), "can't decode"),
    "header UTF-16": (weights('{"a": 1}'.encode("utf-16")), "can't decode"),
    "header with NaN": (
        weights(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}'),
        "NaN",
    ),
    "metadata no texts": (weights({"__metadata__": {"a": [1]}}), "no object of texts"),
    "overlapping": (
        weights({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, b"0" * 12),
        "'b' overlaps the data before it",
    ),
    "the same bytes twice": (
        weights({"a": entry([2], [0, 8]), "b": entry([2], [0, 8])}, b"0" * 8),
        "overlaps the data before it",
    ),
    "a hole": (
        weights({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, b"0" * 12),
        "'b' leaves a hole before",
    ),
    "a hole at the start": (weights({"a": entry([1], [4, 8])}, b"0" * 8), "leaves a hole before"),
    "data after the end": (weights({"a": entry([1], [0, 4])}, b"0" * 9), "damaged"),
    "offsets outside": (weights({"a": entry([4], [0, 16])}, b"0" * 4), "truncated or damaged"),
    "offsets negative": (weights({"a": entry([1], [-4, 0])}, b"0" * 4), "an offset of a is -4"),
    "offsets no numbers": (weights({"a": entry([1], ["0", "4"])}, b"0" * 4), "an offset of a"),
    "three offsets": (weights({"a": entry([1], [0, 2, 4])}, b"0" * 4), "header cannot be read"),
    "shape negative": (weights({"a": entry([-1], [0, 4])}, b"0" * 4), "a size of a is -1"),
    "two negative sizes": (weights({"a": entry([-1, -1], [0, 4])}, b"0" * 4), "a size of a is -1"),
    "shape of a float": (weights({"a": entry([1.0], [0, 4])}, b"0" * 4), r"a size of a is 1\.0"),
    "shape of a bool": (weights({"a": entry([True], [0, 4])}, b"0" * 4), "a size of a is True"),
    "product overflows 64 bits": (
        weights({"a": entry([2**32, 2**32], [0, 0])}),
        r"claims 0 bytes, its shape needs 73786976294838206464",
    ),
    "size over 63 bits": (weights({"a": entry([0, 2**64], [0, 0])}), "a size of a is"),
    "a thousand axes": (weights({"a": entry([1] * 1000, [0, 4])}, b"0" * 4), "1000 axes"),
    "a number of 10,000 digits": (
        weights(b'{"a":{"dtype":"F32","shape":[1' + b"0" * 10_000 + b'],"data_offsets":[0,0]}}'),
        "header cannot be read",
    ),
    "one name twice": (
        weights(b'{"a":%b,"a":%b}' % ((json.dumps(entry([1], [0, 4])).encode(),) * 2), b"0" * 4),
        "the key 'a' is there twice",
    ),
    "dtype unknown": (weights({"a": entry([1], [0, 4], "EVAL")}, b"0" * 4), "'EVAL', a dtype"),
    "dtype no text": (weights({"a": entry([1], [0, 4], ["F32"])}, b"0" * 4), "cannot be read"),
    "dtype lies about its size": (
        weights({"a": entry([1], [0, 4], "F64")}, b"0" * 4),
        "claims 4 bytes, its shape needs 8",
    ),
    "an entry no object": (weights({"a": 1}), "header cannot be read"),
    "a name with an escape sequence": (
        weights({"\x1b]0;owned\x07": entry([1], [0, 4])}, b"0" * 4),
        r"the name '\\x1b\]0;owned\\x07' is no name",
    ),
    "a name of a million letters": (weights({"a" * 10**6: entry([1], [0, 4])}), "is no name"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_shard_that_lies(base, place, tools, refused, case):
    content, reason = SHARDS[case]
    shard = tools.shard(base)
    tools.replace(shard, content)
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], reason, file=shard)


def test_a_header_larger_than_any(base, place, tools, refused):
    shard = tools.shard(base)
    tools.replace(shard, struct.pack("<Q", 100_000_001))
    os.truncate(shard, 100_000_100)  # a hole in the file, no bytes on the disk
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], "not a whole")


def test_a_dtype_that_config_and_shape_do_not_betray(base, place, tools, refused):
    """The same bytes called U8 where a floating tensor belongs."""
    shard = tools.shard(base)
    raw = shard.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    name = "model.layers.0.mlp.router.weight"
    rows, columns = header[name]["shape"]
    header[name] |= {"dtype": "U8", "shape": [rows, 2 * columns]}
    tools.replace(shard, weights(header, raw[8 + length :]))
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], "has shape")
    header[name] |= {"dtype": "I16", "shape": [rows, columns]}
    tools.replace(shard, weights(header, raw[8 + length :]))
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], "has dtype")


def points_at(name):
    def change(base, place, tools):
        index = json.loads((base / INDEX).read_text())
        first = next(iter(index["weight_map"]))
        index["weight_map"][first] = name
        tools.replace(base / INDEX, index)

    return change


def content(text):
    return lambda base, place, tools: tools.replace(base / INDEX, text)


def shard_is_a_link(base, place, tools):
    shard = tools.shard(base)
    (place / "elsewhere.safetensors").write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(place / "elsewhere.safetensors")


def shard_is_a_circle(base, place, tools):
    shard = tools.shard(base)
    shard.unlink()
    shard.symlink_to(shard.name)


def shard_is_a_pipe(base, place, tools):
    shard = tools.shard(base)
    shard.unlink()
    os.mkfifo(shard)


def index_is_a_link(base, place, tools):
    (base / INDEX).rename(place / "index.json")
    (base / INDEX).symlink_to(place / "index.json")


INDICES = {
    "two dots": (points_at("../elsewhere.safetensors"), "leaves the folder; refused"),
    "two dots inside": (points_at("a/../../e.safetensors"), "leaves the folder; refused"),
    "absolute": (points_at("/etc/passwd.safetensors"), "leaves the folder; refused"),
    "backslashes": (points_at("..\\elsewhere.safetensors"), "leaves the folder; refused"),
    "a device": (points_at("/dev/zero"), "expected a .safetensors file"),
    "an address": (points_at("https://x.test/e.safetensors"), "leaves the folder; refused"),
    "a pickle": (points_at("pytorch_model.bin"), "expected a .safetensors file"),
    "itself": (points_at(INDEX), "expected a .safetensors file"),
    "a NUL": (points_at("a\0.safetensors"), "no name of a file"),
    "an escape": (points_at("\x1b[2J.safetensors"), r"'\\x1b\[2J.safetensors', which is no name"),
    "a missing shard": (points_at("model-9.safetensors"), "which is missing"),
    "a number": (points_at(7), "cannot be read"),
    "a list": (points_at(["a"]), "cannot be read"),
    "nested": (content('{"weight_map": ' + DEEP + "}"), "nested too deeply"),
    "twice": (content('{"weight_map": {}, "weight_map": {}}'), "is there twice"),
    "no map": (content('{"weight_map": ["a"]}'), "cannot be read"),
    "a link": (index_is_a_link, "a link to .* outside the folder"),
    "a linked shard": (shard_is_a_link, "a link to .* outside the folder"),
    "a circle of links": (shard_is_a_circle, "a link that leads round to itself"),
    "a pipe": (shard_is_a_pipe, "is no regular file"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_that_leads_astray(base, place, tools, refused, case):
    change, reason = INDICES[case]
    change(base, place, tools)
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], reason, file=base)


def test_a_tensor_said_to_be_in_another_shard(base, place, tools, refused):
    index = json.loads((base / INDEX).read_text())
    names = list(index["weight_map"])
    index["weight_map"][names[0]] = index["weight_map"][names[-1]]
    tools.replace(base / INDEX, index)
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], "does not hold it")


BIG = "1" + "0" * 30
CONFIGS = {
    "auto_map": ({"auto_map": {"AutoModel": "evil.Model"}}, "'auto_map' .* chooses code"),
    "hub kernel": ({"_attn_implementation": "someone/kernel"}, "chooses code"),
    "hub kernel, public name": ({"attn_implementation": "someone/kernel:f"}, "chooses code"),
    "hub kernel, inside": ({"_attn_implementation_internal": "a/b"}, "chooses code"),
    "hub kernel of the experts": ({"_experts_implementation": "a/b"}, "chooses code"),
    "kernels": ({"use_kernels": True}, "chooses code"),
    "trust": ({"trust_remote_code": True}, "chooses code"),
    "pipelines": ({"custom_pipelines": {"x": {"impl": "evil.P"}}}, "chooses code"),
    "a layer of its own": ({"per_layer_config": {"0": {}}}, "chooses code"),
    "attributes renamed": ({"attribute_map": {"a": "__class__"}}, "chooses code"),
    "dunder": ({"__class__": "x"}, "chooses code"),
    "an escape as a key": ({"\x1b[2J": 1}, r"\\x1b\[2J"),
    "another architecture": ({"architectures": ["Evil"]}, "expected .'GptOssForCausalLM'"),
    "one more architecture": ({"architectures": ["GptOssForCausalLM", "E"]}, "expected .'Gpt"),
    "another model type": ({"model_type": "deepseek_v3"}, "model_type is 'deepseek_v3'"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "expected 1 to 1,024"),
    "a huge width": ({"hidden_size": int(BIG)}, "expected 1 to"),
    "no width": ({"hidden_size": 0}, "expected 1 to"),
    "minus one expert": ({"num_local_experts": -1}, "expected 1 to"),
    "layers true": ({"num_hidden_layers": True}, "expected a whole number"),
    "layers text": ({"num_hidden_layers": "1; rm"}, "expected a whole number"),
    "a window of text": ({"sliding_window": "x"}, "expected a whole number"),
    "more experts chosen than there are": ({"num_experts_per_tok": 3}, "of 2 experts"),
    "layer types": ({"layer_types": ["__import__"]}, "layer_types is"),
    "a million layer types": ({"layer_types": ["full_attention"] * 10**6}, "layer_types is"),
    "another loader": (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        "expected 'mxfp4'",
    ),
    "loader as text": ({"quantization_config": "mxfp4"}, "expected 'mxfp4'"),
    "loader with more": (
        {"quantization_config": {"quant_method": "mxfp4", "config_groups": {}}},
        "quantization_config has 'config_groups'",
    ),
}
ROTARY = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
SETTINGS = {
    "theta text": ({"rope_theta": "150000"}, "rope_theta is '150000'; expected a number"),
    "theta zero": ({"rope_theta": 0}, "rope_theta is 0; expected a number from 1.001"),
    "theta one": ({"rope_theta": 1}, "rope_theta is 1; expected"),
    "theta minus one": ({"rope_theta": -1}, "rope_theta is -1; expected"),
    "theta null": ({"rope_theta": None}, "rope_theta is None; expected"),
    "theta true": ({"rope_theta": True}, "rope_theta is True; expected"),
    "an epsilon of text": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; expected"),
    "a limit of a list": ({"swiglu_limit": [7]}, "swiglu_limit is .7.; expected"),
    "another rotation": (
        {"rope_scaling": ROTARY | {"rope_type": "su"}},
        r"rope_scaling\.rope_type is 'su'; expected yarn or default",
    ),
    "a rotation of a list": ({"rope_scaling": [1]}, "rope_scaling is .1.; expected a mapping"),
    "a rotation a layer": (
        {"rope_parameters": {"full_attention": ROTARY, "rope_type": ["yarn"]}},
        r"rope_parameters\.rope_type is .'yarn'.; expected",
    ),
    "no factor": ({"rope_scaling": {"rope_type": "yarn"}}, "factor is missing"),
    "a factor of text": ({"rope_scaling": ROTARY | {"factor": "32"}}, "factor is '32'; expected"),
    "half a rotation": (
        {"rope_scaling": ROTARY | {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor is 0.5",
    ),
    "truncated by text": ({"rope_scaling": ROTARY | {"truncate": "no"}}, "truncate is 'no'"),
    "padding minus one": ({"pad_token_id": -1}, "pad_token_id is -1; expected a token from 0 to"),
    "padding beyond": ({"pad_token_id": 10**9}, "pad_token_id is 1000000000; expected a token"),
    "an end of text": ({"eos_token_id": [200002, "x"]}, "eos_token_id is .200002, 'x'.; expected"),
    "no positions": ({"max_position_embeddings": 0}, "max_position_embeddings is 0; expected 1 to"),
    "no experts chosen": ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0; expected 1 to"),
    "experts under another name": ({"num_experts": 1}, "num_experts is 1; expected 2"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
    "tied by text": ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true"),
    "a dtype of a list": ({"torch_dtype": [1]}, "torch_dtype is .1.; expected 'bfloat16'"),
}
TEXTS = {
    "NaN": ('{"architectures": ["GptOssForCausalLM"], "rms_norm_eps": NaN}', "NaN is not JSON"),
    "Infinity": ('{"rope_theta": Infinity}', "Infinity is not JSON"),
    "a key twice": ('{"architectures": [], "architectures": []}', "is there twice"),
    "nested": ('{"a": ' + DEEP + "}", "nested too deeply"),
    "no object": ("[]", "expected a JSON object"),
    "UTF-16": ("{}".encode("utf-16"), "can't decode"),
    "a pickle": (b"\x80\x04cos\nmkdir\n", "cannot be read as JSON"),
}


@pytest.mark.parametrize("case", [*CONFIGS, *TEXTS])
def test_a_configuration_that_chooses_code_or_is_absurd(base, place, tools, refused, case):
    file = base / "config.json"
    if case in CONFIGS:
        changes, reason = CONFIGS[case]
        tools.edit(file, **changes)
    else:
        text, reason = TEXTS[case]
        tools.replace(file, text)
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], reason, file=file)


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_that_transformers_would_trip_over(base, tools, case):
    changes, reason = SETTINGS[case]
    tools.edit(base / "config.json", **changes)
    with pytest.raises(CheckpointError, match=reason) as refused:
        read_config(base)
    assert str(refused.value).startswith(f"{base / 'config.json'}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": None},
        {"pad_token_id": 200_017, "eos_token_id": [200_002, 199_999, 200_012]},
        {"rope_scaling": None, "rope_parameters": ROTARY | {"rope_theta": 150000.0}},
        {"rope_scaling": {"type": "yarn", "factor": 32}, "bos_token_id": None},
        {"sliding_window": None, "num_experts": 2, "dtype": "bfloat16", "some_tool": {"v": 1}},
    ],
)
def test_what_other_tools_write_is_read_and_built(base, tools, changes):
    from gptoss_tune.model.load import model_config
    from gptoss_tune.weights import open_checkpoint

    tools.edit(base / "config.json", **changes)
    config = model_config(open_checkpoint(base), torch.float32)
    assert config.pad_token_id == (changes.get("pad_token_id") or 199_999)


def test_the_same_configurations_stop_a_training(base, recipe, tools, refused):
    """The other door: a recipe that names the base; one representative of each kind."""
    for changes, reason in (CONFIGS["hub kernel"], CONFIGS["a billion layers"]):
        before = (base / "config.json").read_bytes()
        tools.edit(base / "config.json", **changes)
        refused(["train", recipe], reason, file=base, may_write=["run"])
        tools.replace(base / "config.json", before)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_of_the_checkpoint_that_is_a_link_to_a_secret(
    base, adapter, place, tools, refused, name
):
    """Followed, it would be copied into the merged folder, and from there to the Hub."""
    (place / "secret").write_bytes((base / name).read_bytes())
    (base / name).unlink()
    (base / name).symlink_to(place / "secret")
    command = ["merge", adapter, "--base", base, "--out", place / "out", "--no-verify"]
    refused(command, "a link to .* outside the folder", file=base, may_write=[".out.incomplete"])
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["tokenizer_secrets", "LICENSE.key", "x.jinja", "NOTICE"])
def test_a_companion_that_is_a_link_to_a_secret(base, adapter, place, refused, name):
    (place / "secret").write_text("-----BEGIN PRIVATE KEY-----")
    (base / name).symlink_to(place / "secret")
    command = ["merge", adapter, "--base", base, "--out", place / "out", "--no-verify"]
    refused(command, "a link to .* outside the folder", may_write=[".out.incomplete"])
    left = [p for p in (place / ".out.incomplete").rglob("*") if p.is_file()]
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in left)


BESIDE = {
    "tokenizer code": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
    "generation code": ("generation_config.json", {"custom_generate": "someone/repo"}),
    "an adapter's configuration": ("adapter_config.json", {"base_model_name_or_path": "evil/base"}),
}


@pytest.mark.parametrize("case", BESIDE)
def test_files_beside_the_weights_that_choose_code(base, place, tools, refused, case):
    name, value = BESIDE[case]
    reason = "transformers would load the base" if name.startswith("adapter") else "chooses code"
    before = json.loads((base / name).read_text()) if (base / name).exists() else {}
    tools.replace(base / name, {**before, **value})
    refused(["serve-config", base, "--target", "vllm", "--out", place / "out"], reason, file=base)


def test_pickles_alone_are_refused(base, place, poison, refused):
    for file in base.glob("*.safetensors*"):
        file.unlink()
    (base / "pytorch_model.bin").write_bytes(poison)
    command = ["serve-config", base, "--target", "vllm", "--out", place / "out"]
    refused(command, r"holds pickle files \(pytorch_model\.bin\)", file=base)


def test_pickles_and_code_beside_the_weights_are_never_touched(
    base, adapter, place, poison, canary, tools
):
    """Read in full, by our readers and by PEFT, as ``chat`` reads them."""
    from gptoss_tune.evaluate.load import load_answering_model, open_evaluated_model
    from gptoss_tune.evaluate.trained_as import answering_section

    for folder in (base, adapter):
        for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "model.pt"):
            (folder / name).write_bytes(poison)
        for name in ("modeling_gpt_oss", "configuration_gpt_oss", "tokenization", "__init__"):
            (folder / f"{name}.py").write_text(f"import os; os.mkdir({str(canary)!r})")
    tools.replace(base / "chat_template.jinja", "{{ ''.__class__ }}{% for x in range(10**12) %}")
    subject = open_evaluated_model(str(adapter), base=str(base))
    load_answering_model(subject, answering_section(subject), torch.device("cpu"))
    assert not canary.exists()
