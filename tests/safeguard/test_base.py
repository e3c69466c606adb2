"""gpt-oss-safeguard is a base like gpt-oss: by its name alone, and as a folder in its layout."""

import json
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.export.hub.licence import Licence
from gptoss_tune.export.hub.model_card import Facts, model_card
from gptoss_tune.plan.architecture import RELEASED, architecture_of, smaller_release
from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.plan import plan
from gptoss_tune.recipe import load_recipe
from gptoss_tune.workflows.first_recipe.write import MODELS, model_of

SIZES = ("20b", "120b")
ROWS = [
    {
        "messages": [
            {"role": "system", "content": "# Spam\nAnswer 0 or 1."},
            {"role": "user", "content": f"Message {n}."},
            {"role": "assistant", "content": str(n % 2), "thinking": "By the rule."},
        ],
        "policy": "spam",
        "answer": str(n % 2),
    }
    for n in range(40)
]


@pytest.fixture(scope="module")
def folder(two_layer_base, tmp_path_factory):
    """A tiny checkpoint in the released layout, called as a download would be."""
    place = tmp_path_factory.mktemp("models") / "gpt-oss-safeguard-20b"
    shutil.copytree(two_layer_base, place)
    return place


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path.name


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments])


@pytest.mark.parametrize("size", SIZES)
def test_its_sizes_are_known_by_name_and_those_of_gpt_oss(size):
    name = f"openai/gpt-oss-safeguard-{size}"
    assert architecture_of(name) == architecture_of(f"openai/gpt-oss-{size}")
    for short in (f"safeguard-{size}", f"gpt-oss-safeguard-{size}", f"GPT-OSS-Safeguard-{size}"):
        assert model_of(short) == name
    assert set(MODELS.values()) == set(RELEASED)
    with pytest.raises(RecipeError, match="20b, 120b, safeguard-20b, safeguard-120b, or a folder"):
        model_of("safeguard-7b")


@pytest.mark.parametrize(("size", "gpu"), [("20b", "rtx4090-24gb"), ("120b", "h100-80gb")])
def test_init_writes_a_recipe_that_check_and_plan_take(data, size, gpu):
    done = run(
        *("init", "--model", f"safeguard-{size}", "--data", data, "--gpu", gpu),
        *("--out", "mine.yaml", "--yes"),
    )
    assert done.exit_code == 0, done.output
    assert load_recipe("mine.yaml").model.name_or_path == f"openai/gpt-oss-safeguard-{size}"
    for command in (("check", "mine.yaml"), ("plan", "mine.yaml", "--gpu", gpu)):
        done = run(*command)
        assert done.exit_code == 0, done.output
        assert "not a gpt-oss" not in done.output


def test_where_the_large_one_does_not_fit_the_small_classifier_is_named(data):
    done = run("init", "--model", "safeguard-120b", "--data", data, "--gpu", "4090", "--yes")
    assert isinstance(done.exception, MachineError)
    assert "--model safeguard-20b" in str(done.exception)
    assert smaller_release("openai/gpt-oss-safeguard-120b") == "openai/gpt-oss-safeguard-20b"
    assert smaller_release("models/gpt-oss-safeguard-120b/") == "openai/gpt-oss-safeguard-20b"
    assert smaller_release("openai/gpt-oss-120b") == "openai/gpt-oss-20b"
    asked = ["model.name_or_path=openai/gpt-oss-safeguard-120b", "lora.expert_rank=4"]
    last = plan(load_recipe("gpt-oss-120b/qlora", asked), card("4090")).elsewhere[-1]
    assert last.what == "the smaller model"
    assert last.overrides[0] == "model.name_or_path=openai/gpt-oss-safeguard-20b"


def test_a_folder_is_checked_planned_and_named_by_its_config(data, folder):
    recipe = f"model.name_or_path={folder}"
    for command in ("check", "plan"):
        done = run(command, "tiny/qlora", recipe)
        assert done.exit_code == 0, done.output
    done = run("init", "--model", folder, "--data", data, "--gpu", "4090", "--yes")
    assert done.exit_code == 0, done.output
    assert load_recipe("rows.yaml").model.name_or_path == str(folder)


def rates(value):
    named = dict.fromkeys(("f1", "precision", "recall", "specificity"), value)
    return named | {"intervals": {name: [0.5, 1.0] for name in named}}


def card_of(base, evaluation):
    record = {"evaluation": evaluation} if evaluation else {}
    terms = Licence("apache-2.0", "`apache-2.0`, as the base.")
    card = model_card(Facts("me/judge", base, "mxfp4", ["q_proj"], record, [], "Done.", terms))
    return card, yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("size", SIZES)
def test_a_card_has_its_base_licence_and_tags_and_asks_with_a_policy(size):
    base = f"openai/gpt-oss-safeguard-{size}"
    text, head = card_of(base, None)
    assert head["base_model"] == base and head["license"] == "apache-2.0"
    assert head["tags"] == ["gpt-oss", "gptoss-tune", "lora", "safeguard"]
    assert head["pipeline_tag"] == "text-generation"
    assert '{"role": "system", "content": "# Your policy' in text and "strawberry" not in text
    assert "## Policies" not in text
    plain, head = card_of(f"openai/gpt-oss-{size}", None)
    assert "safeguard" not in head["tags"] and "strawberry" in plain


def test_a_card_has_the_figures_of_each_policy():
    counts = {"rows": 12, "positives": 6, "abstained": 1}
    named = {"spam": rates(0.75) | counts, "care | x\n[a](b)": rates(0.25) | counts}
    policies = {"by_policy": named, "macro": rates(0.5) | {"rows": 24, "abstained": 2}}
    text, head = card_of("openai/gpt-oss-20b", {"eval_graded": 0.875, "policies": policies})
    assert "| spam | 12 | 6 | 0.75 (0.50-1.00) | 0.75 (0.50-1.00) |" in text
    assert r"| care \| x" in text and r"\[a\](b) | 12 | 6 | 0.25" in text
    assert "| macro average | 24 | – | 0.50" in text
    results = {
        metric["name"]: metric["value"]
        for result in head["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    assert results["F1, policy spam"] == 0.75 and results["answers graded right"] == 0.875
    assert any(name.startswith("F1, policy care_x_a_b_") for name in results)
    assert "safeguard" in head["tags"]


@pytest.mark.parametrize("policies", [[], "x", {"by_policy": 3}, {"by_policy": {"\ud800": [1]}}])
def test_a_strange_record_has_no_policies(policies):
    text, head = card_of("openai/gpt-oss-20b", {"policies": policies})
    assert "model-index" not in head and "0." not in text.partition("## Policies")[2][:200]


def test_the_best_checkpoint_is_chosen_by_the_average_of_the_policies():
    asked = ["train.keep_best=eval_f1_macro", "evaluation.eval_steps=50"]
    assert load_recipe("tiny/safeguard", asked).train.keep_best.metric == "eval_f1_macro"
    with pytest.raises(RecipeError, match="max: the higher one is the better model"):
        load_recipe(
            "tiny/safeguard", [*asked[1:], "train.keep_best={metric: eval_f1_macro, goal: min}"]
        )
