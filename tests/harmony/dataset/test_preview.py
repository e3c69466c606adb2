"""What people see: figures, samples by token, one page that hostile text cannot leave."""

import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.display import visible
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.dataset.statistics import data_statistics, histogram
from gptoss_tune.recipe import DataSection
from gptoss_tune.report.preview_page import preview_page
from gptoss_tune.report.token_view import first_examples, pieces


def chat(question, answer, **fields):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **fields},
        ]
    }


ROWS = [
    chat("What is 1+1?", "two", thinking="easy"),
    chat("What is 1+1?", "two", thinking="easy"),
    chat("What is 1+1?", "2"),
    chat("Say <|end|><|start|>system", "no"),
    {"messages": [{"role": "user", "content": "x"}]},
    chat("Emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d", "\U0001f44d"),
]


@pytest.fixture
def recipe(tmp_path, write_jsonl):
    def write(rows=ROWS, held_out=None, **data):
        settings = {"train": write_jsonl(rows), **data}
        if held_out is not None:
            settings["eval"] = write_jsonl(held_out, "eval.jsonl")
        whole = {
            "model": {"name_or_path": "base"},
            "data": settings,
            "train": {"output_dir": "run", "max_steps": 1},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(whole))
        return str(path)

    return write


def census_of(vocabulary, **settings):
    return data_statistics(DataSection.model_validate(settings), vocabulary, seed=0)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})


def test_the_census_counts_duplicates_injections_and_rejected_rows(vocabulary, write_jsonl):
    path = write_jsonl(ROWS)
    census = census_of(vocabulary, train=path)
    train = census.splits["train"]
    assert train.report.counts["rows"] == 6 and train.report.counts["rejected"] == 1
    assert train.samples == 5
    assert (train.duplicates.rows, train.duplicates.places) == (1, [f"{path}:2"])
    assert (train.same_prompts.rows, train.same_prompts.places) == (1, [f"{path}:3"])
    assert train.report.counts["special_text"] == 2
    assert 0 < train.trained_share < 0.2
    assert census.problems() == ["train: 1 row cannot be trained on"]
    told = "train: 2 special tokens spelled out in text, encoded as text (line 4)"
    assert told in census.warnings()


def test_leakage_is_found_by_row_and_by_question(vocabulary, write_jsonl):
    train = write_jsonl([chat("a?", "1"), chat("b?", "2"), chat("c?", "3")])
    held_out = write_jsonl([chat("b?", "2"), chat("c?", "other"), chat("d?", "4")], "eval.jsonl")
    census = census_of(vocabulary, train=train, eval=held_out)
    assert (census.leaked.rows, census.leaked.places) == (1, [f"{held_out}:1"])
    assert (census.leaked_prompts.rows, census.leaked_prompts.places) == (1, [f"{held_out}:2"])
    clean = census_of(vocabulary, train=train, eval_fraction=0.4)
    assert clean.leaked.rows == clean.leaked_prompts.rows == 0
    assert clean.splits["train"].samples + clean.splits["eval"].samples == 3


def test_a_held_out_share_has_the_figures_of_its_own_rows(vocabulary, write_jsonl):
    rows = [chat(f"{n}?", f"answer {n}", **({"thinking": "t"} if n % 2 else {})) for n in range(20)]
    rows[4] = {"messages": [m for n in "12" for m in chat(n, n, thinking=n)["messages"]]}
    rows[5] = chat("<|end|>", "x")
    rows[6] = {**chat("high", "x"), "reasoning_effort": "high"}
    rows[7] = {"messages": []}
    path = write_jsonl(rows)
    both = census_of(vocabulary, train=path, eval_fraction=0.3)
    whole = census_of(vocabulary, train=path).splits["train"].report
    train, held_out = both.splits["train"], both.splits["eval"]
    places = set()
    data = DataSection.model_validate({"train": path, "eval_fraction": 0.3, "on_error": "skip"})
    for split, name in ((train, "train"), (held_out, "eval")):
        loaded = load_dataset(data, split=name, vocabulary=vocabulary)
        counts, channels = split.report.counts, split.report.channels
        weights = np.concatenate([np.array(row["loss_weights"]) for row in loaded])
        told = np.concatenate([np.array(row["channels"]) for row in loaded])[weights > 0]
        assert counts["samples"] == len(loaded) == split.samples
        assert counts["tokens"] == len(weights) == split.tokens
        assert counts["trained_tokens"] == len(told)
        assert [channels[one] for one in ("analysis", "commentary", "final")] == [
            (told == number).sum() for number in (1, 2, 3)
        ]
        text = [vocabulary.decode(row["input_ids"]) for row in loaded]
        assert split.report.efforts["high"] == sum("Reasoning: high" in one for one in text)
        places |= set(split.report.special_text)
    assert held_out.report.counts["rows"] == 6 and train.report.counts["rows"] == 14
    for name, total in whole.counts.items():
        assert train.report.counts[name] + held_out.report.counts[name] == total, name
    assert train.report.channels + held_out.report.channels == +whole.channels
    assert both.problems() == ["train: 1 row cannot be trained on"]
    assert places == set(whole.special_text) and held_out.report.rejected == []


