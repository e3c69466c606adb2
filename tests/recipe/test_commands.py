"""check, schema and recipes as a user runs them: output, exit codes, and what they import."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.recipe import RecipeMistakes, load_recipe, recipe_json_schema
from gptoss_tune.shipped import shipped


@pytest.fixture
def run(tmp_path, monkeypatch, sound):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(sound)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, arguments)


def test_check_prints_a_recipe_that_loads_to_the_same(run, tmp_path):
    result = run("check", "a.yaml", "train.seed=3", "lora.rank=4")
    assert result.exit_code == 0
    (tmp_path / "printed.yaml").write_text(result.stdout)
    assert load_recipe("printed.yaml") == load_recipe("a.yaml", ["train.seed=3", "lora.rank=4"])


def test_check_marks_what_differs_from_the_defaults(run):
    lines = run("check", "a.yaml", "train.seed=3").stdout.splitlines()
    assert lines[0] == "# a.yaml with 1 override: sound"
    marked = {line.split(":")[0].strip(): line.split("# ")[1] for line in lines[1:] if "# " in line}
    assert marked == {
        "name_or_path": "required",
        "train": "required",
        "output_dir": "required",
        "max_steps": "default null",
        "seed": "default 0",
    }


def test_check_fits_into_80_columns(run):
    for path in shipped("recipes").glob("*/*lora*.yaml"):
        result = run("check", str(path))
        assert result.exit_code == 0
        lines = result.stdout.splitlines()[1:]  # the first holds the path as it was given
        assert max(map(len, lines)) <= 80, path


def test_check_refuses_a_recipe_with_mistakes(run):
    result = run("check", "a.yaml", "train.sed=3")
    assert isinstance(result.exception, RecipeMistakes)
    assert result.exception.exit_code == 2


def test_check_json_on_a_sound_recipe(run):
    body = json.loads(run("check", "a.yaml", "--json").stdout)
    assert body["ok"] is True
    assert body["recipe"]["lora"]["rank"] == 16
    assert body["changed"] == [
        "model.name_or_path",
        "data.train",
        "train.output_dir",
        "train.max_steps",
    ]


def test_check_json_on_mistakes(run):
    result = run("check", "a.yaml", "train.sed=3", "--json")
    assert result.exit_code == 2
    body = json.loads(result.stdout)
    assert body["ok"] is False
    assert [m["key"] for m in body["mistakes"]] == ["train.sed"]


SPREAD = ("distributed.strategy=fsdp2", "distributed.num_processes=8")
UNSPREADABLE = [
    (("distributed.num_processes=3",), "32 experts over 3 processes", "as divide 32"),
    (("model.linear_precision=nf4",), "linear_precision: nf4", "set it to bf16"),
    (("model.head_precision=nf4",), "head_precision: nf4", "set it to bf16 or int8"),
    (("train.optim=adamw_8bit",), "optim: adamw_8bit", "set it to adamw"),
]


@pytest.mark.parametrize(("overrides", "got", "todo"), UNSPREADABLE)
def test_check_refuses_what_fsdp2_cannot_spread(run, overrides, got, todo):
    spread = [one for one in SPREAD if one.split("=")[0] != overrides[0].split("=")[0]]
    result = run("check", "a.yaml", *spread, *overrides, "--json")
    assert result.exit_code == 2
    (mistake,) = json.loads(result.stdout)["mistakes"]
    assert mistake["key"] == "distributed.strategy"
    assert got in mistake["got"] and todo in mistake["todo"]


def test_check_leaves_a_base_that_it_does_not_know_to_the_run(run):
    assert run("check", "a.yaml", *SPREAD).exit_code == 0
    assert run("check", "a.yaml", *SPREAD, "model.name_or_path=some/finetune").exit_code == 0
    ddp = ("distributed.strategy=ddp", "distributed.num_processes=3")
    assert run("check", "a.yaml", *ddp).exit_code == 0


def test_schema_prints_the_schema(run):
    assert json.loads(run("schema").stdout) == recipe_json_schema()


def test_recipes_lists_every_shipped_file_with_its_first_line(run):
    listed = json.loads(run("recipes", "--json").stdout)
    assert {entry["path"] for entry in listed} == set(map(str, shipped("recipes").rglob("*.yaml")))
    for entry in listed:
        with open(entry["path"], encoding="utf-8") as file:
            assert file.readline() == f"# {entry['description']}\n"
        assert (entry["kind"] == "accelerate") == ("/accelerate/" in entry["path"])
    plain = run("recipes").stdout
    shown = {"recipe": "name", "accelerate": "path"}
    assert all(f"  {entry[shown[entry['kind']]]}\n" in plain for entry in listed)
    assert "\x1b" not in plain


@pytest.mark.parametrize("overrides", [(), ("train.sed=1", "lora.rank=x")], ids=["sound", "wrong"])
def test_the_whole_process_imports_nothing_heavy(tmp_path, sound, overrides):
    """The stopwatch's cause, asserted in its place: no torch, no datasets, nothing scientific."""
    (tmp_path / "a.yaml").write_text(sound)
    code = (
        "import sys\n"
        "from gptoss_tune.cli import main\n"
        f"sys.argv = {['gptoss-tune', 'check', 'a.yaml', *overrides]!r}\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    code = stop.code or 0\n"
        "else:\n"
        "    code = 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'peft', 'trl', 'accelerate', "
        "'openai_harmony', 'huggingface_hub', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (2 if overrides else 0), done.stderr
    assert "Traceback" not in done.stderr
    if overrides:
        assert done.stderr.startswith("error: 2 mistakes in a.yaml\n  override 1: 'train.sed=1'")
