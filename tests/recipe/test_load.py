"""Every kind of mistake in a field: the place, what was got, what was expected, what to do."""

import pytest
from pydantic import ValidationError

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe import DataSource, Recipe, RecipeMistakes

# Appended to a sound recipe of seven lines that ends inside train: -> the one mistake.
APPENDED = {
    "  seed: -1": "8:9: train.seed: got -1, expected a whole number from 0 to 4294967295; "
    "the default is 0",
    "  seed: 1.5": "8:9: train.seed: got 1.5, expected a whole number from 0 to 4294967295; "
    "the default is 0",
    "  seed: true": "8:9: train.seed: got true, expected a whole number from 0 to 4294967295; "
    "the default is 0",
    "  seed: 2.0": "8:9: train.seed: got 2.0, expected a whole number from 0 to 4294967295; "
    "write 2",
    "  seed: 1_000": "8:9: train.seed: got '1_000', expected a whole number from 0 to 4294967295; "
    "write 1000",
    "  seed: '7'": "8:9: train.seed: got '7', expected a whole number from 0 to 4294967295; "
    "write 7",
    "  seed:": "8:8: train.seed: got nothing (null), expected a whole number from 0 to 4294967295; "
    "remove it to keep 0",
    "  seed: [1]": "8:9: train.seed: got [1], expected a whole number from 0 to 4294967295; "
    "the default is 0",
    "  seed: {a: 1}": "8:9: train.seed: got a mapping, expected a whole number from 0 to "
    "4294967295; the default is 0",
    "  learning_rate: 0": "8:18: train.learning_rate: got 0, expected a number above 0 and at "
    "most 1; the default is 0.0002",
    "  learning_rate: 1e999": "8:18: train.learning_rate: got 1e999, expected a number above 0 and "
    "at most 1; the default is 0.0002",
    "  learning_rate: true": "8:18: train.learning_rate: got true, expected a number above 0 and "
    "at most 1; the default is 0.0002",
    "  adam_beta1: 1": "8:15: train.adam_beta1: got 1, expected a number from 0 and below 1; "
    "the default is 0.9",
    "  optim: adam": "8:10: train.optim: got 'adam', expected adamw, adamw_8bit or "
    "paged_adamw_8bit; did you mean adamw?",
    "  optim: Paged-AdamW-8bit": "8:10: train.optim: got 'Paged-AdamW-8bit', expected adamw, "
    "adamw_8bit or paged_adamw_8bit; did you mean paged_adamw_8bit?",
    "  optim: sgd": "8:10: train.optim: got 'sgd', expected adamw, adamw_8bit or "
    "paged_adamw_8bit; the default is adamw",
    "  activation_checkpointing: no": "8:29: train.activation_checkpointing: got 'no', "
    "expected none, full, selective or offload; write none",
    "  activation_checkpointing: false": "8:29: train.activation_checkpointing: got false, "
    "expected none, full, selective or offload; write none",
    "  resume: no": "8:11: train.resume: got 'no', expected auto, never or the path of a "
    "checkpoint; write auto or never",
    "  resume: true": "8:11: train.resume: got true, expected a text; write auto or never",
    "  resume: ~/x": "8:11: train.resume: got '~/x', expected a path written out; "
    "'~' is not expanded: write the whole path",
    "  resume: $RUN/x": "8:11: train.resume: got '$RUN/x', expected a path written out; variables "
    "are not expanded in a recipe: let the shell do it in an override",
    '  resume: ""': "8:11: train.resume: got an empty text, expected a text; the default is auto",
    '  resume: "a\\u202eb"': "8:11: train.resume: got 'a\\u202eb', expected text without control "
    "characters; remove them",
    '  resume: " a"': "8:11: train.resume: got ' a', expected text without spaces around it; "
    "write 'a'",
    "tracking:\n  wandb: off": "9:10: tracking.wandb: got 'off', expected disabled, offline or "
    "online; write disabled",
    "tracking:\n  wandb: offlin": "9:10: tracking.wandb: got 'offlin', expected disabled, offline "
    "or online; did you mean offline?",
    "tracking:\n  wandb: offline\n  run_name: 123e4": "10:13: tracking.run_name: got 123e4, "
    'expected a text, or null; put it in quotes: "123e4"',
    "lora:\n  layers: []": "9:11: lora.layers: got an empty list, expected a list of at least one "
    "entry: whole numbers from 0 to 1023, or null; the default is null",
    "lora:\n  layers: [1, 1]": "9:11: lora.layers: got [1, 1], expected every entry once; "
    "remove the second 1",
    "lora:\n  layers: [1, -2]": "9:15: lora.layers[1]: got -2, expected a whole number from 0 to "
    "1023; correct or remove the entry",
    "lora:\n  target_modules: q_proj": "9:19: lora.target_modules: got 'q_proj', expected a list "
    "of q_proj, k_proj, v_proj or o_proj; write [q_proj]",
    "lora:\n  target_modules:\n    - q_prj": "10:7: lora.target_modules[0]: got 'q_prj', expected "
    "q_proj, k_proj, v_proj or o_proj; did you mean q_proj?",
    "lora: 3": "8:7: lora: got 3, expected a mapping with rank, alpha, expert_rank, ...; "
    "remove it to keep the default",
    "distributed:\n  num_processes: 0": "9:18: distributed.num_processes: got 0, expected a "
    "whole number from 1 to 65536; the default is 1",
}


