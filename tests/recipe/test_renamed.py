"""Settings that were renamed: refused with the new name, and what is told to write loads."""

import re

import pytest
import yaml

from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.json_schema import settings_below
from gptoss_tune.recipe.renamed import RENAMED, recipe_in_new_names

VALUES = {
    "world.processes": 2,
    "world.spread": "ddp",
    "world.timeout_seconds": 60,
    "train.checkpointing": "offload",
    "lora.start_from": "runs/first",
}
GOT = "got a key that was renamed, expected"


def setting(recipe, name):
    section, key = name.split(".")
    return getattr(getattr(recipe, section), key)


def with_setting(text, name, value):
    """Return a recipe's text with one more setting."""
    body = yaml.safe_load(text)
    section, key = name.split(".")
    body.setdefault(section, {})[key] = value
    return yaml.safe_dump(body, sort_keys=False)


def test_every_new_name_is_a_setting_and_no_old_one_is():
    assert {old for old in RENAMED if "." in old} == VALUES.keys()
    for old, new in RENAMED.items():
        *above, key = new.split(".")
        assert key in settings_below(tuple(above)), new
        *above, key = old.split(".")
        assert key not in settings_below(tuple(above)), old


@pytest.mark.parametrize("old", VALUES)
def test_an_old_key_in_a_file_is_one_mistake_and_its_advice_loads(load, mistakes, sound, old):
    new, value = RENAMED[old], VALUES[old]
    # fsdp2 and ddp need several processes.
    many = ["distributed.num_processes=2"] if old == "world.spread" else []
    (line,) = mistakes(with_setting(sound, old, value), *many)
    section, key = new.split(".")
    advice = f"write '{key}: {value}' under '{section}:'"
    assert re.fullmatch(rf"a\.yaml:\d+:3: {old}: {GOT} {new}; {re.escape(advice)}", line)
    assert setting(load(with_setting(sound, new, value), *many), new) == value


@pytest.mark.parametrize("old", VALUES)
def test_an_old_key_as_an_override_is_one_mistake_and_its_advice_loads(load, mistakes, sound, old):
    new, given = RENAMED[old], f"{old}={VALUES[old]}"
    many = ["distributed.num_processes=2"] if old == "world.spread" else []
    (line,) = mistakes(sound, given, *many)
    assert line == f"override 1: '{given}': {old}: {GOT} {new}; write {new}={VALUES[old]}"
    told = line.rpartition("; write ")[2]
    assert setting(load(sound, told, *many), new) == VALUES[old]


def test_all_mistakes_come_at_once(mistakes, sound):
    text = sound + "  checkpointing: nope\nworld:\n  processes: 2\n  spread: fsdp2\n  other: 1\n"
    assert mistakes(text, "train.checkpointing=full", "world.timeout_seconds=0", "world=1") == [
        f"a.yaml:8:3: train.checkpointing: {GOT} train.activation_checkpointing; "
        "write 'activation_checkpointing: nope' under 'train:'",
        f"a.yaml:10:3: world.processes: {GOT} distributed.num_processes; "
        "write 'num_processes: 2' under 'distributed:'",
        f"a.yaml:11:3: world.spread: {GOT} distributed.strategy; "
        "write 'strategy: fsdp2' under 'distributed:'",
        "a.yaml:12:3: distributed.other: got an unknown key, expected one of num_processes, "
        "strategy, context_parallel, timeout_seconds; remove it; 'gptoss-tune schema' lists "
        "every setting",
        f"override 1: 'train.checkpointing=full': train.checkpointing: {GOT} "
        "train.activation_checkpointing; write train.activation_checkpointing=full",
        "override 2: 'world.timeout_seconds=0': distributed.timeout_seconds: got 0, expected a "
        "whole number from 1 to 86400; the default is 120",
        f"override 2: 'world.timeout_seconds=0': world.timeout_seconds: {GOT} "
        "distributed.timeout_seconds; write distributed.timeout_seconds=0",
        "override 3: 'world=1': world: got a section that was renamed, expected distributed; "
        "write for example distributed.num_processes=...",
    ]


def test_the_value_under_an_old_key_is_checked_against_the_others(mistakes, sound):
    lines = mistakes(sound + "world: {spread: fsdp2}\n")
    assert [line.split(": ")[1] for line in lines] == ["distributed.strategy", "world.spread"]
    assert "fsdp2 while distributed.num_processes is 1" in lines[0]


@pytest.mark.parametrize("empty", ["", " null", " {}"])
def test_an_old_section_without_settings_is_one_mistake(load, mistakes, sound, empty):
    assert mistakes(sound + f"world:{empty}\n") == [
        "a.yaml:8:1: world: got a section that was renamed, expected distributed; "
        "write 'distributed:'"
    ]
    assert load(sound + f"distributed:{empty}\n").distributed.num_processes == 1


def test_an_old_section_that_is_no_mapping(mistakes, sound):
    assert [line.split(": ")[1] for line in mistakes(sound + "world: 5\n")] == [
        "world",
        "distributed",
    ]


def test_an_old_key_beside_its_new_one(mistakes, sound):
    text = sound + "world: {processes: 0}\ndistributed: {num_processes: 2}\n"
    assert mistakes(text) == [
        f"a.yaml:8:9: world.processes: {GOT} distributed.num_processes; "
        "remove it, distributed.num_processes is there too"
    ]


def test_what_looks_like_a_credential_is_not_repeated(mistakes, sound):
    token = "hf_" + "x" * 30
    lines = mistakes(sound + f"lora: {{start_from: {token}}}\n", f"lora.start_from={token}")
    assert len(lines) == 2 and all(token not in line for line in lines)
    assert lines[0].endswith("write 'init_from: ...' under 'lora:'")


def test_a_recipe_that_a_program_wrote_is_read_under_the_new_names(load, sound, tmp_path):
    new = load(sound, *(f"{RENAMED[old]}={value}" for old, value in VALUES.items()))
    text = sound
    for old, value in VALUES.items():
        text = with_setting(text, old, value)
    (tmp_path / "old.yaml").write_text(text)
    assert load_recipe(tmp_path / "old.yaml", old_names=True) == new
    resolved = new.model_dump(mode="json")
    world = resolved.pop("distributed")
    resolved["world"] = {"processes": world["num_processes"], "spread": world["strategy"]}
    resolved["world"]["context_parallel"] = world["context_parallel"]
    resolved["train"]["checkpointing"] = resolved["train"].pop("activation_checkpointing")
    resolved["lora"]["start_from"] = resolved["lora"].pop("init_from")
    resolved["world"]["timeout_seconds"] = 60
    assert recipe_in_new_names(resolved) == new.model_dump(mode="json")


def test_an_override_under_an_old_name_is_refused_there_too(load, sound, tmp_path):
    (tmp_path / "old.yaml").write_text(sound + "  checkpointing: full\n")
    with pytest.raises(ValueError, match=r"^override 1: .* write lora\.init_from=a$"):
        load_recipe(tmp_path / "old.yaml", ["lora.start_from=a"], old_names=True)
