"""``method.rewards`` of a recipe: names and weights, refused before anything is loaded."""

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe.contradictions.rewards import require_known, reward_rules
from gptoss_tune.recipe.schema.grpo import GrpoSection

WRONG = {
    "no component": ({"rewards": {}}, "method.rewards: got no component"),
    "all zero": ({"rewards": {"answer": 0, "format": 0.0}}, "method.rewards: got no weight but 0"),
    "no name": ({"rewards": {"my reward": 1}}, "method.rewards.my reward: got 'my reward'"),
    "a metric's name": ({"rewards": {"std": 1}}, "reward_std is the metric of another figure"),
    "a target of nothing": ({"length_target": 64}, "64 without method.rewards.length"),
    "a target at the longest": (
        {"rewards": {"length": 1}, "length_target": 64, "max_new_tokens": 64},
        "64 with method.max_new_tokens 64",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_weighed_is_refused(name):
    settings, said = WRONG[name]
    found = list(map(str, reward_rules(GrpoSection(name="grpo", **settings))))
    assert len(found) == 1 and said in found[0]


def test_what_can_be_weighed_is_not():
    for settings in ({}, {"rewards": {"length": 1, "own": 0}, "length_target": 63}):
        assert not list(
            reward_rules(GrpoSection(name="grpo", **{"max_new_tokens": 64, **settings}))
        )


def test_a_component_that_nobody_gives_is_refused_with_those_that_are_given():
    weights = {"answer": 1.0, "formt": 1.0, "taste": 1.0}
    with pytest.raises(RecipeError) as raised:
        require_known(weights, own=False)
    lines = str(raised.value).splitlines()
    assert len(lines) == 2 and "did you mean format?" in lines[0]
    assert "answer, format, calls, length" in lines[1] and "--environment" in lines[1]
    require_known(weights, own=True)
    with pytest.raises(RecipeError, match=r"formt: .*did you mean format\?$"):
        require_known(weights, own=True, given=("taste",))