@pytest.mark.parametrize("text", APPENDED)
def test_a_wrong_value_is_one_mistake_at_its_line_and_column(mistakes, sound, text):
    assert mistakes(f"{sound}{text}\n") == [f"a.yaml:{APPENDED[text]}"]


SOURCES = "expected a text or a mapping with path, name, split, ..., or a list of them"
IN_DATA = {
    "train: 3": f'got 3, {SOURCES}; put it in quotes: "3"',
    "train: []": "got an empty list, expected at least one file or dataset; name one",
    "train: ''": f"got an empty text, {SOURCES}; "
    "write for example 'train: data/conversations/reasoning.jsonl' under 'data:'",
}


@pytest.mark.parametrize("text", IN_DATA)
def test_sources_that_are_none(mistakes, sound, text):
    (line,) = mistakes(sound.replace("train: a.jsonl", text))
    assert line == f"a.yaml:4:10: data.train: {IN_DATA[text]}"


def test_mistakes_inside_a_list_of_sources_have_their_own_place(mistakes, sound):
    text = sound.replace("a.jsonl", "[a.jsonl, {path: o/d, splt: x}, {split: x}, 3]")
    lines = mistakes(text)
    assert [line.split(" got ")[0] for line in lines] == [
        "a.yaml:4:3: data.train[2].path:",
        "a.yaml:4:32: data.train[1].splt:",
        "a.yaml:4:54: data.train[3]:",
    ]
    assert lines[1].endswith("did you mean data.train[1].split?")


def test_a_single_mapping_is_one_source(load, mistakes, sound):
    text = sound.replace("a.jsonl", "{path: owner/name, split: test, revision: main}")
    assert load(text).data.train == [DataSource(path="owner/name", split="test", revision="main")]
    (line,) = mistakes(text.replace("owner/name", "3"))
    assert line.startswith("a.yaml:4:17: data.train.path: got 3, expected a text; put it in quotes")


def test_a_wrong_key_in_a_mapping_of_texts(mistakes, sound):
    (line,) = mistakes(sound.replace("a.jsonl", "{path: a.csv, columns: {promt: '{{ q }}'}}"))
    assert line == (
        "a.yaml:4:34: data.train.columns.promt: got an unknown key, expected a setting of "
        "'data.train.columns'; did you mean data.train.columns.prompt?"
    )
    (line,) = mistakes(sound.replace("a.jsonl", "{path: a.csv, columns: {prompt: 3}}"))
    assert line == (
        'a.yaml:4:42: data.train.columns.prompt: got 3, expected a text; put it in quotes: "3"'
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "train.learning_rate"),
        ("learning-rate", "train.learning_rate"),
        ("Learning_Rate", "train.learning_rate"),
        ("leaning_rate", "train.learning_rate"),
        ("max_seq_length", "data.max_length"),
        ("rank", "lora.rank"),
        ("packing", "data.packing"),
        ("gradient_checkpointing", "train.activation_checkpointing"),
        ("lora_alpha", "lora.alpha"),
        ("wandb_project", "tracking.project"),
        ("target_module", "lora.target_modules"),
    ],
)
def test_an_unknown_key_is_told_what_was_meant(mistakes, sound, key, meant):
    assert mistakes(f"{sound}  {key}: 1\n") == [
        f"a.yaml:8:3: train.{key}: got an unknown key, expected a setting of 'train'; "
        f"did you mean {meant}?"
    ]


def test_an_unknown_section_and_a_setting_outside_its_section(mistakes, sound):
    text = sound + "trakcing:\n  wandb: offline\nrank: 3\nzzz: 1\n"
    assert mistakes(text) == [
        "a.yaml:8:1: trakcing: got an unknown key, expected a section; did you mean tracking?",
        "a.yaml:10:1: rank: got an unknown key, expected a section; did you mean lora.rank?",
        "a.yaml:11:1: zzz: got an unknown key, expected one of model, lora, method, data, "
        "train, evaluation, guard, export, tracking, distributed; remove it; 'gptoss-tune schema' "
        "lists every setting",
    ]


