"""``--environment module:Class``: from the command to the ranks, into the record, and refused."""

import re
import sys
from pathlib import Path

import pytest

from gptoss_tune.environments.load import load_environment
from gptoss_tune.errors import RecipeError
from gptoss_tune.preflight.training import look_before_training
from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.load import places
from gptoss_tune.recipe.schema import DistributedSection
from gptoss_tune.run.record import refuse_other_environment
from gptoss_tune.train.__main__ import _without
from gptoss_tune.train.distributed.start_processes import accelerate_arguments
from gptoss_tune.train.resume.changes import changes, settle
from gptoss_tune.train.resume.fingerprint import environment_source


def test_it_reaches_every_rank():
    section = DistributedSection(num_processes=2)
    words = accelerate_arguments(["a.yaml"], section, ["steps"], "shop:Shop")
    ours = words[words.index("gptoss_tune.train") + 1 :]
    rest, found = _without(ours, "--environment")
    assert (rest, found) == (["a.yaml", "--allow-change", "steps"], ["shop:Shop"])
    assert _without(["a", "--environment=shop:Shop"], "--environment") == (["a"], ["shop:Shop"])
    with pytest.raises(RecipeError, match="--environment: no name follows"):
        _without(["a", "--environment"], "--environment")


@pytest.mark.parametrize(
    ("overrides", "spec", "said"),
    [
        ([], "nothing_here:Luck", "nothing_here"),
        (["method.name=sft", "train.keep_best=null"], "lucky:Luck", "plays no episodes"),
        (["method.environment=python"], "lucky:Luck", "method.environment python, expected one"),
        (["method.rewards={lukc: 1}"], "lucky:Named", "did you mean luck?"),
        (["method.rewards={lukc: 1}"], None, "need --environment module:Class"),
    ],
)
def test_what_cannot_play_is_refused_before_anything_is_loaded(
    grpo_recipe, lucky, spec, overrides, said
):
    if overrides[0:1] == ["method.name=sft"]:
        text = re.sub(r"method:\n(  .*\n)+", "method: {name: sft}\n", grpo_recipe.read_text())
        grpo_recipe = grpo_recipe.with_name("sft.yaml")
        grpo_recipe.write_text(text)
    recipe = load_recipe(grpo_recipe, overrides)
    with pytest.raises(RecipeError) as refused:
        look_before_training(
            str(grpo_recipe), recipe, places(grpo_recipe, overrides), on_cpu=True, environment=spec
        )
    assert said in str(refused.value)


def test_a_continuation_brings_the_same_class_and_file(lucky, grpo_recipe):
    spec = environment_source("lucky:Luck", load_environment("lucky:Luck"))
    assert re.fullmatch(r"lucky:Luck, sha256 [0-9a-f]{64}", spec)
    before, now = {"environment": spec}, {"environment": None, "steps": 4}
    train = load_recipe(grpo_recipe).train
    with pytest.raises(RecipeError, match=r"--environment lucky:Luck, with the file as it was"):
        settle(
            {**before, "steps": 4},
            now,
            allowed=(),
            recorded=(),
            step=1,
            where="runs/a",
            train=train,
        )
    # A run of a version that had none goes on.
    assert changes({"steps": 4}, now) == changes({"steps": 4, "environment": None}, now)


@pytest.mark.parametrize("edited", ["shop_named.py", "shop_inside.py"])
def test_an_edit_of_the_named_module_or_of_the_classs_own_is_a_change(
    tmp_path, monkeypatch, edited
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shop_named.py").write_text("from shop_inside import Shop\n")
    inside = Path(__file__).with_name("lucky.py").read_text().replace("Luck", "Shop")
    (tmp_path / "shop_inside.py").write_text(inside)
    for name in ("shop_named", "shop_inside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    made = load_environment("shop_named:Shop")
    before = environment_source("shop_named:Shop", made)
    with (tmp_path / edited).open("a") as file:
        file.write("PRICE = 3\n")
    assert environment_source("shop_named:Shop", made) != before


def test_who_reproduces_a_run_names_the_class():
    record = {"fingerprint": {"environment": "shop:Shop, sha256 0"}}
    refuse_other_environment(record, Path("run"), "shop:Shop")
    refuse_other_environment({"fingerprint": {"environment": None}}, Path("run"), None)
    with pytest.raises(RecipeError, match="add --environment shop:Shop"):
        refuse_other_environment(record, Path("run"), None)
    with pytest.raises(RecipeError, match="remove it"):
        refuse_other_environment({}, Path("run"), "shop:Shop")
