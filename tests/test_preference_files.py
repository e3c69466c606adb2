"""The shipped preferences: well formed, held out, and told apart by their quality alone."""

import importlib.util
import json
import re
from itertools import combinations, product
from pathlib import Path

import pytest

from gptoss_tune.harmony.formats.labelled import read_labelled
from gptoss_tune.harmony.formats.preference import read_preference
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary

SPEC = importlib.util.spec_from_file_location(
    "data_files", Path(__file__).with_name("test_data_files.py")
)
data_files = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(data_files)
load, located = data_files.load, data_files.located

PAIRS = ["preferences/pairs.jsonl", "preferences/pairs_eval.jsonl"]
LABELS = ["preferences/labels.jsonl", "preferences/labels_eval.jsonl"]
TINY_PAIRS = ["tiny/pairs.jsonl", "tiny/pairs_eval.jsonl"]
TINY_LABELS = ["tiny/labels.jsonl", "tiny/labels_eval.jsonl"]
ALL_PAIRS, ALL_LABELS = [*PAIRS, *TINY_PAIRS], [*LABELS, *TINY_LABELS]
# What the recipes of the files allow for a pair, both branches together.
MAX_LENGTH = {"preferences": 2048, "tiny": 512}


def asked(row):
    """The messages of the prompt."""
    prompt = row["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def question(row):
    return json.dumps(asked(row), ensure_ascii=False)


def branches(row):
    """The answers of a row by name: one for a labelled row, two for a pair."""
    return {key: row[key] for key in ("chosen", "rejected", "completion") if key in row}


def whole(row, key):
    """The conversation of one branch, as the other files hold one."""
    beside = {name: row[name] for name in ("tools", "reasoning_effort") if name in row}
    return {"messages": [*asked(row), *row[key]], **beside}


def thinks(messages):
    return any("thinking" in message for message in messages)


def conversations_of(row, where):
    if "completion" in row:
        return [read_labelled(row, where).conversation]
    pair = read_preference(row, where)
    return [pair.chosen, pair.rejected]


@pytest.fixture(scope="module")
def lengths():
    """The counted and all tokens of every branch: ``lengths[file]`` is a list of rows of both."""
    renderer = Renderer(load_vocabulary(), RenderSettings())

    def sizes(conversation):
        examples = renderer.render(conversation)
        counted = sum(int((example.loss_weights > 0).sum()) for example in examples)
        return counted, sum(len(example.input_ids) for example in examples)

    return {
        name: [[sizes(c) for c in conversations_of(row, where)] for where, row in located(name)]
        for name in [*ALL_PAIRS, *ALL_LABELS]
    }


def test_counts():
    counts = {name: len(load(name)) for name in [*ALL_PAIRS, *ALL_LABELS]}
    least = [100, 16, 96, 24, 120, 20, 96, 24]
    assert all(n >= wanted for n, wanted in zip(counts.values(), least, strict=True)), counts


@pytest.mark.parametrize("name", [*ALL_PAIRS, *ALL_LABELS])
def test_every_branch_is_a_well_formed_conversation(name):
    keys = {"prompt", "tools", "reasoning_effort"}
    keys |= {"chosen", "rejected"} if name in ALL_PAIRS else {"completion", "label"}
    found = []
    for where, row in located(name):
        assert set(row) <= keys, where
        for key in branches(row):
            mistakes = data_files.mistakes_in_row(whole(row, key))
            found += [f"{where}: {key}: {mistake}" for mistake in mistakes]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [*ALL_PAIRS, *ALL_LABELS])
def test_every_row_says_something(name):
    """No pair is equal, a tie, told by its length alone, or has lost its thoughts; no warning."""
    for where, row in located(name):
        if "label" in row:
            assert not read_labelled(row, where).conversation.notes.warnings, where
            continue
        pair = read_preference(row, where)
        assert not (pair.tie or pair.equal or pair.lost_analysis), where
        assert not pair.differs_in_length_only and not pair.notes.warnings, where


@pytest.mark.parametrize("name", [*ALL_PAIRS, *ALL_LABELS])
def test_no_branch_alone_thinks(name):
    """Else the preference is one for thinking or not; without thoughts the effort is low."""
    for where, row in located(name):
        thinking = {thinks(answer) for answer in branches(row).values()}
        assert len(thinking) == 1, f"{where}: one branch thinks and the other does not"
        if not thinking.pop():
            assert row["reasoning_effort"] == "low", where


@pytest.mark.parametrize("name", ALL_PAIRS)
def test_length_does_not_tell_the_branches_apart(name, lengths):
    counted = [(chosen[0], rejected[0]) for chosen, rejected in lengths[name]]
    ratio = sum(a / b for a, b in counted) / len(counted)
    unequal = [a > b for a, b in counted if a != b]
    assert 0.8 <= ratio <= 1.25
    assert 0.8 <= sum(a for a, _ in counted) / sum(b for _, b in counted) <= 1.25
    assert 0.4 <= sum(unequal) / len(unequal) <= 0.6


@pytest.mark.parametrize("name", ALL_LABELS)
def test_length_does_not_tell_good_answers_from_bad_ones(name, lengths):
    counted = {True: [], False: []}
    for row, (answer,) in zip(load(name), lengths[name], strict=True):
        counted[row["label"]].append(answer[0])
    means = {label: sum(values) / len(values) for label, values in counted.items()}
    assert 0.8 <= means[True] / means[False] <= 1.25
    assert 0.55 <= len(counted[True]) / len(lengths[name]) <= 0.65