def test_a_misspelled_required_key_is_one_mistake(mistakes, sound):
    assert mistakes(sound.replace("output_dir", "output_dri")) == [
        "a.yaml:6:3: train.output_dri: got an unknown key, expected a setting of 'train'; "
        "did you mean train.output_dir?"
    ]
    (line,) = mistakes(sound.replace("max_steps", "max_step"))
    assert line.endswith("did you mean train.max_steps?")


def test_a_missing_required_key_points_at_its_section(mistakes, sound):
    assert mistakes(sound.replace("  output_dir: runs/a\n", "")) == [
        "a.yaml:5:1: train.output_dir: got nothing, expected a text; "
        "write for example 'output_dir: runs/first' under 'train:'"
    ]


@pytest.mark.parametrize(
    ("section", "key", "reason"),
    [
        ("lora", "dropout", "dropout is not possible for adapters on expert weights"),
        ("lora", "lora_dropout", "dropout is not possible for adapters on expert weights"),
        ("lora", "use_dora", "DoRA is not possible for adapters on expert weights"),
        ("lora", "bias", "training biases is not possible for adapters on expert weights"),
        ("lora", "lora_bias", "a bias in the adapter is not possible"),
        ("lora", "modules_to_save", "servers refuse adapters that hold whole modules"),
        ("distributed", "trust_remote_code", "a recipe cannot enable or name code to run"),
        ("distributed", "auto_map", "a recipe cannot enable or name code to run"),
        ("tracking", "api_key", "a recipe holds no credentials"),
        ("tracking", "hub_token", "a recipe holds no credentials"),
    ],
)
def test_settings_that_do_not_exist_on_purpose_are_refused_with_the_reason(
    mistakes, sound, section, key, reason
):
    (line,) = mistakes(f"{sound}{section}:\n  {key}: hf_canaryCanaryCanary\n")
    assert line.startswith(f"a.yaml:9:3: {section}.{key}: got an unknown key, expected a setting")
    assert reason in line


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("tracking:\n  api_key: {0}\n", ()),
        ("tracking:\n  wandb: {0}\n", ()),
        ("", ("tracking.hub_token={0}",)),
        ("", ("tracking.wandb={0}",)),
        ("", ("tracking.wandb=[{0}",)),
        ("tracking:\n  {0}: 1\n", ()),
        ("tracking:\n  wandb: !{0} x\n", ()),
        ("lora:\n  layers: [{0}]\n", ()),
    ],
)
@pytest.mark.parametrize("canary", ["hf_" + "Canary" * 5, "0123456789abcdef" * 2 + "01234567"])
def test_what_looks_like_a_credential_is_never_repeated(mistakes, sound, text, overrides, canary):
    lines = mistakes(sound + text.format(canary), *(o.format(canary) for o in overrides))
    assert canary not in "\n".join(lines)


def test_all_mistakes_come_at_once_in_the_order_of_the_lines(mistakes):
    lines = mistakes(
        "train:\n  seed: x\n  output_dir: runs/a\n  num_train_epochs: 1\n  max_steps: 3\n"
        "lora:\n  rank: 0\n  rank: 1\ndata:\n  evall: b\n  train: &x a.jsonl\n",
        "distributed.num_processes=0",
        "train.nothing=1",
    )
    assert [line.split(" got ")[0] for line in lines] == [
        "a.yaml:1:1: model.name_or_path:",
        "a.yaml:2:9: train.seed:",
        "a.yaml:5:3: train.max_steps:",
        "a.yaml:7:9: lora.rank:",
        "a.yaml:8:3: lora.rank:",
        "a.yaml:10:3: data.evall:",
        "a.yaml:11:10: data.train:",
        "override 1: 'distributed.num_processes=0': distributed.num_processes:",
        "override 2: 'train.nothing=1': train.nothing:",
    ]


def test_the_error_is_a_recipe_error_and_machine_readable(load, sound):
    with pytest.raises(RecipeError) as caught:
        load(sound + "  seed: x\n", "lora.rank=x")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RecipeMistakes)
    first, second = (mistake.as_json() for mistake in caught.value.mistakes)
    assert first["file"] == "a.yaml"
    assert (first["line"], first["column"], first["override"]) == (8, 9, None)
    assert (second["file"], second["line"], second["override"]) == (None, None, 1)
    assert {"key", "got", "expected", "todo", "message"} < set(first)


def test_the_recipe_is_frozen_and_its_classes_refuse_the_same(load, sound):
    recipe = load(sound)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match=r"train\.max_steps: got 3 beside"):
        Recipe.model_validate(
            {
                "model": {"name_or_path": "a/b"},
                "data": {"train": "a.jsonl"},
                "train": {"output_dir": "r", "max_steps": 3, "num_train_epochs": 1},
            }
        )


def test_defaults_are_not_shared_between_recipes(load, sound):
    first, second = load(sound), load(sound)
    first.lora.target_modules.clear()
    assert second.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
