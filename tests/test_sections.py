"""Functions take the sections they read; the few that take a whole recipe are named here."""

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "gptoss_tune"

# A whole recipe is planned, built, written down or trained.
WHOLE = {
    "model/build.py build",
    "plan/__init__.py __call__",
    "plan/plan.py plan",
    "preflight/training.py look_before_training",
    "recipe/dump.py recipe_yaml",
    "recipe/dump.py resolved_lines",
    "train/resume/fingerprint.py fingerprint",
    "train/run.py train",
    "workflows/calibrate.py merge_calibrated",
    # What lowers the peak is planned anew from the recipe that did not fit.
    "train/memory/out_of_memory.py _advice",
    "train/memory/out_of_memory.py describe",
    "train/memory/out_of_memory.py explained",
}


def takes_a_recipe():
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tests" / "structure.py")
    structure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(structure)
    return {
        f"{path.relative_to(PACKAGE)} {function.name}"
        for path in PACKAGE.rglob("*.py")
        for function in structure.functions(ast.parse(path.read_text(encoding="utf-8")))
        if structure.takes_recipe(function)
    }


def test_few_functions_take_a_whole_recipe():
    assert len(WHOLE) <= 12
    found = takes_a_recipe()
    new = found - WHOLE
    assert not new, f"take the sections you read (recipe.lora, recipe.train, ...): {sorted(new)}"
    assert not WHOLE - found, "gone, take it out of the list"


def test_the_tables_of_methods_name_the_same():
    from gptoss_tune.plan.methods import METHODS as PLANNED
    from gptoss_tune.recipe.schema import METHODS as NAMED
    from gptoss_tune.train.methods import METHODS

    assert PLANNED.keys() == METHODS.keys() == NAMED.keys()
