"""The shipped files: recipes load, accelerate takes its configurations, the tables are true."""

import json
import re
from pathlib import Path

import pytest

from gptoss_tune.recipe import Recipe, load_recipe, recipe_json_schema, recipe_yaml, resolved_lines
from gptoss_tune.shipped import shipped

RECIPES = shipped("recipes")
ACCELERATE = sorted((RECIPES / "accelerate").glob("*.yaml"))
FILES = sorted(set(RECIPES.rglob("*.yaml")) - set(ACCELERATE))
PUBLIC = ("agentica-org/DeepScaleR-Preview-Dataset",)
"""Data that is read from the Hub."""


def name_of(path):
    return str(path.relative_to(RECIPES))


def test_the_promised_files_are_there():
    assert {
        "tiny/lora.yaml",
        "tiny/qlora.yaml",
        "gpt-oss-20b/lora.yaml",
        "gpt-oss-20b/qlora.yaml",
        "gpt-oss-120b/qlora.yaml",
    } <= set(map(name_of, FILES))
    assert [path.stem for path in ACCELERATE] == ["cpu", "ddp", "fsdp2", "one_gpu"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_recipe_loads_and_its_resolved_form_is_equal(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "resolved.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_recipe_is_sparse_and_introduces_itself(path):
    lines = path.read_text().splitlines()
    assert re.fullmatch(r"# .{20,74}", lines[0]), "the first line says what the recipe is"
    assert lines[1] == "# yaml-language-server: $schema=../recipe.schema.json"
    written = {line.strip().split(":")[0] for line in lines if re.match(r"  \w+:", line)}
    changed = {line.setting for line in resolved_lines(load_recipe(path)) if line.note}
    assert written == {setting.split(".")[1] for setting in changed}, "a default is spelled out"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_recipe_s_data_is_shipped(path):
    recipe = load_recipe(path)
    sources = [source.path for source in [*recipe.data.train, *(recipe.data.eval or [])]]
    for name in [*sources, *(recipe.evaluation.prompts or [])]:
        if name not in PUBLIC:
            assert (shipped("data").parent / name).is_file(), name


def test_the_two_precisions_of_a_size_are_what_their_names_say():
    for path in FILES:
        precision = load_recipe(path).model.experts_precision
        assert precision == ("bf16" if path.stem == "lora" else "mxfp4"), path


def test_the_committed_schema_is_the_current_one():
    committed = json.loads((RECIPES / "recipe.schema.json").read_text())
    assert committed == recipe_json_schema(), "run: gptoss-tune schema > recipes/recipe.schema.json"


def test_every_setting_is_documented_for_the_editor():
    schema = recipe_json_schema()
    nodes = [schema, *schema["$defs"].values()]
    assert len(nodes) > 6
    for node in nodes:
        assert node["additionalProperties"] is False
        for name, setting in node["properties"].items():
            section = schema["$defs"].get(setting.get("$ref", "").rsplit("/", 1)[-1], {})
            assert setting.get("description", section.get("description")), f"{name} says nothing"
            assert "title" not in setting


def test_every_number_has_a_range():
    def numbers(node, path):
        if isinstance(node, dict):
            if node.get("type") in {"integer", "number"}:
                yield path, node
            for key, below in node.items():
                yield from numbers(below, (*path, key))
        elif isinstance(node, list):
            for index, below in enumerate(node):
                yield from numbers(below, (*path, index))

    found = list(numbers(recipe_json_schema(), ()))
    assert len(found) > 20
    for path, node in found:
        assert {"minimum", "exclusiveMinimum"} & set(node), path
        assert {"maximum", "exclusiveMaximum"} & set(node), path


def test_no_setting_can_hold_a_credential_or_name_code():
    words = ("token", "secret", "password", "api_key", "trust", "remote", "import", "code", "exec")
    for section in Recipe.model_fields.values():
        for name in getattr(section.annotation, "model_fields", {}):
            assert not any(word in name.removesuffix("_tokens") for word in words), name


def test_the_readme_s_tables_name_every_file():
    readme = (RECIPES / "README.md").read_text()
    linked = set(re.findall(r"\]\(([^)]+\.yaml)\)", readme))
    assert linked == {name_of(path) for path in [*FILES, *ACCELERATE]}


def test_the_readme_s_messages_are_real(tmp_path, monkeypatch):
    from gptoss_tune.recipe import RecipeMistakes

    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(
        "model: {name_or_path: a/b}\ndata: {train: a.jsonl}\ntrain:\n  lr: 1e-4\n  output_dir: r\n"
    )
    with pytest.raises(RecipeMistakes) as caught:
        load_recipe("my.yaml", ["train.max_steps=1e3"])
    assert f"error: {caught.value}\n" in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_an_accelerate_file_says_to_accelerate_what_it_says(path):
    import yaml
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    parser = launch_command_parser()
    known = vars(parser.parse_args(["x"]))
    arguments = parser.parse_args(["--config_file", str(path), "-m", "gptoss_tune.train"])
    arguments, _, _ = _validate_launch_command(arguments)
    written = yaml.safe_load(path.read_text())
    for key, value in written.pop("fsdp_config", {}).items():
        assert key in known, f"accelerate ignores {key} silently"
        assert getattr(arguments, key) == value
    assert arguments.mixed_precision == "no"
    assert arguments.num_processes == written["num_processes"]
    assert (arguments.use_fsdp, arguments.multi_gpu, bool(arguments.use_cpu)) == {
        "one_gpu": (False, False, False),
        "cpu": (False, False, True),
        "ddp": (False, True, False),
        "fsdp2": (True, False, False),
    }[path.stem]


def test_the_layer_that_fsdp_wraps_exists():
    import importlib.util

    text = (RECIPES / "accelerate" / "fsdp2.yaml").read_text()
    name = re.search(r"fsdp_transformer_layer_cls_to_wrap: (\w+)", text)
    spec = importlib.util.find_spec("transformers")  # finding it is 5 s quicker than importing it
    assert name
    assert spec
    assert spec.origin
    source = Path(spec.origin).parent / "models" / "gpt_oss" / "modeling_gpt_oss.py"
    assert f"class {name[1]}(" in source.read_text()
