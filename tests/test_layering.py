"""Who may import whom: whole floors, each room only downward, each library from its floor up."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    {"gptoss_kernels", "display", "telemetry", "shipped", "error_hints", "terminal"},
    # Three steps of the ground floor: an error is shown safely, a file is read or refused with one.
    {"errors"},
    {"files"},
    {"recipe"},
    # The plan is computed from a recipe, and a recipe is checked without it.
    {"plan"},
    {"harmony", "run"},
    # A verdict on an answer needs no model.
    {"grading"},
    # What a model acts in needs none either.
    {"environments"},
    {"distributed", "weights"},
    # What a job needs is looked at with the readers of the rooms below, before it is begun.
    {"model", "preflight", "report"},
    # A model answers prompts, or is measured; a card is drawn with the report's figures.
    {"evaluate", "export", "testing"},
    # Subjects side by side, in process or served, and a conversation with either; what they do
    # unsafely is asked the same way.
    {"benchmark", "chat", "rollout"},
    {"safety"},
    {"train"},
    {"workflows"},
    {"ui"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Third-party libraries by the lowest floor that may import them; what is not here nobody may.
LOWEST = {
    "display": {"rich"},
    "files": {"filelock"},
    "recipe": {"pydantic", "pydantic_core", "yaml"},
    "harmony": {
        *("datasets", "jinja2", "numpy", "openai_harmony", "pyarrow", "tiktoken", "tokenizers")
    },
    "run": {"psutil"},
    "grading": {"jsonschema", "math_verify", "referencing", "regex"},
    "weights": {"huggingface_hub", "safetensors", "torch"},
    "model": {
        *("bitsandbytes", "gptoss_kernels", "liger_kernel", "peft", "transformers"),
        "triton",
    },
    "evaluate": {"starlette", "uvicorn", "xllamacpp"},
    "export": {"gguf"},
    "train": {"accelerate", "trackio", "trl", "wandb"},
    "cli": {"prompt_toolkit", "typer"},
}
FLOOR_OF_LIBRARY = {name: FLOOR_OF[room] for room, names in LOWEST.items() for name in names}
# What stands lower, with its reason.
ALLOWED = {
    # The versions and cards of the machine stand in a run's record; only a run asks for them.
    ("gptoss_tune.run.environment", "torch"),
    # A plan measures a matrix product where there is no GPU; other plans do not load it.
    ("gptoss_tune.plan.machine.cpu", "numpy"),
    # An error that may come out of whatever writes a checkpoint's files; it brings no torch.
    ("gptoss_tune.run.checkpoints", "safetensors"),
}


def _structure():
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tests" / "structure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


structure = _structure()
SOURCES = structure.Sources(ROOT)
MODULES = [name for name in SOURCES.files if name.startswith("gptoss_tune.")]
FILES = [path for top in ("src", "kernels") for path in sorted((ROOT / top).rglob("*.py"))]


def room_of(name):
    parts = name.split(".")
    return parts[0] if parts[0] != "gptoss_tune" else parts[1]


def test_every_room_stands_on_a_floor():
    assert {room_of(name) for name in MODULES} <= set(FLOOR_OF)


def test_every_room_has_its_row_on_the_page_of_the_structure():
    table = (ROOT / "docs/structure.md").read_text(encoding="utf-8").split("\n## ")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name.strip("`") for row in rows for name in row.split()]
    assert sorted(named) == sorted(FLOOR_OF.keys() - {"__main__"})


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    # Also what is imported for its types alone: a reader follows it like any other.
    room = room_of(name)
    for target in SOURCES.imports[name] | SOURCES.imports_for_types[name]:
        # The package's face holds the version and the errors, and brings nothing along.
        if target == "gptoss_tune" or room_of(target) == room:
            continue
        assert FLOOR_OF[room_of(target)] < FLOOR_OF[room], f"{name} imports {target}"


@pytest.mark.parametrize("name", MODULES)
def test_libraries_are_imported_from_their_floor_up(name):
    for library in {target.split(".")[0] for target in SOURCES.external[name]}:
        if library in sys.stdlib_module_names or (name, library) in ALLOWED:
            continue
        assert library in FLOOR_OF_LIBRARY, f"{name} imports {library}, which has no floor"
        lowest = FLOOR_OF_LIBRARY[library]
        assert lowest <= FLOOR_OF[room_of(name)], f"{name} imports {library} on too low a floor"


def test_the_servers_libraries_stay_in_its_room():
    for name in MODULES:
        if room_of(name) == "evaluate" and not name.startswith("gptoss_tune.evaluate.server"):
            libraries = {target.split(".")[0] for target in SOURCES.external[name]}
            assert not libraries & {"starlette", "uvicorn"}, f"{name} is asked without the extra ui"


def test_kernels_need_torch_and_triton_only():
    for name in SOURCES.files:
        if name.startswith("gptoss_kernels"):
            for library in {target.split(".")[0] for target in SOURCES.external[name]}:
                known = library in {"torch", "triton"} or library in sys.stdlib_module_names
                assert known, f"{name} imports {library}"


def test_there_is_no_circle():
    assert structure.circles(SOURCES.room_imports()) == []
    assert structure.circles(SOURCES.imports_at_import) == []


@pytest.mark.parametrize("top", ["src", "kernels", "tests"])
def test_folders_stay_small(top):
    assert structure.big_folders(ROOT, [top]) == []


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400, f"{path} has over 400 lines: split it by idea"
    for node in structure.functions(ast.parse(source)):
        length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
        if ast.get_docstring(node):
            length = (node.end_lineno or 0) - (node.body[0].end_lineno or 0)
        jitted = any("jit" in ast.unparse(d) for d in node.decorator_list)
        assert length <= 60 or jitted, f"{path}:{node.lineno} {node.name} has {length} lines"
