"""The page of a preference run: its curves, its pairs before and after, its words."""

import importlib.util
import json
from pathlib import Path

import pytest

from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.report import curves, facts
from gptoss_tune.report.page import write_report
from gptoss_tune.report.parts.read import read_run
from gptoss_tune.report.samples import MOST_SHOWN, OPEN, pairs
from gptoss_tune.run import method as words_of_methods
from gptoss_tune.run.method import method_of, reference_words

spec = importlib.util.spec_from_file_location("html_page", Path(__file__).parent / "html_page.py")
html_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(html_page)
HOSTILE, parsed, words = html_page.HOSTILE, html_page.parsed, html_page.words

CURVES = {
    "Rewards and their margin": {"dpo", "simpo", "kto"},
    "Reward accuracy": {"dpo", "simpo"},
    "Margin by channel": {"dpo", "simpo", "kto"},
    "Log-probability of the answers": {"dpo", "simpo", "kto"},
    "Drift from the reference": {"dpo", "kto"},
    "KL to the reference": {"dpo", "kto"},
    "KL estimate of the loss": {"kto"},
}


def change_record(run, **facts):
    record = json.loads((run / "run.json").read_text()) | facts
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["sft", "dpo", "simpo", "kto"])
def test_what_a_run_has_is_drawn_and_nothing_else(make_preference_run, name):
    run = make_preference_run(method=name)
    drawn = "".join(curves.preferences(read_run(run)))
    titles = {title for title in CURVES if f"<h3>{title}</h3>" in drawn}
    assert titles == {title for title, names in CURVES.items() if name in names}
    page = parsed(write_report([run]))
    assert ("Preferences" in page.words) == (name != "sft")
    sides = ("good", "bad") if name == "kto" else ("chosen", "rejected")
    if name != "sft":
        assert {*sides, f"{sides[0]}, held out"} <= set(page.words)
    assert ("there is no reference" in words(page)) == (name == "simpo")


def test_accuracy_lies_on_an_axis_from_0_to_1(make_preference_run):
    figures = curves.preferences(read_run(make_preference_run(steps=3)))
    (accuracy,) = [one for one in figures if "<h3>Reward accuracy</h3>" in one]
    assert ">0.00<" in accuracy and ">1.00<" in accuracy and ">chance<" in accuracy


def test_a_loss_is_said_to_be_of_what_it_is_a_mean_over(make_preference_run, make_run):
    for name, unit in (("dpo", "mean per pair"), ("kto", "mean per answer")):
        told = words(parsed(write_report([make_preference_run(name, method=name)])))
        assert unit in told and f"training loss, {unit}" in told
        assert "all trained tokens of a step" not in told and "loss, nats" not in told
        assert f"Mean over all {unit.split()[-1]}s of a step, by their weights" in told
    told = words(parsed(write_report([make_run("sft")])))
    assert "training loss, nats" in told and "all trained tokens of a step" in told


def test_headline_figures_are_the_held_out_ones_where_there_are_any(make_preference_run):
    run = make_preference_run()
    told = {label: value for value, label, _ in facts.tiles(read_run(run))}
    assert told["reward accuracy, held out"] == "100.0%"
    assert told["reward margin, held out"] == "2.50"
    with (run / "metrics.jsonl").open("a") as stream:
        row = {"eval_loss": 0.7, "eval_reward_accuracy": 0.5, "eval_reward_margin": -0.25}
        stream.write(json.dumps({"step": 1, **row}) + "\n")
    told = {label: value for value, label, _ in facts.tiles(read_run(run))}
    assert told["reward accuracy, held out"] == "50.0% → 100.0%"
    assert told["reward margin, held out"] == "-0.250 → 2.50"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(line for line in lines if "eval_" not in line))
    told = {label: value for value, label, _ in facts.tiles(read_run(run))}
    assert told["reward margin, training, last 20 lines"] == "1.31"  # 2.5 * 10.5 / 20
    labels = [label for _, label, _ in facts.tiles(read_run(make_preference_run("k", "kto")))]
    assert {"reward of good, held out", "reward of bad, held out"} < set(labels)
    assert not [label for label in labels if "accuracy" in label or "margin" in label]


def test_pairs_are_counted_and_their_turns_are_seen(make_preference_run):
    run = make_preference_run()
    page = write_report([run])
    told = words(parsed(page))
    assert (
        "Of 4 held-out pairs the chosen answer was likelier than the rejected one before in "
        "2 (50%) , after in 2 (50%) ; the margin grew in 3; it turned against the chosen answer "
        "in 1 ; the chosen answer itself became less likely in 1." in told
    )
    assert "margin -2.000 → +3.000 nats (+5.000): turned: the chosen answer has become" in told
    assert "margin +2.000 → -1.000 nats (-3.000): turned: the chosen answer is no longer" in told
    assert "margin -3.000 → -1.000 nats (+2.000): the chosen answer is still not" in told
    assert "log-probability -41.00 → -38.50 nats ( +2.500 ); per token -2.05 → -1.93" in told
    html = page.read_text()
    assert html.count('<b class="bad">turned') == 1 == html.count('<b class="good">turned')
    both = '<div class="said analysis"><b>analysis</b><div class="words">thought 0 chosen</div>'
    assert both in html and html.index("answer 0 chosen") < html.index("answer 0 rejected")
    assert "before, under the reference, the base; after" in told


