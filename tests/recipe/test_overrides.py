"""key=value laid over a recipe: the checks of the file, and messages that name the override."""

import pytest

from gptoss_tune.recipe import DataSource


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.seed=3", lambda r: r.train.seed, 3),
        (" train.seed = 3 ", lambda r: r.train.seed, 3),
        ("train.learning_rate=1e-5", lambda r: r.train.learning_rate, 1e-5),
        ("data.packing=true", lambda r: r.data.packing, True),
        ("lora.layers=[0, 2]", lambda r: r.lora.layers, [0, 2]),
        ("lora.target_modules=[]", lambda r: r.lora.target_modules, []),
        ("data.train=b.jsonl", lambda r: r.data.train, [DataSource(path="b.jsonl")]),
        (
            "data.train=[b.jsonl, {path: o/d, split: test}]",
            lambda r: r.data.train,
            [DataSource(path="b.jsonl"), DataSource(path="o/d", split="test")],
        ),
        ("data.channel_weights.analysis=0.5", lambda r: r.data.channel_weights.analysis, 0.5),
        ("train.output_dir=runs/a=b", lambda r: r.train.output_dir, "runs/a=b"),
        ("train.output_dir=runs/a #1: *x", lambda r: r.train.output_dir, "runs/a #1: *x"),
        ("train.output_dir='null'", lambda r: r.train.output_dir, "null"),
        ('train.output_dir="3"', lambda r: r.train.output_dir, "3"),
        ("model.revision=null", lambda r: r.model.revision, None),
        ("distributed.num_processes=2", lambda r: r.distributed.num_processes, 2),
    ],
)
def test_an_override_sets_one_value(load, sound, override, read, value):
    assert read(load(sound, override)) == value


def test_an_override_repairs_what_the_file_has_wrong(load, mistakes, sound):
    text = sound + "  seed: x\nlora:\n  layers: [1, x]\n"
    assert len(mistakes(text)) == 2
    assert load(text, "train.seed=1", "lora.layers=null").train.seed == 1


def test_nothing_of_a_replaced_value_is_reported_any_more(mistakes, sound):
    text = sound + "lora:\n  layers: [1, x]\n"
    (line,) = mistakes(text, "lora.layers=[1, y]")
    assert line.startswith("override 1: 'lora.layers=[1, y]': lora.layers[1]: got 'y'")


def test_null_takes_the_place_of_the_other_of_two_settings(load, sound):
    recipe = load(sound, "train.num_train_epochs=2", "train.max_steps=null")
    assert (recipe.train.max_steps, recipe.train.num_train_epochs) == (None, 2.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed", "got no setting and value, expected key=value; write for example "
         "train.seed=1"),
        ("=3", "got no setting and value, expected key=value; write for example train.seed=1"),
        ("train..seed=3", "got no setting and value, expected key=value; write for example "
         "train.seed=1"),
        ("train.seed=", "train.seed: got no value, expected key=value; write train.seed=null, or "
         "train.seed='\"\"' for no text"),
        ("train.lr=3", "train.lr: got an unknown key, expected a setting of 'train'; did you mean "
         "train.learning_rate?"),
        ("trian.lr=3", "trian: got an unknown key, expected a section; did you mean train?"),
        ("seed=3", "seed: got an unknown key, expected a section; did you mean train.seed?"),
        ("train.seed=x", "train.seed: got 'x', expected a whole number from 0 to 4294967295; the "
         "default is 0"),
        ("train.expert_tile=0", "train.expert_tile: got 0, expected auto or a whole number from 1 "
         "to 1000000000, or null; the default is auto"),
        ("lora={rank: 3}", "lora: got a value for a whole section, expected one setting at a time; "
         "write for example lora.rank=..."),
        ("data.channel_weights=3", "data.channel_weights: got a value for a whole section, "
         "expected one setting at a time; write for example data.channel_weights.analysis=..."),
        ("data.train.path=b", "data.train.path: got a key below data.train, expected a setting, "
         "replaced whole; write data.train=..."),
        ("lora.layers=[1, x]", "lora.layers[1]: got 'x', expected a whole number from 0 to 1023; "
         "correct or remove the entry"),
        ("lora.layers=[1", "lora.layers: got broken YAML (expected ',' or ']', but got '<stream "
         "end>'), expected YAML; check the indentation, brackets and quotes here and in the line "
         "before"),
        ("lora.layers=[1] 2", "lora.layers: got broken YAML (expected '<document start>', but "
         "found '<scalar>'), expected YAML; check the indentation, brackets and quotes here and "
         "in the line before"),
        ("lora.layers=[1] # 2", "lora.layers: got '# 2' after the value, expected one value; put "
         "it all in quotes"),
        ("lora.layers=[&a 1, *a]", None),
        ("data.train=[{path: a, path: b}]", "data.train[0].path: got the key a second time, "
         "expected each key once (the first is before it); remove one"),
        ("data.roles={a: null}", "data.roles.a: got nothing (null), expected system, developer, "
         "user, assistant, tool or function_call; write for example 'a: system'"),
        ('data.roles={"\\e": null}', None),
        ("train.output_dir=!!str x", None),
        ("train.output_dir=a\nb", "train.output_dir: got 'a\\nb', expected text without control "
         "characters; remove them"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_by_number_and_text(load, mistakes, sound, override, message):
    if override.startswith("train.output_dir=!!"):  # one word, taken whole: no tag, just a name
        assert load(sound, override).train.output_dir == "!!str x"
        return
    lines = mistakes(sound, "lora.rank=8", override)
    assert all(line.startswith("override 2: '") for line in lines)
    assert "".join(lines).isprintable()
    if message is None:
        assert len(lines) == 2
    else:
        assert [line.split("': ", 1)[1] for line in lines] == [message]


def test_the_same_key_twice_is_a_mistake(mistakes, sound):
    assert mistakes(sound, "train.seed=1", "train.seed=1") == [
        "override 2: 'train.seed=1': train.seed: got the key a second time, expected each key "
        "once; remove this or override 1"
    ]


def test_surrogates_from_the_command_line_do_not_break_the_message(mistakes, sound):
    for override in ("train.output_dir=a\udcff", "train.\udcff=1", 'train.output_dir="a\udcff"'):
        (line,) = mistakes(sound, override)
        line.encode("utf-8")
