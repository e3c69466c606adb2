"""What people see of preferences: both answers beside each other, in a terminal and on a page."""

import io
import re

import pytest
from rich.console import Console
from shown_pairs import (
    EQUAL,
    HEAVY,
    LABELS,
    LONG,
    LOST,
    PAIRS,
    ROWS,
    TURNS,
    answer,
    label,
    pair,
    run,
)

from gptoss_tune.cli.recipe.preview_text import print_preference
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.kinds import SampleKind
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.dataset.statistics import DataStatistics, SplitStatistics
from gptoss_tune.recipe import DataSection
from gptoss_tune.report.preview_page import preview_page


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
