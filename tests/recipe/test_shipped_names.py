"""Shipped recipes by name: from any folder, with their data, and the same as by their path."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gptoss_tune
from gptoss_tune.cli import app
from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe import RecipeMistakes, load_recipe
from gptoss_tune.shipped import recipe_names, shipped

NAMES = recipe_names()
MINE = ("data.train=my.jsonl", "data.eval=null")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, arguments)


def paths_of(recipe):
    evaluation, data = recipe.evaluation, recipe.data
    asked = [evaluation.prompts, evaluation.drift.references, evaluation.drift.probes]
    sources = [source.path for source in [*data.train, *(data.eval or [])]]
    return [*sources, *(path for files in asked for path in files or [])]


def test_every_recipe_has_a_name_and_no_accelerate_file_is_one():
    assert {"gpt-oss-20b/qlora", "gpt-oss-120b/qlora-80gb", "tiny/lora"} <= set(NAMES)
    assert len(NAMES) == len(list(shipped("recipes").glob("[gt]*/*.yaml")))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_the_same_by_name_and_by_path_and_finds_its_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    local = [path for path in paths_of(recipe) if not path.startswith("agentica-org/")]
    assert local and all(Path(path).is_file() for path in local)
    file = shipped("recipes") / f"{name}.yaml"
    same = (f"{name}.yaml", f"recipes/{name}.yaml", f"./recipes/{name}", file, Path(name))
    assert all(load_recipe(other) == recipe for other in same)
    monkeypatch.chdir(shipped("recipes").parent)
    here = load_recipe(name)
    assert here == load_recipe(f"recipes/{name}.yaml")
    assert all(not os.path.isabs(path) for path in paths_of(here)), "as the file has them"


def test_a_local_file_wins_and_its_paths_are_those_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    text = (shipped("recipes") / "tiny" / "qlora.yaml").read_text()
    Path("tiny/qlora.yaml").write_text(text.replace("seed: 0", "").replace("1e-2", "2e-2"))
    own = load_recipe("tiny/qlora.yaml")
    assert own.train.learning_rate == 2e-2
    assert paths_of(own) == ["data/tiny/train.jsonl"]
    assert load_recipe("tiny/qlora").train.learning_rate == 1e-2, "there is no file of this name"
    Path("tiny/lora").mkdir()
    assert load_recipe("tiny/lora").model.experts_precision == "bf16", "a folder is no recipe"


def test_an_override_of_a_shipped_recipe_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = load_recipe("tiny/qlora", ["data.train=data/tiny/train.jsonl"])
    assert paths_of(mine) == ["data/tiny/train.jsonl"]


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("qlora-16gb", "gpt-oss-20b/qlora-16gb?"),
        ("gpt-oss-20b/qlor", "gpt-oss-20b/qlora or "),
        ("gptoss-20b/qlora.yaml", "gpt-oss-20b/qlora or "),
        ("recipes/tiny/dpo2.yaml", "tiny/dpo"),
        ("tiny", "tiny/dpo or tiny/grpo or tiny/lora or tiny/qlora or tiny/"),
    ],
)
def test_an_unknown_name_lists_the_nearest(written, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeMistakes, match="no such file, expected a recipe; did you") as caught:
        load_recipe(written)
    assert f"did you mean {near}" in str(caught.value)
    with pytest.raises(RecipeError, match="got no such file, expected a recipe; 'gptoss-tune rec"):
        load_recipe("mine.yaml")


def test_nothing_outside_the_recipes_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for written in ("../README", "tiny/../tiny/lora", "accelerate/cpu", "", "a\0b", "x" * 5000):
        with pytest.raises(RecipeError):
            load_recipe(written)


@pytest.mark.parametrize(
    "words",
    [
        ("check", "tiny/lora"),
        ("plan", "gpt-oss-20b/qlora", "--gpu", "4090"),
        ("preview", "gpt-oss-20b/dpo"),
        ("check-data", "gpt-oss-20b/kto.yaml"),
        ("launch", "gpt-oss-20b/qlora", "--slurm", "--out", "-"),
        # What is sent to another machine has to lie here: one's own rows.
        ("launch", "recipes/gpt-oss-20b/qlora.yaml", *MINE, "--skypilot", "--out", "-"),
    ],
    ids=" ".join,
)
def test_commands_take_a_name_in_an_empty_folder(run, words):
    result = run(*words)
    assert result.exit_code == 0, result.output + str(result.exception)
    if "--slurm" in words:
        assert f"gptoss_tune.train {words[1]}" in result.stdout


def test_a_copy_keeps_the_comments_and_trains_on_the_same(run, tmp_path):
    for name in NAMES:
        result = run("recipes", "--copy", name)
        assert result.exit_code == 0, result.output
        file = tmp_path / f"{name.replace('/', '-')}.yaml"
        assert load_recipe(file) == load_recipe(name)
        ours = (shipped("recipes") / f"{name}.yaml").read_text().splitlines()
        comments = [
            line.partition("#")[2] for line in ours if "#" in line and "$schema" not in line
        ]
        assert all(comment in file.read_text() for comment in comments)
        schema = file.read_text().splitlines()[1].partition("$schema=")[2]
        assert Path(schema).is_file()
        commands = [line.split() for line in result.stdout.splitlines() if line.startswith("  ")]
        assert [words[1] for words in commands][-2:] == ["plan", "train"]
        assert commands[-1][2] == file.name
    before = (tmp_path / "tiny-lora.yaml").read_text()
    again = run("recipes", "--copy", "tiny/lora")
    assert isinstance(again.exception, RecipeError)
    assert "is there already" in str(again.exception)
    assert (tmp_path / "tiny-lora.yaml").read_text() == before


def test_a_copy_goes_where_out_says(run, tmp_path):
    assert run("recipes", "--copy", "tiny/lora.yaml", "--out", "my/own.yaml").exit_code == 0
    (tmp_path / "there").mkdir()
    done = run("recipes", "--copy", "recipes/tiny/lora", "--out", "there", "--json")
    assert json.loads(done.stdout) == {"written": "there/tiny-lora.yaml"}
    assert load_recipe("my/own.yaml") == load_recipe("there/tiny-lora.yaml")
    assert "did you mean tiny/lora" in str(run("recipes", "--copy", "tiny/lorra").exception)
    assert run("recipes", "--out", "x.yaml").exit_code == 2


def test_a_copy_in_a_checkout_has_the_paths_of_the_checkout(tmp_path, monkeypatch):
    from gptoss_tune.shipped import recipe_text

    root = shipped("recipes").parent
    monkeypatch.chdir(root)
    file = root / "recipes" / "gpt-oss-20b" / "qlora.yaml"
    assert recipe_text(file, root) == file.read_text().replace("$schema=../", "$schema=recipes/")


def test_a_path_that_yaml_would_read_otherwise_is_quoted(tmp_path, monkeypatch):
    from gptoss_tune import shipped as module

    strange = tmp_path / "a #b" / "data"
    shutil.copytree(shipped("data") / "tiny", strange / "tiny")
    real = module.shipped
    monkeypatch.setattr(
        module, "shipped", lambda which: strange if which == "data" else real(which)
    )
    monkeypatch.chdir(real("recipes"))
    text = module.recipe_text(real("recipes") / "tiny" / "qlora.yaml", tmp_path)
    (tmp_path / "copy.yaml").write_text(text)
    assert paths_of(load_recipe(tmp_path / "copy.yaml")) == [str(strange / "tiny" / "train.jsonl")]


def test_a_shell_completes_names_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("")
    Path("tinier").mkdir()

    def offered(*words):
        asked = {
            "_GPTOSS_TUNE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["gptoss-tune", *words]),
            "COMP_CWORD": str(len(words)),
        }
        return CliRunner().invoke(app, [], prog_name="gptoss-tune", env=asked).stdout.split()

    assert offered("check", "") == NAMES
    assert offered("train", "tin") == [
        "tiny/dpo",
        "tiny/grpo",
        "tiny/lora",
        "tiny/qlora",
        "tiny/safeguard",
        "tiny/tools",
        "tinier/",
    ]
    assert offered("plan", "mi") == ["mine.yaml"]
    assert offered("recipes", "--copy", "gpt-oss-120b/qlora-8x")[0].endswith("-ddp")


@pytest.mark.slow
def test_an_installed_wheel_has_its_recipes_by_name_and_their_data(tmp_path):
    """As hatchling lays a wheel out: both folders inside the package, no checkout around it."""
    package = tmp_path / "site" / "gptoss_tune"
    shutil.copytree(Path(gptoss_tune.__file__).parent, package)
    for folder in ("recipes", "data"):
        shutil.copytree(shipped(folder), package / f"_{folder}")
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-P", "-m", "gptoss_tune", "check", "tiny/lora", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)["recipe"]
    assert body["data"]["train"][0]["path"] == str(package / "_data" / "tiny" / "train.jsonl")
    assert body["evaluation"]["prompts"] == [str(package / "_data" / "prompts" / "tiny.jsonl")]