@pytest.mark.parametrize("name", [*ALL_PAIRS, *ALL_LABELS])
def test_every_row_fits_its_recipe(name, lengths):
    limit = MAX_LENGTH[name.split("/")[0]]
    longest = max(sum(total for _, total in row) for row in lengths[name])
    assert 0 < longest <= limit


@pytest.mark.parametrize("name", [*ALL_PAIRS, *TINY_LABELS])
def test_no_prompt_stands_twice_in_a_file(name):
    prompts = [question(row) for row in load(name)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("name", ALL_LABELS)
def test_no_labelled_answer_stands_twice(name):
    answers = [json.dumps([row["prompt"], row["completion"]]) for row in load(name)]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("files", [(PAIRS, LABELS), (TINY_PAIRS, TINY_LABELS)])
def test_no_held_out_prompt_is_trained(files):
    trained, held = (
        {question(row) for kind in files for row in load(kind[part])} for part in (0, 1)
    )
    assert not trained & held


def test_no_prompt_is_one_of_the_conversations():
    def first(row):
        return next(m["content"] for m in row["messages"] if m["role"] == "user")

    others = {first(row) for _, row in located(*data_files.FILES)}
    others |= {first(row) for _, row in located(*data_files.PROMPTS) if "messages" in row}
    others |= {row["prompt"] for _, row in located(*data_files.PROMPTS) if "prompt" in row}
    own = {asked(row)[-1]["content"] for _, row in located(*PAIRS, *LABELS)}
    assert not own & others


def test_no_row_resembles_another():
    """Nor one of the conversations; a labelled row may be a branch of a pair of its own part."""
    pairs = [(where, data_files.shingles(whole(row, "chosen"))) for where, row in located(*PAIRS)]
    known = {question(row) for _, row in located(*PAIRS)}
    labelled = [
        (where, data_files.shingles(whole(row, "completion")))
        for where, row in located(*LABELS)
        if question(row) not in known
    ]
    conversations = [
        (where, data_files.shingles(row))
        for where, row in located(*data_files.CONVERSATIONS, data_files.EVAL)
    ]
    own = [*pairs, *labelled]
    found = [
        f"{a} and {b}"
        for (a, left), (b, right) in [*combinations(own, 2), *product(own, conversations)]
        if len(left & right) > data_files.NEAR_DUPLICATE * len(left | right)
    ]
    assert not found, "\n".join(found)


def test_a_third_of_the_labelled_prompts_is_in_no_pair():
    for labels, pairs in zip(LABELS, PAIRS, strict=True):
        known = {question(row) for row in load(pairs)}
        own = [question(row) not in known for row in load(labels)]
        assert sum(own) * 3 >= len(own), labels


def test_pairs_are_of_every_kind():
    rows = load(PAIRS[0])
    kinds = {
        "a conversation before": sum(len(asked(row)) > 1 for row in rows),
        "turns after": sum(any(m["role"] == "user" for m in row["chosen"]) for row in rows),
        "calls": sum(any("tool_calls" in m for m in row["chosen"]) for row in rows),
        "calls only rejected": sum(
            any("tool_calls" in m for m in row["rejected"])
            and not any("tool_calls" in m for m in row["chosen"])
            for row in rows
        ),
        "no thoughts": sum(not thinks(row["chosen"]) for row in rows),
        "code": sum("```" in json.dumps(row["chosen"]) for row in rows),
    }
    least = {"calls": 10, "a conversation before": 10, "code": 10, "no thoughts": 5}
    assert all(count >= least.get(kind, 2) for kind, count in kinds.items()), kinds


@pytest.mark.parametrize("name", [*PAIRS, *LABELS])
def test_python_in_good_answers_does_what_it_says(name):
    checked = 0
    for where, row in located(name):
        if row.get("label", True):
            answer = row["chosen"] if "chosen" in row else row["completion"]
            for text in data_files.assistant_texts({"messages": answer}):
                checked += data_files.run_examples(text, where)
    assert checked or "labels" in name


@pytest.mark.parametrize("files", [TINY_PAIRS, TINY_LABELS])
def test_tiny_preferences_follow_one_rule_on_few_words(files):
    """Good answers are good by their words alone, the same ones for trained and held-out rows."""

    def texts(messages):
        return (messages[0]["content"], messages[0].get("thinking"))

    sides = []
    for name in files:
        good, bad = set(), set()
        for row in load(name):
            assert isinstance(row["prompt"], str) and len(row["prompt"].split()) <= 12
            for key, answer in branches(row).items():
                assert [m["role"] for m in answer] == ["assistant"]
                (good if key == "chosen" or row.get("label") else bad).update(texts(answer))
        assert not (good & bad) - {None}
        sides.append((good, bad))
    assert sides[0] == sides[1]


def test_readme_gives_the_mean_lengths(lengths):
    readme = (data_files.DATA / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([\w/]+\.jsonl)` \| ([\d.]+) \| ([\d.]+) \| (\d+) % \| (\d+) \|$", readme, re.M
    )
    written = {name: values for name, *values in rows}
    for name in ALL_PAIRS:
        counted = [(chosen[0], rejected[0]) for chosen, rejected in lengths[name]]
        means = [sum(side) / len(counted) for side in zip(*counted, strict=True)]
        longer = sum(a > b for a, b in counted) / len(counted)
        longest = max(sum(total for _, total in row) for row in lengths[name])
        expected = [f"{means[0]:.1f}", f"{means[1]:.1f}", f"{longer:.0%}"[:-1], str(longest)]
        assert written[name] == expected, name