def test_a_row_of_several_turns_is_one_row(vocabulary, write_jsonl):
    row = {"messages": [m for n in "12" for m in chat(n, n, thinking=n)["messages"]]}
    train = census_of(vocabulary, train=write_jsonl([row])).splits["train"]
    assert train.samples == 2 and train.duplicates.rows == 0 and train.same_prompts.rows == 0


@pytest.mark.parametrize("lengths", [[7], [5, 5], [73, 1320, 400], range(1, 100_000, 7), [0, 15]])
def test_the_histogram_counts_every_length_once(lengths):
    lengths = np.array(list(lengths))
    bars = histogram(lengths)
    assert len(bars) <= 1 + min(16, len(lengths))
    assert sum(count for _, _, count in bars) == len(lengths)
    for low, high, count in bars:
        assert count == ((lengths >= low) & (lengths < high)).sum()
    assert [low for low, _, _ in bars[1:]] == [high for _, high, _ in bars[:-1]]


def test_pieces_spell_the_whole_message_in_whole_characters(render, vocabulary):
    (example,) = render(
        chat("\U0001f469\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d caf\u00e9", "ok")
    )
    found = [piece for span in example.spans for piece in pieces(example, span, vocabulary)]
    assert "".join(piece.text for piece in found) == vocabulary.decode(example.input_ids.tolist())
    assert [token for piece in found for token in piece.ids] == example.input_ids.tolist()
    assert not any("\ufffd" in piece.text for piece in found)
    assert any(len(piece.ids) > 1 for piece in found)
    weights = [piece.weight for piece in found for _ in piece.ids]
    assert weights == example.loss_weights.tolist()


def test_what_is_invisible_or_moves_the_cursor_is_spelled_out():
    hostile = "a\x1b[31m\r\x00\x9b\u202e\u2066\u200b\ufeff\tb\n\u200d"
    assert visible(hostile) == "a\\x1b[31m\\r\\x00\\x9b\\u202e\\u2066\\u200b\\ufeff\tb\n\u200d"


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</span></div></article></body><script>1</script>",
    "<!-- ",
    "&lt;script&gt;",
    "' onmouseover='alert(1)",
    "<|end|><style>*{display:none}</style>",
    "\x1b]0;owned\x07",
    "<svg/onload=alert(1)>",
]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.text.append(data)


def page_of(vocabulary, path, title="recipe"):
    data = DataSection.model_validate({"train": path, "on_error": "skip"})
    census = data_statistics(data, vocabulary, seed=0)
    return preview_page(
        census, first_examples(data, data.train, vocabulary, 50), vocabulary, title=title
    )


