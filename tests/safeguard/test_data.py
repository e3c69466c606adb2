"""The shipped rows for policy classifiers: balanced, readable, true to their policy's rules."""

import json
import re
from collections import Counter, defaultdict
from itertools import combinations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import DataSection, load_recipe
from gptoss_tune.shipped import shipped

FILES = {
    name: [
        json.loads(line)
        for line in (shipped("data") / name).read_text(encoding="utf-8").splitlines()
    ]
    for name in (
        *("safeguard/train.jsonl", "safeguard/eval.jsonl"),
        *("tiny/policies.jsonl", "tiny/policies_eval.jsonl"),
    )
}
OURS = [*FILES["safeguard/train.jsonl"], *FILES["safeguard/eval.jsonl"]]
ALL = [(name, row) for name, rows in FILES.items() for row in rows]


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary()


def policy_text(row):
    (text,) = [m["content"] for m in row["messages"] if m["role"] == "system"]
    return text


def content(row):
    (text,) = [m["content"] for m in row["messages"] if m["role"] == "user"]
    return text


def answer(row):
    return row["messages"][-1]


def is_violation(row):
    return read_grader(row, "x:1").is_positive(read_grader(row, "x:1").label)


@pytest.mark.parametrize("name", FILES)
def test_every_answer_has_the_label_that_its_row_names(name):
    for number, row in enumerate(FILES[name], start=1):
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["system", "user", "assistant"], (name, number)
        assert set(row) <= {"policy", "grader", "answer", "messages", "reasoning_effort"}
        verdict = read_grader(row, f"{name}:{number}").judge(Given(answer(row)["content"]), 0)
        assert verdict.passed, (name, number, verdict.note)
        assert all(text == text.strip() for text in answer(row).values()), (name, number)


@pytest.mark.parametrize("name", FILES)
def test_policies_are_balanced_and_each_is_one_text(name):
    counts = Counter((row["policy"], is_violation(row)) for row in FILES[name])
    assert len(set(counts.values())) == 1, counts
    texts = defaultdict(set)
    for row in FILES[name]:
        texts[row["policy"]].add(policy_text(row))
    assert all(len(found) == 1 for found in texts.values())
    assert len(texts) == (4 if "safeguard" in name else 2)


def test_there_are_enough_rows_of_each_policy():
    for name, least in (("safeguard/train.jsonl", 30), ("safeguard/eval.jsonl", 10)):
        counts = Counter(row["policy"] for row in FILES[name])
        assert min(counts.values()) >= least, counts


def test_a_thought_names_a_rule_of_its_policy_that_decides_as_the_label_does():
    for row in OURS:
        rules = set(re.findall(r"\b[A-Z]{2}[01]\.[a-e]\b", policy_text(row)))
        named = re.findall(r"\b[A-Z]{2}[01](?:\.[a-e])?\b", answer(row)["thinking"])
        label = "1" if is_violation(row) else "0"
        whole = [rule for rule in named if "." in rule]
        assert set(whole) <= rules, (row["policy"], content(row))
        said = answer(row)["content"]
        if said.startswith("{"):
            found = json.loads(said)["policy_category"]
            assert (found in rules) if label == "1" else (found is None)
            assert found is None or found in whole
        if label == "1":
            assert any(rule[2] == "1" for rule in whole), content(row)
        else:
            harmless = any(rule[2] == "0" for rule in whole)
            assert harmless or re.search(r"not(hing| asked| met)|No rule", answer(row)["thinking"])


def test_the_same_message_gets_another_label_under_another_policy():
    found = defaultdict(set)
    for row in OURS:
        found[content(row)].add((row["policy"], is_violation(row)))
    several = [labels for labels in found.values() if len(labels) > 1]
    assert len(several) == 16
    assert sum(len({label for _, label in labels}) == 2 for labels in several) == 10


def words(text):
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[n : n + 5]) for n in range(len(found) - 4)}


@pytest.mark.parametrize("folder", ["safeguard/{}.jsonl", "tiny/policies{}.jsonl"])
def test_no_held_out_message_is_trained(folder):
    names = ("train", "eval") if "safeguard" in folder else ("", "_eval")
    trained, held = (FILES[folder.format(name)] for name in names)
    assert not {content(row) for row in trained} & {content(row) for row in held}


def test_no_two_messages_of_a_policy_are_nearly_the_same():
    for policy in {row["policy"] for row in OURS}:
        texts = [content(row) for row in OURS if row["policy"] == policy]
        assert len(texts) == len(set(texts))
        for one, two in combinations(map(words, texts), 2):
            assert len(one & two) <= 0.25 * len(one | two) or not one | two


def test_people_and_places_are_invented():
    for row in OURS:
        text = content(row)
        for domain in re.findall(r"[\w-]+\.(\w{3,})\b(?=/|\s|$|[,.?)])", text):
            assert domain in ("example", "com", "org", "net") or not domain.islower(), text
        for host in re.findall(r"@([\w.-]+\w)", text):
            assert re.search(r"(^|\.)example(\.(com|org|net))?$", host), text
        for number in re.findall(r"\b555-\d{4}\b", text):
            assert number.startswith("555-01"), text


def test_policies_have_the_length_that_the_release_advises(vocabulary):
    for text in {policy_text(row) for row in OURS}:
        tokens = len(vocabulary.encode(text))
        assert 300 <= tokens <= 600, tokens
        for head in ("## INSTRUCTIONS", "## DEFINITIONS", "## EXAMPLES"):
            assert head in text


def test_the_policy_is_rendered_as_a_served_model_gets_it(vocabulary):
    """The reference is the chat template, whose system message becomes the developer's."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    source = (shipped("data") / "tiny_checkpoint" / "chat_template.jinja").read_text("utf-8")
    template = environment.from_string(source)
    renderer = Renderer(vocabulary, RenderSettings(reasoning_effort="low"))
    for name, row in ALL:
        asked = {**row, "messages": row["messages"][:-1]}
        prompt = renderer.render_prompt(read_chat(asked, name, complete=False))
        served = template.render(
            messages=asked["messages"],
            reasoning_effort="low",
            conversation_start_date="2025-06-28",
            add_generation_prompt=True,
        )
        assert vocabulary.decode(prompt) == served
        assert f"<|start|>developer<|message|># Instructions\n\n{policy_text(row)}" in served
        assert "Reasoning: low" in served
        (example,) = renderer.render(read_chat(row, name))
        assert example.input_ids[: len(prompt)].tolist() == prompt


def test_check_data_has_nothing_to_say_of_them(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("gpt-oss-safeguard-20b/classifier", "tiny/safeguard"):
        data = load_recipe(name).data
        assert isinstance(data, DataSection)
        found = data_statistics(data, vocabulary, seed=0)
        assert found.warnings() == [], name
