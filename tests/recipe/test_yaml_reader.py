"""What YAML says and where: the traps of YAML 1.1, duplicate keys, aliases, tags, broken text."""

import math

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.yaml_reader import scalar


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("2.", 2.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("017", "017"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2025-06-28", "2025-06-28"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("<<", "<<"),
        ("=", "="),
        ("9" * 50, "9" * 50),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
    ],
)
def test_an_unquoted_word_means_what_yaml_1_2_says(text, meaning):
    result = scalar(text)
    assert result == meaning
    assert type(result) is type(meaning)


def test_not_a_number_is_read_as_one_and_refused_by_the_range(mistakes, sound):
    assert math.isnan(scalar(".nan"))
    assert mistakes(sound + "  weight_decay: .nan\n") == [
        "a.yaml:8:17: train.weight_decay: got .nan, expected a number from 0 to 10; "
        "the default is 0.0"
    ]


def test_an_exponent_is_a_number_bare_and_in_quotes(load, sound):
    assert load(sound + "  learning_rate: 1e-5\n").train.learning_rate == 1e-5
    assert load(sound + "  learning_rate: '1e-5'\n").train.learning_rate == 1e-5
    assert load(sound, "train.learning_rate=1e-5").train.learning_rate == 1e-5


def test_no_is_a_word_where_a_text_is_wanted(load, sound):
    recipe = load(sound + "tracking:\n  wandb: offline\n  project: no\n  run_name: off\n")
    assert (recipe.tracking.project, recipe.tracking.run_name) == ("no", "off")


@pytest.mark.parametrize(("word", "meant"), [("no", "false"), ("ON", "true"), ("'true'", "true")])
def test_a_switch_word_where_a_bool_is_wanted_is_refused_with_what_to_write(
    mistakes, sound, word, meant
):
    (line,) = mistakes(sound.replace("a.jsonl", f"a.jsonl\n  packing: {word}"))
    shown = word.strip("'")
    assert line == (
        f"a.yaml:5:12: data.packing: got '{shown}', expected true or false; write {meant}"
    )


def test_a_date_stays_the_text_it_is(load, sound):
    assert load(sound.replace("a.jsonl", "a.jsonl\n  date: 2024-02-29")).data.date == "2024-02-29"


def test_a_duplicate_key_is_refused_with_the_line_of_the_first(mistakes, sound):
    assert mistakes(sound + "  seed: 1\n  seed: 2\n") == [
        "a.yaml:9:3: train.seed: got the key a second time, expected each key once "
        "(the first is in line 8); remove one"
    ]


def test_a_duplicate_section_is_refused_once(mistakes, sound):
    assert mistakes(sound + "data:\n  train: b.jsonl\n  max_length: 64\n") == [
        "a.yaml:8:1: data: got the key a second time, expected each key once "
        "(the first is in line 3); remove one"
    ]


def test_anchors_and_aliases_are_refused_where_they_stand(mistakes, sound):
    assert mistakes(sound + "  seed: &x 1\n  logging_steps: *x\n") == [
        "a.yaml:8:9: train.seed: got the anchor '&x', expected a plain value; remove the anchor",
        "a.yaml:9:18: train.logging_steps: got the alias '*x', expected a value; write it out",
    ]


def test_a_merge_key_is_refused(mistakes, sound):
    (line,) = mistakes(sound + "  <<: {seed: 1}\n")
    assert line.startswith("a.yaml:8:3: train.<<: got an unknown key")
    assert "merge keys are not read in recipes" in line


def test_an_alias_bomb_costs_nothing(mistakes, sound):
    bomb = "lol0: &lol0 [x, x]\n" + "".join(
        f"lol{i}: &lol{i} [{', '.join([f'*lol{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    lines = mistakes(sound + bomb)
    assert any("got the alias '*lol0'" in line for line in lines)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!str", "!local", "!!binary", "!"]
)
def test_tags_are_refused(mistakes, sound, tag):
    (line,) = mistakes(sound + f"  seed: {tag} '1'\n")
    assert line.startswith("a.yaml:8:9: train.seed: got the tag '")
    assert line.endswith("', expected a plain value; remove the tag")


