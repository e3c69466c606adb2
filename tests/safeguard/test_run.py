"""A tiny random model learns a rule of two policies, and every place that shows figures agrees."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.export.hub.licence import licence_of
from gptoss_tune.export.hub.model_card import Facts, model_card, read_metrics
from gptoss_tune.recipe import load_recipe
from gptoss_tune.report.page import write_report
from gptoss_tune.run.record import read_record
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.run import train

POLICIES = ("selling", "questions")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Called as a download of the release would be."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "gpt-oss-safeguard-20b")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "judge"
    overrides = [f"model.name_or_path={base}", f"train.output_dir={folder}"]
    train(load_recipe("tiny/safeguard", overrides))
    return folder


def evaluation(run, step):
    return json.loads((run / "evaluation" / f"step-{step}.json").read_text(encoding="utf-8"))


def command(*arguments):
    done = CliRunner().invoke(app, [str(word) for word in arguments], env={"COLUMNS": "200"})
    if done.exit_code:
        raise done.exception
    return done.stdout


@pytest.mark.slow
def test_f1_of_each_policy_goes_from_nothing_to_nearly_all_on_messages_it_never_saw(run):
    before, after = evaluation(run, 0)["policies"], evaluation(run, 150)["policies"]
    for policy in POLICIES:
        first, last = before["by_policy"][policy], after["by_policy"][policy]
        assert first["f1"] == 0 and first["abstained"] == first["rows"] == 12
        assert last["f1"] > 0.95 and last["abstained"] == 0, (policy, last)
        assert last["specificity"] > 0.8 and last["positives"] == 6
    assert before["macro"]["f1"] == 0 and after["macro"]["f1"] > 0.95


@pytest.mark.slow
def test_the_same_message_is_judged_by_the_policy_it_stands_under(run):
    by_message = {}
    for sample in evaluation(run, 150)["samples"]:
        grade = sample["grade"]
        by_message.setdefault(sample["prompt"][-1]["content"], []).append(grade["label"])
    assert len(by_message) == 12 and all(len(labels) == 2 for labels in by_message.values())
    assert sum(one != two for one, two in by_message.values()) >= 5  # of 6, one may be wrong


@pytest.mark.slow
def test_metrics_record_report_and_card_have_the_figures(run, base):
    policies = evaluation(run, 150)["policies"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in lines if "eval_f1_selling" in line)
    assert (first["step"], last["step"]) == (0, 150)
    for policy in POLICIES:
        found = policies["by_policy"][policy]
        for rate in ("f1", "precision", "recall", "specificity"):
            assert last[f"eval_{rate}_{policy}"] == found[rate]
        assert first[f"eval_abstained_{policy}"] == 1 and last[f"eval_abstained_{policy}"] == 0
    record = read_record(run)
    assert record["evaluation"]["policies"] == policies
    assert record["evaluation"]["eval_f1_macro"] == policies["macro"]["f1"]
    page = write_report([run]).read_text(encoding="utf-8")
    assert "Policies</h2>" in page and "0.00 → " in page and "macro average" in page
    facts = Facts(
        *("me/judge", "openai/gpt-oss-safeguard-20b", None, ["q_proj"], record),
        *(read_metrics(run / "adapter"), "Verified.", licence_of(base)),
    )
    card = model_card(facts)
    assert "## Policies" in card and "| selling | 12 | 6 |" in card
    assert "base_model: openai/gpt-oss-safeguard-20b" in card and "- safeguard" in card
    assert "license: apache-2.0" in card


@pytest.mark.slow
def test_evaluate_of_the_finished_run_gives_the_same_figures_and_shows_them(run):
    again = json.loads(command("evaluate", run, "--json"))
    assert again["policies"] == evaluation(run, 150)["policies"]
    shown = command("evaluate", run)
    for words in ("specificity", "selling", "questions", "macro average"):
        assert words in shown


@pytest.mark.slow
def test_it_merges_as_any_other_base_and_the_merged_model_judges_alike(run, tmp_path):
    merged = tmp_path / "merged"
    command("merge", run, "--format", "bf16", "--out", merged)
    found = json.loads(command("evaluate", merged, "--recipe", run / "recipe.yaml", "--json"))
    assert found["policies"]["macro"]["f1"] > 0.9
    assert json.loads((merged / "config.json").read_text())["architectures"] == [
        "GptOssForCausalLM"
    ]
