"""docs/python.md: its code runs, in the order of the page, in an empty folder."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_tune.errors import RecipeError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the page once; return its folder and its names."""
    folder = tmp_path_factory.mktemp("page")
    answers = [("2+2?", "4"), ("The capital of France?", "Paris"), ("Say yes.", "yes, gladly")]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for question, answer in answers:
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            stream.write(json.dumps({"messages": messages}) + "\n")
    (recipe,) = blocks("yaml")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks("python"):
            exec(compile(block, str(PAGE), "exec"), names)
    return folder, names


def logged(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.slow
def test_the_main_job_trains_merges_and_verifies(page):
    folder, names = page
    assert names["summary"].steps == 4 and math.isfinite(names["summary"].loss)
    assert names["merged"].verification.passed and (folder / "merged" / "config.json").is_file()
    # The adapter of the run that was merged, noted in its card by both.
    card = json.loads((folder / "runs/first/run.json").read_text())
    assert [entry["command"] for entry in card["verification"]] == ["merge", "verify"]


@pytest.mark.slow
def test_a_row_is_rendered_with_the_weights_asked_for(page):
    _, names = page
    assert 0 < len(names["trained"]) < len(names["example"].input_ids)


@pytest.mark.slow
def test_an_observer_sees_batches_adds_figures_and_is_kept(page):
    folder, names = page
    rows = logged(folder / "runs/longest")
    assert rows[-1]["longest_row"] == names["longest"].tokens > 8


@pytest.mark.slow
def test_a_loss_of_ones_own_is_what_is_trained(page):
    folder, _ = page
    plain, half = logged(folder / "runs/longest"), logged(folder / "runs/half")
    # The first step's loss is of the same weights of the model: only what is averaged differs.
    assert plain[0]["loss"] != half[0]["loss"]
    fingerprint = json.loads((folder / "runs/half/run.json").read_text())["fingerprint"]
    assert fingerprint["loss"].endswith("first_half")


@pytest.mark.slow
def test_a_finished_run_is_refused_as_by_the_command(page, monkeypatch):
    folder, names = page
    monkeypatch.chdir(folder)
    with pytest.raises(RecipeError, match="is finished"):
        names["train"](names["recipe"])


def test_the_package_is_light_and_names_what_it_has():
    code = (
        "import sys, gptoss_tune\n"
        "from gptoss_tune import train, plan, load_recipe\n"
        "assert callable(train) and callable(plan)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "import gptoss_tune.train.loss\n"
        "from gptoss_tune import train as again\n"
        "assert again is train and callable(again)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