def test_most_pairs_are_folded_away(make_preference_run):
    run = make_preference_run()
    make_preference_run.pairs(run, [make_preference_run.pair(n, 1, 2) for n in range(40)])
    page = write_report([run])
    html, told = page.read_text(), words(parsed(page))
    assert f"{MOST_SHOWN - OPEN} more pairs" in told and "first 24 of 40 pairs" in told
    assert html.index(f"question {OPEN - 1}<") < html.index("more pairs")
    assert html.index("more pairs") < html.index(f"question {OPEN}<")
    assert "Of 40 held-out pairs" in told


def test_answers_with_a_label_stand_alone(make_preference_run):
    told = words(parsed(write_report([make_preference_run(method="kto")])))
    assert "4 held-out answers: of 2 good answers 1 (50%) became more likely;" in told
    assert "of 2 bad answers 2 (100%) became less likely." in told
    section = told.rpartition("Answers before and after")[2].partition("Optimisation")[0]
    assert "good , 20 tokens" in section and "margin" not in section


def test_pairs_without_figures_are_left_out_of_the_count(make_preference_run):
    run = make_preference_run()
    damaged = make_preference_run.pair(1, -1, 2)
    damaged["rejected"]["after"] = float("nan")
    empty = make_preference_run.pair(2, 1, 1) | {"chosen": {}, "rejected": "text"}
    several = [make_preference_run.pair(0, -1, 2), damaged, empty, 3, {}]
    make_preference_run.pairs(run, several, reference=["x"], split={})
    told = words(parsed(write_report([run])))
    assert "Of 1 pair the chosen answer was" in told and "4 without readable figures" in told
    assert "before, under the base" in told
    for content in ('{"pairs": 3}', "[1]", "null", '{"pairs": [4, []]}'):
        (run / "pairs.json").write_text(content)
        parsed(write_report([run]))
    (run / "pairs.json").write_text('{"pairs": [')
    assert "pairs.json is not readable as JSON" in words(parsed(write_report([run])))
    (run / "pairs.json").unlink()
    (run / "pairs.json").symlink_to("/etc/hostname")
    assert "pairs.json" in words(parsed(write_report([run])))


def test_hostile_pairs_are_text(make_preference_run):
    run = make_preference_run(
        reference={"of": HOSTILE, "rows": HOSTILE}, recipe={"method": {"name": HOSTILE}}
    )
    evil = make_preference_run.pair(0, -1, 2) | {"source": HOSTILE, "prompt": HOSTILE}
    evil["chosen"] |= {"text": {HOSTILE: HOSTILE, "final": "x" * 1_000_000}, "tokens": HOSTILE}
    evil["rejected"]["text"] = HOSTILE
    make_preference_run.pairs(run, [evil], reference=HOSTILE, split=HOSTILE)
    page = write_report([run])
    assert not {tag for tag, _ in parsed(page).tags} & {"script", "img"}
    assert HOSTILE[:30] in words(parsed(page)) and len(page.read_text()) < 300_000


def test_runs_compared_show_margin_and_accuracy_of_those_that_have_them(
    make_preference_run, make_run, tmp_path
):
    runs = [make_preference_run("a"), make_preference_run("b"), make_run("c")]
    page = write_report(runs, tmp_path / "all.html")
    told, html = words(parsed(page)), page.read_text()
    for title in ("Reward margin", "Reward accuracy", "Held-out reward accuracy"):
        drawn = html.partition(f"<h3>{title}</h3>")[2].partition("</figure>")[0]
        assert drawn.count("<li>") == 2, title
    assert "their losses cannot be compared" in told and "mean per pair / nats per token" in told
    assert "reward accuracy, held out 100.0% 100.0% –" in told
    told = words(parsed(write_report(runs[:2], tmp_path / "two.html")))
    assert "cannot be compared" not in told


def test_the_method_and_its_reference_are_said(make_preference_run):
    found = {"of": "base", "rows": 1200, "tokens": 34_000, "seconds": 95, "cached": False}
    run = make_preference_run(reference=found)
    told = words(parsed(write_report([run])))
    assert "Direct preference optimisation (DPO) of openai/gpt-oss-20b" in told
    took = "the base (1,200 rows, 34,000 tokens, in 95 s)"
    assert f"method direct preference optimisation (DPO) reference {took}" in told
    assert words_of_methods._WORDS.keys() == METHODS.keys()
    cached = reference_words({"reference": found | {"of": "init_adapter", "cached": True}})
    assert cached.startswith("the adapter that") and cached.endswith("read from the cache)")
    for strange in (None, [], "base", {"of": []}, {"of": "x"}, {"rows": 3}):
        assert reference_words({"reference": strange}) == ""
    for record in ({}, {"recipe": 3}, {"recipe": {"method": {"name": []}}}):
        assert not method_of(record).preferences


def test_a_run_without_pairs_has_no_section_of_them(make_run):
    assert pairs(read_run(make_run())) == ""
