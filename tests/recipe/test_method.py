"""The section ``method``: each method's settings, and what another one has to add to a recipe."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss_tune
from gptoss_tune.recipe import RecipeMistakes, load_recipe, recipe_yaml
from gptoss_tune.recipe.schema import METHODS, reference_of

BASE = "method.reference=base"
SECOND = '''

class SecondSection(Section):
    """Another method."""

    name: Literal["second"]
    """The method."""
    beta: Annotated[float, Field(gt=0, le=10), FromText] = 0.1
    """Its own setting."""


METHODS["second"] = SecondSection
MethodSection = Annotated[
    Annotated[SftSection, Tag("sft")] | Annotated[SecondSection, Tag("second")],
    Discriminator(method_name),
]
'''
ASK = """
import json, sys
from gptoss_tune.recipe import load_recipe, recipe_yaml
from pathlib import Path
said = {}
for words in json.loads(sys.argv[1]):
    try:
        recipe = load_recipe("a.yaml", words.split())
        Path("b.yaml").write_text(recipe_yaml(recipe))
        assert load_recipe("b.yaml") == recipe
        said[words] = repr(recipe.method)
    except ValueError as error:
        said[words] = str(error)
print(json.dumps(said))
"""


@pytest.fixture
def recipe(tmp_path, sound):
    path = tmp_path / "a.yaml"
    path.write_text(sound)
    return path


def test_without_the_section_a_recipe_means_sft(recipe, tmp_path):
    loaded = load_recipe(recipe)
    assert loaded.method.name == "sft" and "method:\n  name: sft\n" in recipe_yaml(loaded)
    assert load_recipe(recipe, ["method.name=sft"]) == loaded


@pytest.mark.parametrize(
    "override, said",
    [
        ("method.name=ppo", "got 'ppo', expected sft, dpo, ipo, simpo, orpo, kto or grpo"),
        (
            "method.beta=1",
            "method.beta: got an unknown key, expected no setting but method.name: sft has none; "
            "remove it, or set method.name to dpo, ipo, simpo, orpo or kto",
        ),
        ("method=sft", "expected one setting at a time; write for example method.name=..."),
    ],
)
def test_what_is_no_method_is_named(recipe, override, said):
    with pytest.raises(RecipeMistakes) as refused:
        load_recipe(recipe, [override])
    assert said in str(refused.value)


# Settings of each method, none of them its default, with what it measures against.
SETTINGS = {
    "sft": ([], "none"),
    "dpo": (["beta=0.3", "label_smoothing=0.1", "sft_weight=0.2", "analysis=ignored"], "base"),
    "ipo": (["length_normalized=false", "reference=none"], "none"),
    "simpo": (["gamma=0.5", "beta=1"], "none"),
    "orpo": (["beta=0.2"], "none"),
    "kto": (["desirable_weight=2", "undesirable_weight=0.5"], "base"),
    "grpo": (["group_size=4", "kl_weight=0.5", "average=sequence"], "base"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_of_each_method_is_written_and_read(recipe, tmp_path, name):
    settings, reference = SETTINGS[name]
    loaded = load_recipe(recipe, [f"method.{one}" for one in (f"name={name}", *settings)])
    assert type(loaded.method) is METHODS[name]
    assert reference_of(loaded.method, loaded.lora) == reference
    for one in settings:
        key, _, value = one.partition("=")
        assert str(getattr(loaded.method, key)).lower() in (value, f"{value}.0")
    (tmp_path / "b.yaml").write_text(recipe_yaml(loaded))
    assert load_recipe(tmp_path / "b.yaml") == loaded


def test_an_adapter_to_start_from_is_the_reference(recipe):
    for name, expected in (("dpo", "init_adapter"), ("kto", "init_adapter"), ("orpo", "none")):
        loaded = load_recipe(recipe, [f"method.name={name}", "lora.init_from=runs/b"])
        assert reference_of(loaded.method, loaded.lora) == expected
        if expected != "none":
            loaded = load_recipe(recipe, [f"method.name={name}", "lora.init_from=runs/b", BASE])
            assert reference_of(loaded.method, loaded.lora) == "base"


OF_DPO = "analysis, beta, label_smoothing, length_normalized, sft_weight, reference"


@pytest.mark.parametrize(
    "name, override, said",
    [
        ("dpo", "gamma=1", f"dpo: {OF_DPO}; remove it, or set method.name to simpo"),
        (
            "dpo",
            "gama=1",
            f"dpo: {OF_DPO}; did you mean method.gamma? remove it, or set method.name to simpo",
        ),
        ("dpo", "bta=1", f"dpo: {OF_DPO}; did you mean method.beta?"),
        ("dpo", "zzz=1", f"dpo: {OF_DPO}; remove it"),
        ("dpo", "rpo_alpha=1", f"dpo: {OF_DPO}; did you mean method.sft_weight?"),
        ("dpo", "loss_type=ipo", f"dpo: {OF_DPO}; did you mean method.name?"),
        ("orpo", "label_smoothing=0.1", "beta; remove it, or set method.name to dpo or simpo"),
        ("simpo", "reference=base", "remove it, or set method.name to dpo, ipo, kto or grpo"),
        ("dpo", "learning_rate=1", "a setting of 'method'; did you mean train.learning_rate?"),
        ("kto", "token=abc", "a recipe holds no credentials"),
        # What a setting takes, and its default, are those of the method that is set.
        ("kto", "reference=none", "expected base or init_adapter, or null; the default is null"),
        ("dpo", "reference=self", "expected base, init_adapter or none, or null"),
        ("simpo", "beta=much", "the default is 2.0"),
        ("ipo", "length_normalized=maybe", "the default is true"),
        ("dpo", "length_normalized=maybe", "the default is false"),
    ],
)
def test_a_wrong_setting_is_answered_with_those_of_its_method(recipe, name, override, said):
    with pytest.raises(RecipeMistakes) as refused:
        load_recipe(recipe, [f"method.name={name}", f"method.{override}"])
    (mistake,) = refused.value.mistakes
    assert said in str(mistake) and "abc" not in str(mistake)


def test_a_second_method_is_a_class_of_the_schema(recipe, tmp_path):
    """Loader, rules, messages and dump know it then; a copy of the package is given one."""
    package = tmp_path / "gptoss_tune"
    shutil.copytree(Path(gptoss_tune.__file__).parent, package)
    schema = package / "recipe" / "schema" / "methods.py"
    schema.write_text(schema.read_text().rstrip() + SECOND + "\n")
    asked = [
        "",
        "method.name=second method.beta=0.5",
        "method.beta=0.5",
        "method.name=second method.beta=99",
        "method.name=secnd method.beta=1",
        "method.name=second method.bta=1 train.max_steps=0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asked)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said[asked[0]] == "SftSection(name='sft')"
    assert said[asked[1]] == "SecondSection(name='second', beta=0.5)"
    assert "method.beta: got an unknown key, expected no setting but method.name" in said[asked[2]]
    assert "method.beta: got 99, expected a number above 0 and at most 10" in said[asked[3]]
    assert "method.name: got 'secnd', expected sft or second" in said[asked[4]]
    assert "did you mean method.beta?" in said[asked[5]] and "train.max_steps" in said[asked[5]]
