"""The section ``method``: its one method, and what a second one has to add to the recipe."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss_tune
from gptoss_tune.recipe import RecipeMistakes, load_recipe, recipe_yaml

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
        ("method.name=ppo", "method.name: got 'ppo', expected sft, dpo, ipo, simpo, orpo or kto"),
        ("method.beta=1", "method.beta: got an unknown key, expected a setting of the method"),
        ("method=sft", "expected one setting at a time; write for example method.name=..."),
    ],
)
def test_what_is_no_method_is_named(recipe, override, said):
    with pytest.raises(RecipeMistakes) as refused:
        load_recipe(recipe, [override])
    assert said in str(refused.value)


def test_a_second_method_is_a_class_of_the_schema(recipe, tmp_path):
    """Loader, rules, messages and dump know it then; a copy of the package is given one."""
    package = tmp_path / "gptoss_tune"
    shutil.copytree(Path(gptoss_tune.__file__).parent, package)
    schema = package / "recipe" / "schema.py"
    text = schema.read_text()
    before, found, after = text.partition("class TrainSection(")
    assert found
    schema.write_text(before.rstrip() + SECOND + "\n\n" + found + after)
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
    assert "method.beta: got an unknown key, expected a setting of the method" in said[asked[2]]
    assert "method.beta: got 99, expected a number above 0 and at most 10" in said[asked[3]]
    assert "method.name: got 'secnd', expected sft or second" in said[asked[4]]
    assert "did you mean method.beta?" in said[asked[5]] and "train.max_steps" in said[asked[5]]
