"""Arrows between the rooms point down only; the lower rooms stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "gptoss_tune"
KERNELS = ROOT / "kernels" / "gptoss_kernels"

LEVELS = {
    "gptoss_kernels": 0,
    "causes": 0,
    "display": 0,
    "shipped": 0,
    "telemetry": 0,
    "errors": 0.3,
    "json_file": 0.6,
    "recipe": 1,
    "harmony": 2,
    "checkpoint": 2.5,
    "model": 3,
    "export": 3,
    "evaluate": 3.5,
    "report": 3,
    "testing": 3,
    "train": 4,
    "demo": 5,
    "__main__": 5.5,
    "cli": 5,
}
# Third-party libraries by the lowest level that may import them at all.
LIBRARIES = {
    "pydantic": 1,
    "yaml": 1,
    "openai_harmony": 2,
    "datasets": 2,
    "numpy": 2,
    "tokenizers": 2,
    "tiktoken": 2,
    "pyarrow": 2,
    "torch": 2.5,
    "transformers": 3,
    "peft": 3,
    "safetensors": 2.5,
    "huggingface_hub": 2.5,
    "bitsandbytes": 3,
    "gptoss_kernels": 3,
    "trl": 4,
    "accelerate": 4,
    "wandb": 4,
    "trackio": 4,
    "typer": 5,
}


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_arrows_point_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    level = LEVELS[room]
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "gptoss_tune":
            target = parts[1] if len(parts) > 1 else "__init__"
            if target in LEVELS and target != room:
                allowed = LEVELS[target] < level or {room, target} == {"cli", "demo"}
                assert allowed, f"{path.name} ({room}) imports {name} ({target})"
        elif parts[0] in LIBRARIES:
            assert LIBRARIES[parts[0]] <= level, f"{path.name} (level {level}) imports {name}"
    if room == "export":
        assert not any(n.startswith(("gptoss_tune.train", "trl")) for n in imports_of(path))


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=lambda p: p.name)
def test_kernels_need_torch_and_triton_only(path):
    for name in imports_of(path):
        top = name.split(".")[0]
        assert top in {"torch", "triton", "gptoss_kernels"} or top in sys.stdlib_module_names, name


def test_importing_the_package_and_recipes_costs_no_torch():
    code = (
        "import sys, gptoss_tune, gptoss_tune.recipe, gptoss_tune.cli; "
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_package_marker_shadows_hugging_faces_kernels():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize(
    "path",
    sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_stay_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400, f"{path} has over 400 lines: split it by idea"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            if ast.get_docstring(node):
                length = (node.end_lineno or 0) - (node.body[0].end_lineno or 0)
            jitted = any("jit" in ast.unparse(d) for d in node.decorator_list)
            assert length <= 60 or jitted, f"{path}:{node.lineno} {node.name} has {length} lines"
