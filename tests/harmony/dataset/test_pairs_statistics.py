"""Figures and warnings of preferences: what is counted of both answers, and what is told."""

import json
import re

import pytest
from shown_pairs import EQUAL, HEAVY, LABELS, PAIRS, ROWS, answer, census_of, label, pair, run

from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.kinds import SampleKind
from gptoss_tune.harmony.dataset.pair_statistics import LabelWeights
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.recipe import DataSection


def test_the_figures_count_both_sides(vocabulary, write_jsonl, shown):
    census = census_of(vocabulary, ROWS, write_jsonl)
    figures = census.splits["train"].preferences
    found = shown(ROWS)
    for (name, side), place in zip(figures.sides, (0, 1), strict=True):
        branches = [one.branches[place] for one in found]
        assert name == branches[0].name and side.answers == 3
        assert side.tokens == sum(one.tokens for one in branches)
        assert side.counted == sum(one.counted for one in branches) == sum(side.channels.values())
        assert side.mean_length == side.counted / 3
    assert figures.preferred.weight == 4 and figures.preferred.channels["analysis"] > 0
    lengths = [[branch.counted for branch in one.branches] for one in found]
    assert figures.longer == sum(a > b for a, b in lengths)
    assert figures.shorter == sum(a < b for a, b in lengths) > 0
    whole = census.splits["train"]
    assert whole.tokens == figures.preferred.tokens + figures.other.tokens
    ignored = census_of(vocabulary, ROWS, write_jsonl, SampleKind("pair", "ignored"))
    assert ignored.splits["train"].preferences.preferred.channels["analysis"] == 0


def test_the_figures_are_of_the_samples_drawn(vocabulary, write_jsonl):
    rows = [pair(f"{n}?", answer("yes " * n, "t"), answer("no", "t")) for n in range(1, 21)]
    whole = census_of(vocabulary, rows, write_jsonl).splits["train"].preferences
    both = census_of(vocabulary, rows, write_jsonl, eval_fraction=0.3).splits
    parts = [both[name].preferences for name in ("train", "eval")]
    assert [one.preferred.answers for one in parts] == [14, 6]
    assert sum(one.preferred.counted for one in parts) == whole.preferred.counted
    assert sum(one.longer for one in parts) == whole.longer
    twice = [{"path": write_jsonl(rows), "weight": 2}]
    data = DataSection.model_validate({"train": twice, "max_length": 512})
    drawn = data_statistics(data, vocabulary, seed=0, kind=PAIRS).splits["train"].preferences
    assert drawn.preferred.counted == 2 * whole.preferred.counted


def test_planted_pairs_are_warned_about_with_their_places(vocabulary, write_jsonl):
    census = census_of(vocabulary, [*ROWS, EQUAL], write_jsonl)
    path = census.splits["train"].sources[0][0]
    said = "\n".join(census.warnings())
    for wanted in (
        "train: 1 pair dropped, too long (both branches together)",
        "train: 2 pairs dropped, the answers are equal",
        "train: 1 pair whose chosen answer has no chain of thought and whose rejected one has",
        "also with method.analysis ignored",
    ):
        assert wanted in said
    listed = {what: places for what, places in census.splits["train"].listed() if places.rows}
    assert {what: places.places for what, places in listed.items()} == {
        "{} with equal answers": [f"{path}:2", f"{path}:6"],
        "{} whose chosen answer lost its chain of thought": [f"{path}:1"],
        "{} longer than max_length": [f"{path}:3"],
    }
    report = census.to_json()
    assert report["splits"]["train"]["places"]["equal_answers"] == [f"{path}:2", f"{path}:6"]
    assert json.loads(json.dumps(report))["warnings"] == census.warnings()


