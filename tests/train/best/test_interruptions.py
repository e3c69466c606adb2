"""A run that is killed and continued ends as one that was not: the same best, the same stop."""

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed.py")
SIGNALS = ("a signal in the best evaluation", "a signal in the last evaluation")
KILLS = (
    "before the best evaluation",
    "after the best evaluation",
    "before the best is published",
    "after the best save",
    "in the rotation",
    "after a save behind the best",
    "after the last evaluation",
    "before the adapter",
    "after the adapter",
)


@pytest.fixture(scope="module")
def whole(write_recipe, overfitting, forked_python, left, tmp_path_factory):
    """What the run leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    ended = forked_python([SCRIPT, write_recipe(folder), "nowhere", *overfitting])
    assert ended.returncode == 0, ended.stderr
    found = left(folder / "run")
    assert (found["step"], found["steps"], found["status"]) == (3, 5, "finished")
    assert found["best"]["step"] == 3 and found["early_stopping"]["stopped"]
    assert {p.name for p in (folder / "run").glob("checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-4",
    }
    return found


@pytest.mark.slow
@pytest.mark.parametrize("place", (*KILLS, *SIGNALS))
def test_the_end_is_that_of_the_undisturbed_run(
    place, whole, write_recipe, overfitting, forked_python, left, tmp_path
):
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    first = forked_python([SCRIPT, recipe, place, *overfitting])
    assert first.returncode == (75 if place in SIGNALS else -9), first.stderr
    assert json.loads((run / "run.json").read_text())["status"] != "finished"
    second = forked_python([SCRIPT, recipe, "nowhere", *overfitting])
    assert second.returncode == 0, second.stderr
    assert left(run) == whole
