"""Adapters made to deceive: by what they have PEFT import, unpickle, match for ever, or leak."""

import json

import pytest

DEEP = "[" * 200_000 + "]" * 200_000
BOMB = r"(([a-z._]+)*)*[0-9]+!"

CONFIGS = {
    "another kind": ({"peft_type": "XLORA"}, "expected 'LORA'"),
    "a library to import": (
        {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
        "auto_mapping names the library 'evil'",
    ),
    "a library as text": ({"auto_mapping": "evil"}, "auto_mapping names the library 'evil'"),
    "megatron": ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "import a module"),
    "corda": ({"corda_config": {"cache_file": "evil.pt"}}, "unpickle a file"),
    "lora_ga": ({"lora_ga_config": {"cache_file": "evil.pt"}}, "an option that no export knows"),
    "eva": ({"eva_config": "factors.pkl"}, "eva_config is"),
    "a changed base": ({"init_lora_weights": "pissa"}, "changed the base before the training"),
    "a start by name": ({"init_lora_weights": "../evil.pt"}, "changed the base"),
    "runtime": ({"runtime_config": {"ephemeral_gpu_offload": True}}, "no export knows"),
    "arrow": ({"arrow_config": {"router_temperature": 1}}, "chooses between adapters"),
    "an unknown option": ({"code": "import os"}, "'code' is 'import os', an option that no"),
    "an escape as an option": ({"\x1b[2J": "x"}, r"'\\x1b\[2J' is 'x'"),
    "a pull request's revision": ({"revision": "refs/pr/7"}, "revision is 'refs/pr/7'"),
    "a revision with dots": ({"revision": "../../main"}, "revision is '../../main'"),
    "a revision of numbers": ({"revision": 7}, "revision is 7"),
    "targets of numbers": ({"target_modules": [1]}, "PEFT writes no such"),
    "targets a mapping": ({"target_modules": {"q_proj": 1}}, "PEFT writes no such"),
    "targets that never end": ({"target_modules": BOMB}, "backtracks without end"),
    "exclusions that never end": ({"exclude_modules": BOMB}, "backtracks without end"),
    "ranks that never end": ({"rank_pattern": {BOMB: 2}}, "backtracks without end"),
    "a pattern of a megabyte": ({"target_modules": "a|" * 500_000}, "1000000 characters"),
    "no pattern": ({"target_modules": "(((.*"}, "is no regular expression"),
    "layers of a pattern": (
        {"layers_to_transform": [0], "layers_pattern": BOMB},
        "such as 'layers'",
    ),
    "layers of a pattern that is plain, but no name": (
        {"layers_to_transform": [0], "layers_pattern": r"h\.layers"},
        "such as 'layers'",
    ),
    "a huge rank": ({"r": 10**12}, "r is 1000000000000; expected a positive number"),
    "a rank of text": ({"r": "2; rm"}, "expected a positive number"),
    "a rank true": ({"r": True}, "expected a positive number"),
    "a pattern's rank": ({"rank_pattern": {"q_proj": -3}}, r"rank_pattern\['q_proj'\] is -3"),
    "a base that is no text": ({"base_model_name_or_path": ["x"]}, "PEFT writes no such"),
}


def merged(adapter, base, place):
    return ["merge", adapter, "--base", base, "--out", place / "out"]


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_deceives(base, adapter, place, tools, refused, case, monkeypatch):
    monkeypatch.setattr("gptoss_tune.weights.adapter_config._TIMEOUT_S", 0.5)
    changes, reason = CONFIGS[case]
    file = adapter / "adapter_config.json"
    tools.edit(file, **changes)
    refused(merged(adapter, base, place), reason, file=file)


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"peft_type": "LORA", "peft_type": "XLORA"}', "is there twice"),
        ('{"peft_type": "LORA", "r": NaN}', "NaN is not JSON"),
        ('{"a": ' + DEEP + "}", "nested too deeply"),
        ("[]", "expected a JSON object"),
    ],
    ids=["a key twice", "NaN", "nested", "a list"],
)
def test_a_configuration_that_is_no_strict_json(base, adapter, place, tools, refused, text, reason):
    tools.replace(adapter / "adapter_config.json", text)
    refused(merged(adapter, base, place), reason, file=adapter)


