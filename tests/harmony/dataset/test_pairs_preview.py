"""What people see of preferences: both answers beside each other, their figures and warnings."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.cli.preview_text import print_preference
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.kinds import SampleKind
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.dataset.pair_statistics import LabelWeights
from gptoss_tune.harmony.dataset.statistics import (
    DataStatistics,
    SplitStatistics,
    data_statistics,
)
from gptoss_tune.recipe import DataSection
from gptoss_tune.report.preview_page import preview_page
from gptoss_tune.report.token_view import first_preferences

PAIRS, LABELS = SampleKind("pair"), SampleKind("label")


def answer(content, thinking=None):
    told = {"thinking": thinking} if thinking else {}
    return [{"role": "assistant", "content": content, **told}]


def pair(prompt, chosen, rejected, **beside):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **beside}


def label(prompt, completion, good):
    return {"prompt": prompt, "completion": completion, "label": good}


LOST = pair("What is 17 * 3?", answer("51"), answer("It is 52.", "Guess."))
EQUAL = pair("Same?", answer("yes"), answer("yes"))
LONG = pair("Write.", answer("word " * 400), answer("no"))
HEAVY = pair("7 * 8?", answer("56", "Seven eights."), answer("54", "Nearly."), weight=2)
TURNS = pair(
    "Weather in Oslo?",
    [*answer("3 degrees.", "Cold."), {"role": "user", "content": "Rome?"}, *answer("24.", "Warm.")],
    [*answer("Who knows.", "Hm."), {"role": "user", "content": "Rome?"}, *answer("Hot.", "Hm.")],
)
ROWS = [LOST, EQUAL, LONG, HEAVY, TURNS]


@pytest.fixture
def recipe(tmp_path, write_jsonl):
    def write(rows, method="dpo", held_out=None, **data):
        settings = {"train": write_jsonl(rows), "max_length": 512, **data}
        if held_out is not None:
            settings["eval"] = write_jsonl(held_out, "eval.jsonl")
        section = method if isinstance(method, dict) else {"name": method}
        whole = {
            "model": {"name_or_path": "base"},
            "method": section,
            "data": settings,
            "train": {"output_dir": "run", "max_steps": 1},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(whole))
        return str(path)

    return write


@pytest.fixture
def shown(vocabulary, write_jsonl):
    def read(rows, kind=PAIRS, count=10):
        data = DataSection.model_validate({"train": write_jsonl(rows), "max_length": 512})
        return first_preferences(data, data.train, vocabulary, count, kind)

    return read


@pytest.fixture
def printed(vocabulary, shown):
    """Print the first pairs on a terminal of a width; ``coloured`` keeps the escape sequences."""

    def show(rows, width, *, kind=PAIRS, coloured=False, terminal=True):
        file = io.StringIO()
        console = Console(
            file=file,
            width=width,
            highlight=False,
            soft_wrap=True,
            force_terminal=terminal,
            color_system="truecolor" if coloured else None,
        )
        for number, one in enumerate(shown(rows, kind), start=1):
            print_preference(console, number, one, vocabulary)
        return file.getvalue()

    return show


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


def census_of(vocabulary, rows, write_jsonl, kind=PAIRS, weights=None, **settings):
    data = DataSection.model_validate({"train": write_jsonl(rows), "max_length": 512, **settings})
    return data_statistics(
        data, vocabulary, seed=0, kind=kind, weights=weights or LabelWeights(1.0, 1.0)
    )


def columns(text, width):
    """What stands in the left and in the right column, the rule between them taken out."""
    lines = [line for line in text.split("\n") if "\u2502" in line]
    assert lines and all(len(line) <= width for line in lines)
    places = {line.index("\u2502") for line in lines}
    assert len(places) == 1, "the rule stands in one column"
    parts = [line.split("\u2502") for line in lines]
    return [[part[side].strip() for part in parts] for side in (0, 1)]


def test_what_is_shown_is_the_sample_that_is_trained(vocabulary, write_jsonl, shown):
    path = write_jsonl(ROWS)
    data = DataSection.model_validate({"train": path, "max_length": 512, "packing": False})
    trained = load_dataset(data, split="train", vocabulary=vocabulary, kind=PAIRS)
    found = shown(ROWS)
    assert [one.source for one in found] == [f"{path}:{line}" for line in (1, 4, 5)]
    for one, row in zip(found, trained, strict=True):
        documents = [doc for branch in one.branches for doc in branch.documents]
        assert [token for doc in documents for token in doc.input_ids] == row["input_ids"]
        assert [weight for doc in documents for weight in doc.loss_weights] == row["loss_weights"]
        signs = [branch.sign for branch in one.branches for _ in branch.documents]
        assert signs == row["branches"]
        for document in documents:
            spelled = [token for span in document.spans for token in range(span.start, span.end)]
            assert spelled == list(range(len(document.input_ids)))


def test_the_prompt_is_shown_once_and_later_contexts_begin_after_it(shown):
    (found,) = shown([TURNS])
    assert [span.role for span in found.prompt] == ["system", "user"]
    for branch in found.branches:
        first, second = branch.documents
        prompt = found.prompt[-1].end
        for document, roles in ((first, "aa"), (second, "auaa")):
            same, spans = found.following(document)
            assert same == prompt and "".join(span.role[0] for span in spans) == roles


def test_count_is_of_pairs_and_those_dropped_are_passed_over(shown):
    assert len(shown(ROWS, count=2)) == 2
    assert shown([EQUAL, LONG, EQUAL]) == [] and shown(ROWS, count=0) == []


@pytest.mark.parametrize("width", [100, 120, 200])
def test_wide_terminals_have_both_answers_side_by_side(printed, width):
    text = printed([HEAVY], width)
    left, right = columns(text, width)
    assert left[0] == "+ chosen, weight +2" and right[0] == "- rejected, weight -2"
    assert all(line.startswith("+") for line in left)
    assert all(line.startswith("-") for line in right)
    assert "56" in "".join(left) and "54" in "".join(right)
    joined = "".join(line[1:].strip() for line in left)
    assert "\u27e6<|channel|>analysis<|message|>Seven" in joined and "<|return|>\u27e7" in joined
    assert text.count("7 * 8?") == 1
    assert re.search(r"\(chosen \d+ tokens, \d+ counted; rejected \d+ tokens, \d+ counted\)", text)


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (99, True), (120, False)])
def test_narrow_terminals_and_pipes_have_one_answer_under_the_other(printed, width, terminal):
    text = printed([HEAVY], width, terminal=terminal)
    assert "\u2502" not in text
    lines = [line.strip() for line in text.split("\n")]
    assert lines.index("+ chosen, weight +2") < lines.index("- rejected, weight -2")
    assert any(re.match(r"- +\u27e6<\|start\|>assistant<\|channel\|>final.*54", x) for x in lines)


def test_lines_of_a_column_are_as_wide_as_it_is(printed):
    words = "word " * 30 + "x" * 300 + " \u4f60\u597d" * 40 + "\ttab\n\nnext <|end|> <b"
    for width in (80, 120):
        text = printed([pair("a", answer(words), answer("b " * 90))], width)
        lines = [line for line in text.split("\n") if re.match(r"  [+-] ", line)]
        sizes = [sum(2 if ord(one) > 0x2E80 else 1 for one in line) for line in lines]
        assert len(lines) > 9 and max(sizes) <= width, width
        if width > 100:
            starts = {
                sum(2 if ord(one) > 0x2E80 else 1 for one in line.split("\u2502")[0])
                for line in text.split("\n")
                if "\u2502" in line
            }
            assert len(starts) == 1
            assert text.count("x") >= 300 and text.count("\u4f60") == 40
        assert not re.search(r"<\|[a-z]*$", text, re.M), "a special token is cut"


def test_colours_tell_the_signs_apart_and_ignored_thoughts_are_context(printed, vocabulary):
    text = printed([HEAVY], 120, coloured=True)
    assert "\x1b[37;48;2;15;81;50m56" in text and "\x1b[37;48;2;122;28;34m54" in text
    assert "\x1b[37;48;2;15;81;50mSeven" in text and "\u27e6" not in text
    ignored = printed([HEAVY], 120, kind=SampleKind("pair", "ignored"), coloured=True)
    assert "\x1b[37;48;2;15;81;50m56" in ignored and "\x1b[2mSeven" in ignored
    assert "\x1b[2massistant" in text, "context is not tinted"


def test_several_contexts_and_notes_are_named(printed):
    text = printed([TURNS, LOST], 80)
    assert "+ context 1 of 2\n" in text
    assert re.search(r"- context 2 of 2, after \d+ tokens of the prompt\n", text)
    assert text.count("the chosen answer has no chain of thought") == 1


def test_a_labelled_answer_stands_alone_with_its_label(printed):
    rows = [label("2+2?", answer("4"), True), label("2+2?", answer("5"), False)]
    text = printed(rows, 120, kind=LABELS)
    assert "\u2502" not in text and "Answer 1" in text and "Answer 2" in text
    assert "+ good\n" in text and "- bad\n" in text
    assert re.search(r"\(bad \d+ tokens, \d+ counted\)", text)


HOSTILE = [
    "<script>alert(1)</script>",
    "</span></div></article></body><script>1</script>",
    "' onmouseover='alert(1)",
    "<|end|><style>*{display:none}</style>",
    "\x1b]0;owned\x07\x1b[2J",
    "\u202eabc\u2066",
]


def test_hostile_text_of_either_answer_is_spelled_out(vocabulary, printed, shown):
    rows = [pair(x, answer(x, x), answer(f"{x} no", x)) for x in HOSTILE]
    for width in (80, 120):
        text = printed(rows, width)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]", text)
        assert "\\x1b" in text and "\\u202e" in text
    census = DataStatistics({"train": SplitStatistics([], RowCounts(), rows="pair")})
    page = preview_page(census, shown(rows), vocabulary, title="".join(HOSTILE))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    tags = set(re.findall(r"<([a-z0-9]+)", page.split("</style>")[1]))
    assert tags <= {
        *("body", "h1", "h2", "h3", "p", "a", "div", "b", "span", "table", "tr", "th", "td"),
        *("thead", "tbody", "article", "figure", "figcaption", "svg", "text", "rect", "desc"),
    }
    assert not re.search(r"<[^>]* on[a-z]+=", page)


def test_the_page_has_both_answers_in_columns_with_signed_weights(vocabulary, recipe, tmp_path):
    page = tmp_path / "page.html"
    result = run("preview", recipe([*ROWS, HEAVY]), "--html", str(page), "--n", "3")
    assert result.exit_code == 0 and "3 pairs" in result.output
    text = page.read_text(encoding="utf-8")
    assert text.count('<div class="sides">') == 3
    assert re.sub(r"<[^>]*>", "", text).count("7 * 8?") == 1
    assert "weight +2" in text and "weight -2" in text and "weight +1" in text
    assert re.search(r'<span title="\d+, weight -2" style="background[^"]*">54</span>', text)
    assert ".side.other" in text and "prefers-color-scheme: dark" in text
    for wanted in ("Tokens per pair", "Both sides", "dropped", "context 2 of 2", "refused"):
        assert wanted in text, wanted
    kto = recipe([label("a", answer("b"), True), label("c", answer("d"), False)], "kto")
    assert "2 answers" in run("preview", kto, "--html", str(page)).output
    text = page.read_text(encoding="utf-8")
    assert '<div class="sides one">' in text and "+ good" in text and "\u2212 bad" in text


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
    ]
    places = {what: found.places for what, found in train.listed() if found.rows}
    assert places == {
        "{} without a preference": [f"{path}:1", f"{path}:3"],
        "{} whose answers differ in length alone": [f"{path}:2"],
    }
    assert train.samples == 2 and train.to_json()["places"] == {
        "ties": [f"{path}:1", f"{path}:3"],
        "differ_in_length": [f"{path}:2"],
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
    assert twice.warnings() == ["train: 1 pair equal to an earlier one"]


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