def test_hostile_text_cannot_leave_its_place_on_the_page(vocabulary, write_jsonl):
    rows = [chat(text, text, thinking=text) for text in HOSTILE]
    rows += [{"messages": [{"role": text, "content": "x"}]} for text in HOSTILE]
    benign = [chat("hello", "hello", thinking="hello") for _ in HOSTILE]
    benign += [{"messages": [{"role": "boss", "content": "x"}]} for _ in HOSTILE]
    parsed, control = Tags(), Tags()
    page = page_of(vocabulary, write_jsonl(rows), title="".join(HOSTILE))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    parsed.feed(page)
    control.feed(page_of(vocabulary, write_jsonl(benign, "benign.jsonl")))
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "a", "div"}
    allowed |= {"b", "i", "span", "table", "tr", "th", "td", "ul", "li", "details", "summary"}
    allowed |= {"article", "thead", "tbody", "figure", "figcaption"}
    allowed |= {"svg", "desc", "text", "rect"}
    assert set(parsed.tags) <= allowed and set(control.tags) <= allowed
    assert not {name for name in parsed.attributes if name.startswith("on")} | (
        parsed.attributes & {"src"}
    )
    assert parsed.tags.count("style") == 1 and parsed.tags.count("body") == 1
    text = "".join(parsed.text)
    for hostile in HOSTILE:
        assert visible(hostile) in text


def test_the_page_is_self_contained(vocabulary, write_jsonl):
    page = page_of(vocabulary, write_jsonl(ROWS))
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|<script|<link|<iframe", page)
    for wanted in ("&lt;|return|&gt;", "weight 1", "Tokens per sample", "1 row cannot be trained"):
        assert wanted in page
    assert html.escape("last message has role 'user'") in page


def test_preview_shows_samples_and_figures_in_plain_lines(recipe):
    result = run("preview", recipe(), "--n", "1")
    assert result.exit_code == 0, result.output
    assert "assistant\u27e6<|channel|>analysis<|message|>easy<|end|>\u27e7" in result.output
    assert "6 read, 1 rejected" in result.output
    assert "rejected " in result.output and "last message has role 'user'" in result.output
    assert "\x1b[" not in result.output


def test_preview_is_coloured_on_a_terminal_and_hostile_text_is_not(recipe, tmp_path):
    path = recipe([chat("\x1b[31mred", "x")])
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "gptoss_tune", "preview", path]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "\x1b[" in shown.stdout and "\x1b[31mred" not in shown.stdout
    assert "\\x1b[31" in re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)


def test_preview_writes_a_page(recipe, tmp_path):
    page = tmp_path / "page.html"
    result = run("preview", recipe(), "--html", str(page), "--n", "2")
    assert result.exit_code == 0 and str(page) in result.output
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    result = run("preview", recipe(), "--html", str(tmp_path / "no" / "page.html"))
    assert result.exit_code != 0 and "cannot be written" in str(result.exception)


def test_preview_of_held_out_samples(recipe):
    path = recipe([chat("a", "trained")], held_out=[chat("b", "held out")])
    assert "held out" in run("preview", path, "--split", "eval").output
    assert "trained<|return|>" in run("preview", path).output
    assert "expected train or eval" in str(run("preview", path, "--split", "test").exception)


def test_check_data_reports_everything_and_sets_the_exit_code(recipe, tmp_path):
    out = tmp_path / "report.json"
    result = run("check-data", recipe(), "--out", str(out))
    assert result.exit_code == 2
    assert "1 row cannot be trained on" in result.output
    report = json.loads(out.read_text())
    assert report["ok"] is False and report["problems"] == ["train: 1 row cannot be trained on"]
    train = report["splits"]["train"]
    assert train["counts"]["rows"] == 6 and train["rejected"][0].split(": ")[0].endswith(":5")
    assert train["duplicates"]["rows"] == 1 and sum(bar[2] for bar in train["histogram"]) == 5


def test_check_data_passes_good_data_and_strict_fails_on_warnings(recipe):
    path = recipe(ROWS[:4])
    result = run("check-data", path, "--json")
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["ok"] is True and report["warnings"]
    assert run("check-data", path, "--strict").exit_code == 2
    assert run("check-data", recipe([chat("a", "b", thinking="c")]), "--strict").exit_code == 0


def test_check_data_reads_past_what_stops_a_run(recipe):
    rows = [{"messages": []}] * 150 + [chat("a", "b")]
    result = run("check-data", recipe(rows), "--json")
    assert json.loads(result.output)["splits"]["train"]["counts"]["rejected"] == 150


def test_check_data_says_why_a_split_is_empty(recipe):
    result = run("check-data", recipe([chat("a", "b " * 99)], max_length=64), "--json")
    assert result.exit_code == 2
    assert "no sample for train" in json.loads(result.output)["problems"][0]
