"""The tiny checkpoint against plain transformers, the released layout, and openai-harmony."""

import hashlib
import json
import os

import pytest
import torch
from gptoss_kernels.mxfp4 import dequantize_reference
from safetensors.torch import load_file
from tokenizers import Tokenizer

from gptoss_tune.errors import CheckpointError
from gptoss_tune.shipped import shipped
from gptoss_tune.testing.tiny import special_tokens, tiny_checkpoint, tiny_config, tokenizer_json


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base", layers=2)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="module")
def harmony():
    before = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(shipped("data") / "vocab")
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    if before is None:
        del os.environ["TIKTOKEN_ENCODINGS_BASE"]
    else:
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = before
    return encoding


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_same_seed_same_bytes_and_another_seed_other_weights(tmp_path, tiny):
    again = digests(tiny_checkpoint(tmp_path / "again", layers=2))
    other = digests(tiny_checkpoint(tmp_path / "other", layers=2, seed=1))
    first = digests(tiny)
    assert again == first
    assert {name for name in first if other[name] != first[name]} == {"model.safetensors"}


def test_names_dtypes_and_shapes_are_the_released_ones(tiny):
    weights = load_file(tiny / "model.safetensors")
    experts = "model.layers.1.mlp.experts"
    expected = {
        f"{experts}.gate_up_proj_blocks": ((8, 192, 2, 16), torch.uint8),
        f"{experts}.gate_up_proj_scales": ((8, 192, 2), torch.uint8),
        f"{experts}.gate_up_proj_bias": ((8, 192), torch.bfloat16),
        f"{experts}.down_proj_blocks": ((8, 64, 3, 16), torch.uint8),
        f"{experts}.down_proj_scales": ((8, 64, 3), torch.uint8),
        f"{experts}.down_proj_bias": ((8, 64), torch.bfloat16),
        "model.layers.1.mlp.router.weight": ((8, 64), torch.bfloat16),
        "model.layers.1.mlp.router.bias": ((8,), torch.bfloat16),
        "model.layers.1.self_attn.sinks": ((4,), torch.bfloat16),
        "model.layers.1.self_attn.q_proj.weight": ((256, 64), torch.bfloat16),
        "model.layers.1.self_attn.q_proj.bias": ((256,), torch.bfloat16),
        "model.layers.1.self_attn.k_proj.weight": ((128, 64), torch.bfloat16),
        "model.layers.1.self_attn.o_proj.weight": ((64, 256), torch.bfloat16),
        "model.layers.1.self_attn.o_proj.bias": ((64,), torch.bfloat16),
        "model.layers.1.input_layernorm.weight": ((64,), torch.bfloat16),
        "model.layers.1.post_attention_layernorm.weight": ((64,), torch.bfloat16),
        "model.embed_tokens.weight": ((201_088, 64), torch.bfloat16),
        "lm_head.weight": ((201_088, 64), torch.bfloat16),
        "model.norm.weight": ((64,), torch.bfloat16),
    }
    got = {name: (tuple(weights[name].shape), weights[name].dtype) for name in expected}
    assert got == expected
    assert len(weights) == 3 + 2 * 19
    config = json.loads((tiny / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert config["hidden_size"] != config["intermediate_size"]


def test_plain_transformers_reads_the_weights_we_wrote(tiny):
    from transformers import AutoModelForCausalLM, Mxfp4Config

    model, info = AutoModelForCausalLM.from_pretrained(
        tiny,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = load_file(tiny / "model.safetensors")
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.0.mlp.experts.{name}"
        expected = dequantize_reference(ours[f"{key}_blocks"], ours[f"{key}_scales"])
        got = model.get_parameter(key)
        assert torch.equal(got, expected.transpose(1, 2)), name
        assert 0.07 < got.float().std() < 0.09
    scaling = model.config.rope_parameters
    assert (scaling["rope_type"], scaling["factor"], scaling["rope_theta"]) == ("yarn", 32, 150_000)
    assert model.generation_config.eos_token_id == [200_002, 199_999, 200_012]
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all() and logits.std() > 1


def test_bf16_format_is_the_same_model(tmp_path, tiny):
    dense = load_file(
        tiny_checkpoint(tmp_path / "bf16", layers=2, format="bf16") / "model.safetensors"
    )
    packed = load_file(tiny / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    decoded = dequantize_reference(packed[f"{name}_blocks"], packed[f"{name}_scales"])
    assert torch.equal(dense[name], decoded.transpose(1, 2))
    assert torch.equal(dense["lm_head.weight"], packed["lm_head.weight"])
    assert "quantization_config" not in json.loads((tmp_path / "bf16/config.json").read_text())


def test_shards_hold_the_same_tensors(tmp_path, tiny):
    sharded = tiny_checkpoint(tmp_path / "sharded", layers=2, max_shard_size=300_000)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    whole = load_file(tiny / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    total = 0
    for file in files:
        for name, tensor in load_file(sharded / file).items():
            assert index["weight_map"][name] == file
            assert torch.equal(tensor, whole[name])
            total += tensor.nbytes
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize(
    "text",
    [
        "plain words and  two spaces\n\n\tand tabs",
        "I'll we'RE don't CamelCaseWords ÉCOLE naïve",
        "数字12345と 漢字 🙂👩‍👩‍👧 ẞß",
        "x=1;y=f(x)//comment\r\n  return [a,b]/**/",
        "  trailing   ",
        "\u00a0\u200b\ufeff e\u0301",
    ],
)
def test_text_has_harmonys_token_ids(tokenizer, harmony, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == harmony.encode(text)
    assert tokenizer.decode(ids) == text


def test_every_special_token_has_harmonys_id(harmony):
    ours = Tokenizer.from_str(tokenizer_json().decode())
    for token, i in special_tokens().items():
        assert ours.token_to_id(token) == i
        name_in_harmony = {200_018: "<|reserved_200018|>"}.get(i, token)
        assert harmony.encode(name_in_harmony, allowed_special="all") == [i]
    assert ours.get_vocab_size() == 200_019  # as released


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.\nIn degrees.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city"},
                    "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "note": {"type": "string", "default": "none"},
                    "hourly": {"type": "boolean", "default": True},
                    "where": {
                        "type": "object",
                        "properties": {
                            "lat": {"type": "number"},
                            "label": {"type": ["string", "null"]},
                        },
                        "required": ["lat"],
                    },
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
CALL = {"id": "c1", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
CONVERSATIONS = {
    "identity alone": ([{"role": "user", "content": "Hi"}], None),
    "instructions and tools": (
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        TOOLS,
    ),
    "earlier thinking is gone, the last turn's stays": (
        [
            {"role": "user", "content": "1"},
            {"role": "assistant", "thinking": "old", "content": "one"},
            {"role": "user", "content": "2"},
            {"role": "assistant", "thinking": "new", "content": "two"},
        ],
        None,
    ),
    "tool call, result, answer": (
        [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "thinking": "Ask.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"t": 20}'},
            {"role": "assistant", "thinking": "Read.", "content": "20 degrees"},
        ],
        TOOLS,
    ),
}


def harmony_messages(messages, tools):
    """The same conversation in openai-harmony's classes, earlier thinking left out by hand."""
    import openai_harmony as oh

    system = oh.SystemContent.new().with_reasoning_effort(oh.ReasoningEffort.HIGH)
    system = system.with_conversation_start_date("2025-06-28")
    out = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    developer = oh.DeveloperContent.new()
    if messages[0]["role"] == "system":
        developer = developer.with_instructions(messages[0]["content"])
        messages = messages[1:]
    if tools:
        functions = [t["function"] for t in tools]
        developer = developer.with_function_tools(
            [
                oh.ToolDescription.new(f["name"], f["description"], f.get("parameters"))
                for f in functions
            ]
        )
    if developer != oh.DeveloperContent.new():
        out.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    assistant, new = oh.Role.ASSISTANT, oh.Message.from_role_and_content
    for i, message in enumerate(messages):
        if message["role"] == "user":
            out.append(new(oh.Role.USER, message["content"]))
        elif message["role"] == "tool":
            author = oh.Author.new(oh.Role.TOOL, "functions.get_weather")
            tool = oh.Message.from_author_and_content(author, message["content"])
            out.append(tool.with_channel("commentary").with_recipient("assistant"))
        else:
            if i > last_user:
                out.append(new(assistant, message["thinking"]).with_channel("analysis"))
            for call in message.get("tool_calls", []):
                text = new(assistant, call["function"]["arguments"]).with_channel("commentary")
                text = text.with_recipient(f"functions.{call['function']['name']}")
                out.append(text.with_content_type("<|constrain|>json"))
            if "content" in message:
                out.append(new(assistant, message["content"]).with_channel("final"))
    return oh.Conversation.from_messages(out)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_chat_template_renders_what_harmony_renders(tokenizer, harmony, name):
    import openai_harmony as oh

    messages, tools = CONVERSATIONS[name]
    conversation = harmony_messages(messages, tools)
    asking = messages[-1]["role"] == "user"
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    expected = (
        harmony.render_conversation_for_completion(conversation, oh.Role.ASSISTANT, keep)
        if asking
        else harmony.render_conversation_for_training(conversation, keep)
    )
    text = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        tokenize=False,
        add_generation_prompt=asking,
        reasoning_effort="high",
        conversation_start_date="2025-06-28",
    )
    assert text == harmony.decode(expected)
    assert tokenizer.encode(text, add_special_tokens=False) == expected


def test_the_template_refuses_what_it_cannot_render(tokenizer):
    for messages, word in (
        ([{"role": "critic", "content": "x"}], "critic"),
        ([{"role": "user", "content": [{"type": "image"}]}], "text only"),
        ([{"role": "tool", "content": "x"}], "without a tool call"),
    ):
        with pytest.raises(Exception, match=word):
            tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden": 65}, "multiple of 32"),
        ({"intermediate": 16}, "multiple of 32"),
        ({"layers": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, sizes, message):
    with pytest.raises(CheckpointError, match=message):
        tiny_config(**sizes)
    with pytest.raises(CheckpointError, match=message):
        tiny_checkpoint(tmp_path / "x", **sizes)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("data")
    with pytest.raises(CheckpointError, match="never overwritten"):
        tiny_checkpoint(tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "precious").read_text() == "data"


def test_command(tmp_path):
    from typer.testing import CliRunner

    from gptoss_tune.cli import app

    out = tmp_path / "tiny"
    result = CliRunner().invoke(app, ["tiny", str(out), "--layers", "1", "--experts", "2"])
    assert result.exit_code == 0, result.output
    assert "1 layers, 2 experts, mxfp4" in result.output
    assert json.loads((out / "config.json").read_text())["num_local_experts"] == 2