def test_a_pickle_instead_of_weights(base, adapter, place, poison, refused):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(poison)
    for command in (merged(adapter, base, place), ["chat", adapter, "--base", base]):
        refused(command, "is a pickle file", file=adapter / "adapter_model.bin")


def test_a_pickle_as_the_adapter_to_start_from(base, adapter, recipe, poison, refused):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(poison)
    command = ["train", recipe, f"lora.init_from={adapter}"]
    refused(command, "holds no adapter with adapter_model.safetensors")


def test_weights_that_are_a_link_to_elsewhere(base, adapter, place, refused):
    weights = adapter / "adapter_model.safetensors"
    weights.rename(place / "elsewhere.safetensors")
    weights.symlink_to(place / "elsewhere.safetensors")
    refused(merged(adapter, base, place), "a link to .* outside the folder", file=adapter)


def test_the_base_that_an_adapter_names_cannot_be_an_address(adapter, place, tools, refused):
    for name in ("https://evil.test/x", "file:///etc", "evil", "../../x/y/z", "~evil/x/y"):
        tools.edit(adapter / "adapter_config.json", base_model_name_or_path=name)
        refused(["merge", adapter, "--out", place / "out"], "no such folder")


RECORDS = {
    "a list as base": ({"base": [1]}, r"base is \[1\]"),
    "a base's name": ({"base": {"name": 3}}, r"base\.name is 3"),
    "a fingerprint": ({"base": {"fingerprint": "x"}}, r"base\.fingerprint is 'x'"),
    "a list as recipe": ({"recipe": ["x"]}, r"recipe is \['x'\]"),
    "a source": ({"recipe": {"data": {"train": [7]}}}, r"recipe\.data\.train\[0\] is 7"),
    "a source's path": ({"recipe": {"data": {"train": [{"path": {}}]}}}, r"\[0\]\.path is {}"),
    "a survival": ({"recipe": {"export": {"min_survival": "x"}}}, "min_survival is 'x'"),
    "libraries": ({"environment": {"libraries": [1]}}, r"environment\.libraries is \[1\]"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_of_a_run_that_is_none(base, adapter, place, tools, refused, case):
    record, reason = RECORDS[case]
    tools.replace(adapter / "run.json", record)
    refused(merged(adapter, base, place), reason, file=adapter / "run.json")


def test_patterns_that_other_tools_write_still_match(base, adapter, place, tools):
    """The control: what is refused above is refused for its running time, not for its form."""
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.adapter import open_adapter

    pattern = r"(?:.*?(?:self_attn|attention).*?(?:q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.x)"
    tools.edit(
        adapter / "adapter_config.json",
        target_modules=pattern,
        rank_pattern={r"self_attn\.[q]_proj": 2},
        r=9,
        alpha_pattern={r"layers\.\d+\.self_attn\.q_proj": 6},
    )
    (target,) = open_adapter(adapter, open_checkpoint(base)).targets.values()
    assert (target.module, target.rank) == ("model.layers.0.self_attn.q_proj", 2)
    assert target.scaling == 3.0


def test_a_record_cannot_write_markup_into_the_card(base, adapter, tools, place):
    from gptoss_tune.export.hub.licence import Licence
    from gptoss_tune.export.hub.model_card import Facts, model_card, read_metrics

    run = place / "theirs"
    run.mkdir()
    adapter.rename(run / "adapter")
    evil = "<script>alert(1)</script>|[x](javascript:y)\n# Heading"
    record = {
        "steps": evil,
        "recipe": {"data": {"train": [{"path": evil}], "date": "```\n<script>alert(2)</script>"}},
        "environment": {"libraries": {"torch": evil}},
    }
    tools.replace(run / "run.json", record)
    lines = [{"step": "</text><script>alert(3)</script>", "loss": 1.0}, {"step": 1, "loss": 2.0}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    metrics = read_metrics(run / "adapter")
    assert metrics == [{"loss": 1.0}, {"step": 1, "loss": 2.0}]
    terms = Licence("apache-2.0", "Apache-2.0.")
    facts = Facts("me/x", "openai/gpt-oss-20b", None, ["q_proj"], record, metrics, "ok", terms)
    card = model_card(facts)
    text, _, code = card.partition("<summary>The recipe, complete</summary>")
    assert "<script" not in text.replace("\\<", "") and "\n# Heading" not in text
    fence = code.strip().split("yaml")[0]
    assert len(fence) > 3 and code.count(fence) == 2