def test_ties_and_differences_in_length_are_counted_and_told(vocabulary, write_jsonl):
    tie = {"context": "Which?", "response1": "this", "response2": "that", "overall_preference": 0}
    longer = pair("Why?", answer("So it is.", "t"), answer("So it is. And so on.", "t"))
    census = census_of(vocabulary, [tie, longer, tie, HEAVY], write_jsonl)
    train = census.splits["train"]
    path = train.sources[0][0]
    assert [line.split(",")[0] for line in census.warnings()] == [
        "train: 2 pairs dropped",
        "train: 1 pair whose answers differ in length alone",
        f"train: {path}: 2 rows of 4 without thoughts",
    ]
    places = {what: found.places for what, found in train.listed() if found.rows}
    assert places == {
        "{} without a preference": [f"{path}:1", f"{path}:3"],
        "{} whose answers differ in length alone": [f"{path}:2"],
    }
    assert train.samples == 2 and train.to_json()["places"] == {
        "ties": [f"{path}:1", f"{path}:3"],
        "differ_in_length": [f"{path}:2"],
        "without_thoughts": [f"{path}:1", f"{path}:3"],
    }


def test_places_are_added_up_and_kept_with_the_rendering():
    report, other = RowCounts(), RowCounts()
    report.count_at("ties", "a:1")
    for name, place in (("ties", "b:1"), ("differ_in_length", "b:2")):
        other.count_at(name, place)
    report.add(RowCounts.from_json(json.dumps(other.to_json())))
    assert report.places == {"ties": ["a:1", "b:1"], "differ_in_length": ["b:2"]}
    assert report.counts["ties"] == 2 and "places" not in RowCounts().to_json()


def test_what_is_worth_telling_of_both_answers_counts_once(vocabulary, write_jsonl):
    rows = [{**HEAVY, "lesson": "a"}]
    (said,) = census_of(vocabulary, rows, write_jsonl).warnings()
    assert "lesson" in said and "times" not in said


@pytest.mark.parametrize(
    ("longer", "shorter", "equal", "told"),
    [
        (17, 3, 0, "chosen answer is the longer one in 85% of 20 pairs"),
        (3, 17, 5, "rejected answer is the longer one in 85% of 20 pairs"),
        (16, 4, 0, None),
        (19, 0, 0, None),  # too few to say
        (5, 0, 40, None),  # most are equally long
    ],
)
def test_a_bias_of_the_length_is_told(vocabulary, write_jsonl, longer, shorter, equal, told):
    long, short = answer("one two three", "t"), answer("one", "t")
    rows = [pair(f"l{n}", long, short) for n in range(longer)]
    rows += [pair(f"s{n}", short, long) for n in range(shorter)]
    rows += [pair(f"e{n}", short, answer("two", "t")) for n in range(equal)]
    census = census_of(vocabulary, rows, write_jsonl)
    said = [line for line in census.warnings() if "longer one" in line]
    assert bool(said) == bool(told) and (not told or told in said[0])


@pytest.mark.parametrize(
    ("good", "bad", "weights", "key"),
    [
        (6, 6, (1, 1), None),
        (8, 6, (1, 1), None),
        (9, 6, (1, 1), "undesirable"),
        (2, 9, (1, 1), "desirable"),
        (2, 9, (4.5, 1), None),
        (6, 6, (1, 3), "desirable"),
        (6, 6, (30, 0.7), "undesirable"),
        (1, 30, (100, 1000), "desirable"),
    ],
)
def test_the_balance_of_labels_is_told_and_the_advice_works(
    vocabulary, write_jsonl, good, bad, weights, key
):
    rows = [label(f"g{n}", answer("x", "t"), True) for n in range(good)]
    rows += [label(f"b{n}", answer("x", "t"), False) for n in range(bad)]
    weights = LabelWeights(*weights)
    said = census_of(vocabulary, rows, write_jsonl, LABELS, weights).warnings()
    assert bool(said) == bool(key)
    if key is None:
        return
    assert f"train: {good} good and {bad} bad answers" in said[0]
    advice = re.search(r"set method\.(\w+)_weight to ([\d.]+) ", said[0])
    if advice is None:
        assert "add good answers" in said[0]  # no weight that a recipe may have is large enough
        return
    assert advice[1] == key
    side = {"desirable": "good", "undesirable": "bad"}[key]
    followed = weights._replace(**{side: float(advice[2])})
    assert not census_of(vocabulary, rows, write_jsonl, LABELS, followed).warnings()


