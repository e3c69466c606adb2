"""The files of a run have one owner: what they are called stands once, and to read one is cheap."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_tune import run as room
from gptoss_tune.run import folder
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PACKAGE = Path(folder.__file__).parents[1]
PATHS = {
    name: getattr(RunFolder(Path()), name).name
    for name, value in vars(RunFolder).items()
    if isinstance(value, property)
}
FOLDERS = {
    PATHS[name]
    for name in ("adapter", "evaluations", "nonfinite", "wandb", "trackio", "tensorboard")
}
FILES = set(PATHS.values()) - FOLDERS
ELSEWHERE = {
    ("cli/run/launch.py", "recipe.yaml"): "the recipe that a job carries",
    ("workflows/cluster/job.py", "recipe.yaml"): "the recipe that a job carries",
    ("workflows/cluster/kubernetes.py", "recipe.yaml"): "the recipe that a job carries",
    ("workflows/cluster/sagemaker.py", "recipe.yaml"): "the recipe that a job carries",
    ("ui/recipe/routes.py", "recipe.yaml"): "the draft of a form, beside the jobs",
    ("recipe/convert/trainer.py", "metrics.jsonl"): "named to who converts a recipe",
}


def spelled(source):
    """Yield the names of files, and of folders that are joined to a path, in a module's strings."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for statement in node.body
        if isinstance(statement, ast.Expr)
        for inner in ast.walk(statement)
        if isinstance(statement.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from re.findall(r"[\w.-]+\.(?:jsonl?|yaml|html|safetensors)\b", node.value)
            yield from re.findall(r"^(?:checkpoint-|\.staging|\.lock)", node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            for side in (node.left, node.right):
                if isinstance(side, ast.Constant):
                    yield str(side.value)


def spellings(names, *, owner):
    return {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        if not path.is_relative_to(PACKAGE / owner)
        for name in spelled(path.read_text(encoding="utf-8"))
        if name in names
    }


def test_what_is_looked_for_would_be_found():
    source = '"""Of run.json."""\nx = f"{y} has no run.json"\nz = y / "adapter" / "metrics.jsonl"\n'
    source += 'def f():\n    """Read recipe.yaml."""\n    return g.glob("checkpoint-*")\n'
    assert sorted(set(spelled(source))) == ["adapter", "checkpoint-", "metrics.jsonl", "run.json"]
    assert {"run.json", "recipe.yaml", "metrics.jsonl", "layers.jsonl", "data.json"} < FILES
    assert {*("adapter", "evaluation", "nonfinite", "wandb", "trackio", "tensorboard")} == FOLDERS


def test_no_other_room_spells_the_name_of_a_file_in_a_run():
    # ".lock" ends the names of other locks, too.
    names = FILES - {".lock"} | FOLDERS | {"checkpoint-"}
    assert spellings(names, owner="run") == set(ELSEWHERE)


def test_each_name_stands_once_in_its_room():
    for name in (FILES | FOLDERS) - {"adapter"}:
        found = [
            path.name
            for path in (PACKAGE / "run").glob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value == name
        ]
        # A word such as "metrics" may be a name of something else, a file's cannot.
        assert found == ["folder.py"], name


def test_the_files_of_an_adapter_are_spelled_where_its_configuration_is_read():
    names = {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    assert spellings(names, owner="weights/adapter_config.py") == set()


def test_every_path_lies_in_the_folder():
    run = RunFolder(Path("runs/x"))
    assert all(getattr(run, name).parent == run.path for name in PATHS)
    assert len(set(PATHS.values())) == len(PATHS)
    for path, pattern in (
        (run.checkpoint(12), folder.CHECKPOINT),
        (run.evaluation(12), folder.EVALUATION),
    ):
        match = pattern.fullmatch(path.name)
        assert match is not None and match[1] == "12"


def test_the_manual_names_what_is_public():
    assert room.__doc__ is not None
    for name in room.__all__:
        assert f"``{name}``" in room.__doc__, name
        assert getattr(room, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        room.nothing  # noqa: B018


READS = """
import sys
from pathlib import Path
from gptoss_tune.run.record import read_record, record_of_adapter
run = Path(sys.argv[1])
assert read_record(run) == record_of_adapter(run / "adapter") == {"status": "finished"}
light = {name.partition(".")[0] for name in sys.modules}
heavy = {"torch", "numpy", "safetensors", "pydantic", "yaml", "rich"}
assert not light & heavy, f"reading a record: {light & heavy}"

import gptoss_tune.run.environment, gptoss_tune.run.jsonl
from gptoss_tune.run import *
heavy = {"torch", "transformers", "datasets", "peft", "trl", "wandb", "trackio", "openai_harmony"}
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & heavy, f"the whole room: {loaded & heavy}"
own = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("gptoss_tune.")}
lower = {"errors", "error_hints", "display", "shipped", "telemetry", "files", "recipe", "plan"}
lower |= {"run"}
assert own <= {f"gptoss_tune.{name}" for name in lower}, own
"""


def test_reading_a_record_loads_no_torch_and_no_reporter(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished"}))
    subprocess.run([sys.executable, "-c", READS, tmp_path], check=True, timeout=120)
