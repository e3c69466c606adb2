"""Whatever a file or an override holds, the loader returns a recipe or raises RecipeError."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe import Recipe, load_recipe
from gptoss_tune.recipe.json_schema import settings_below

PATIENT = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SETTINGS = [f"{s}.{k}" for s in settings_below(()) for k in settings_below((s,))]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["no", "1e-5", "auto", "a.jsonl", "bf16", "~", "&a", "*a", "!!str", "017"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below),
    max_leaves=6,
)


def ends_well(path, overrides=()):
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        str(error).encode("utf-8")
        assert "\x1b" not in str(error)
    else:
        assert isinstance(recipe, Recipe)


@PATIENT
@given(data=st.binary(max_size=300))
def test_any_bytes(tmp_path, data):
    (tmp_path / "a.yaml").write_bytes(data)
    ends_well(tmp_path / "a.yaml")


@PATIENT
@given(text=st.text(alphabet=":-[]{}&*!|>'\"%@`#,? \n\tab01.~<=e", max_size=120))
def test_any_yaml_like_text(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    ends_well(tmp_path / "a.yaml")


@pytest.mark.slow
@PATIENT
@given(values=st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=6))
def test_any_values_at_known_settings(tmp_path, values):
    import yaml

    nested = {}
    for key, value in values.items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = value
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(nested, allow_unicode=False))
    ends_well(tmp_path / "a.yaml")


@PATIENT
@given(
    overrides=st.lists(
        st.text(max_size=30)
        | st.builds(
            "{}={}".format,
            st.sampled_from([*SETTINGS, "lora", "data.train.path", "x.y.z", "train."]),
            st.text(max_size=20) | VALUES.map(repr),
        ),
        max_size=4,
    )
)
def test_any_overrides(tmp_path, sound, overrides):
    (tmp_path / "a.yaml").write_text(sound)
    ends_well(tmp_path / "a.yaml", overrides)


def test_a_sound_recipe_with_any_character_lost_or_doubled(tmp_path, sound):
    rng = random.Random(0)
    for _ in range(300):
        at = rng.randrange(len(sound))
        middle = rng.choice(["", sound[at] * 2, rng.choice(":#&*![]{}\t\0\x85\ufeff")])
        path = tmp_path / "a.yaml"
        path.write_text(sound[:at] + middle + sound[at + 1 :], encoding="utf-8")
        ends_well(path)