def test_one_label_alone_teaches_nothing(vocabulary, write_jsonl):
    rows = [label(f"g{n}", answer("x", "t"), True) for n in range(3)]
    (said,) = census_of(vocabulary, rows, write_jsonl, LABELS).warnings()
    assert said.endswith(
        "3 good and 0 bad answers: nothing is learnt from one label alone; add bad answers"
    )


def test_what_no_run_can_use_is_a_problem(vocabulary, write_jsonl):
    (said,) = census_of(vocabulary, [EQUAL, EQUAL], write_jsonl).problems()
    assert "2 pairs without a preference); add pairs of different answers" in said
    alone = census_of(vocabulary, [label("a", answer("b"), True)], write_jsonl, LABELS)
    (said,) = alone.problems()
    assert said.startswith("train: KTO measures") and "one row alone" in said
    rows = [label("a", answer("b"), True), label("c", answer("d"), False)]
    assert census_of(vocabulary, rows, write_jsonl, LABELS).problems() == []


def test_several_pairs_of_a_question_are_no_fault(vocabulary, write_jsonl):
    rows = [pair("same", answer(f"yes {n}", "t"), answer(f"no {n}", "t")) for n in range(4)]
    census = census_of(vocabulary, rows, write_jsonl)
    assert census.warnings() == [] and census.splits["train"].same_prompts.rows == 3
    twice = census_of(vocabulary, [rows[0], rows[0]], write_jsonl)
    assert twice.warnings() == ["train: 1 pair equal to an earlier one (line 2)"]


def test_the_commands_tell_pairs_their_figures_and_fail_under_strict(recipe, tmp_path):
    out = tmp_path / "report.json"
    path = recipe(ROWS, held_out=[HEAVY])
    result = run("check-data", path, "--out", str(out))
    assert result.exit_code == 0, result.output
    for wanted in (
        "rows     5 read, 0 refused",
        "pairs    3 with ",
        "tokens in both branches",
        "chosen   ",
        "rejected ",
        "longer   the chosen answer in ",
        "dropped  1 pair with equal answers, 1 pair longer than max_length (both branches",
        "1 pair whose chosen answer lost its chain of thought: ",
        "eval: 1 pair that training sees too",
        "All other pairs can be trained on.",
    ):
        assert wanted in result.output, wanted
    report = json.loads(out.read_text())
    figures = report["splits"]["train"]["preferences"]
    assert figures["pairs"] == 3 and figures["chosen"]["channels"]["final"] > 0
    assert report["ok"] and json.loads(run("check-data", path, "--json").output) == report
    assert run("check-data", path, "--strict").exit_code == 2
    clean = run("check-data", recipe([HEAVY]), "--strict")
    assert clean.exit_code == 0 and "All pairs can be trained on." in clean.output
    shown = run("preview", path, "--n", "1")
    assert "Pair 1" in shown.output and "Pair 2" not in shown.output
    assert "- rejected" in shown.output and "\x1b[" not in shown.output


def test_the_commands_read_labels_with_the_weights_of_the_recipe(recipe):
    rows = [label(f"g{n}", answer("x", "t"), n > 3) for n in range(8)]
    result = run("check-data", recipe(rows, "kto"))
    assert "good     4 answers, " in result.output and "bad      4 answers, " in result.output
    assert "All answers can be trained on." in result.output
    heavy = recipe(rows, {"name": "kto", "desirable_weight": 2.0})
    result = run("check-data", heavy, "--strict")
    assert result.exit_code == 2 and "weighted 8 to 4" in result.output
    assert "set method.undesirable_weight to " in result.output
    assert "Answer 1" in run("preview", heavy, "--n", "1").output