def test_a_tag_on_a_list_runs_nothing(mistakes, sound, tmp_path):
    text = sound + f"  seed: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n"
    assert "got the tag" in mistakes(text)[0]
    assert not (tmp_path / "made").exists()


def test_rows_that_are_given_for_a_recipe_are_called_so(tmp_path):
    rows = tmp_path / "d.jsonl"
    rows.write_text('{"messages": []}\n{"messages": []}\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(rows)
    assert str(caught.value).endswith(
        f"name a recipe, and this file as its rows: data.train={rows}"
    )
    advice = f"data.train={rows}"
    assert load_recipe("tiny/qlora", [advice]).data.train[0].path == str(rows)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "model:\n\tname_or_path: a\n",
            "a.yaml:2:1: got broken YAML (found character '\\t' that cannot start any token), "
            "expected YAML; indent with spaces, not tabs",
        ),
        (
            "model:\n  name_or_path: a: b\n",
            "a.yaml:2:18: got broken YAML (mapping values are not allowed here), expected YAML; "
            "one 'key: value' per line; put a text that holds ': ' in quotes",
        ),
        (
            "model: [a\n",
            "a.yaml:2:1: got broken YAML (expected ',' or ']', but got '<stream end>'), expected "
            "YAML; check the indentation, brackets and quotes here and in the line before",
        ),
        (
            "model:\n  name_or_path: @a\n",
            "a.yaml:2:17: got broken YAML (found character '@' that cannot start any token), "
            "expected YAML; put the text in quotes",
        ),
        ("- a\n", "a.yaml:1:1: got a list, expected sections; write for example 'model:'"),
        ("text\n", "a.yaml:1:1: got 'text', expected sections; write for example 'model:'"),
        (
            "model: {}\n---\nmodel: {}\n",
            "a.yaml:2:1: got a second document, expected one recipe; remove what follows '---'",
        ),
        (
            "model: {{ name }}\n",
            "a.yaml:1:9: model: got a key that is no plain word, expected key: value; "
            "put it in quotes",
        ),
        (
            "a:\n  b: \x07\n",
            "a.yaml:2:6: got the character U+0007, expected printable text; remove it",
        ),
        (b"a: 1\nb: \xff\n", "a.yaml:2:4: got the byte 0xff, expected UTF-8; save it as UTF-8"),
    ],
    ids=lambda value: (
        None if isinstance(value, str) and value.startswith("a.yaml") else repr(value)
    ),
)
def test_text_that_is_no_recipe_is_one_mistake_with_its_place(mistakes, text, line):
    assert mistakes(text) == [line]


def test_depth_is_bounded_without_recursion(mistakes):
    (line,) = mistakes("a: " + "[" * 30_000)
    assert "got more than 12 levels" in line
    (line,) = mistakes(
        "a:\n" + "".join("  " * i + "- \n" for i in range(1, 100)).replace("- ", "-")
    )
    assert line.startswith("a.yaml:")


def test_an_empty_file_names_what_is_required(mistakes):
    for text in ("", "# nothing yet\n", "model:\ndata:\n"):
        keys = [line.split(": ")[1] for line in mistakes(text)]
        assert sorted(keys) == [
            "data.train",
            "model.name_or_path",
            "train.max_steps",
            "train.output_dir",
        ]


def test_a_section_whose_lines_are_all_comments_has_the_defaults(load, sound):
    text = sound + "lora:\n  # rank: 8\n"
    assert load(text) == load(sound)
    assert load(sound.replace("a.jsonl", "a.jsonl\n  channel_weights:")) == load(sound)


def test_a_byte_order_mark_and_crlf_are_read(load, sound):
    assert load(b"\xef\xbb\xbf" + sound.replace("\n", "\r\n").encode()) == load(sound)


def test_too_large_a_file_is_refused_before_it_is_parsed(mistakes):
    assert mistakes("x" * 70_000) == [
        "a.yaml: got over 65536 bytes, expected a recipe; name the recipe, not the data"
    ]


def test_files_that_cannot_be_read(tmp_path):
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.recipe import load_recipe

    for path, got in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "a folder"),
        (tmp_path / "file" / "below.yaml", "a file that cannot be read"),
        ("nul\0byte.yaml", "a file that cannot be read"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(RecipeError, match=f"got {got}"):
            load_recipe(path)
