"""Data that teaches the wrong habit is told with counts and places; --strict fails on it."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.recipe import DataSection
from gptoss_tune.shipped import shipped

SENTENCE = "The harbour lies behind the long wall and nobody goes there when the wind is up "


def chat(number=0, answer=None, asked=None, system=None, thinking="Let me see."):
    answer = f"Answer number {number}." if answer is None else answer
    said = {"role": "assistant", "content": answer}
    messages = [
        {"role": "user", "content": f"Question {number}?" if asked is None else asked},
        said | ({"thinking": thinking} if thinking else {}),
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}


def warnings(rows, write_jsonl, vocabulary, **settings):
    data = DataSection.model_validate({"train": write_jsonl(rows), **settings})
    return data_statistics(data, vocabulary, seed=0).warnings()


@pytest.fixture
def command(tmp_path):
    def run(name, train, *options, **data):
        recipe = tmp_path / "r.yaml"
        whole = {
            "model": {"name_or_path": "base"},
            "data": {"train": train, **data},
            "train": {"output_dir": "run", "max_steps": 1},
        }
        recipe.write_text(yaml.safe_dump(whole))
        return CliRunner().invoke(app, [name, str(recipe), *options])

    return run


@pytest.mark.parametrize("name", ["check-data", "preview"])
def test_no_thoughts_at_medium_fail_under_strict_until_the_effort_is_low(
    name, command, write_jsonl
):
    path = write_jsonl([chat(n, thinking=None) for n in range(12)])
    told = command(name, path)
    assert told.exit_code == 0
    assert "12 rows of 12 without thoughts, trained at medium effort" in told.output
    assert "(first lines 1, 2, 3); set data.reasoning_effort=low" in told.output
    assert command(name, path, "--strict").exit_code == 2
    assert command(name, path, "--strict", reasoning_effort="low").exit_code == 0


def test_a_page_of_a_preview_fails_under_strict_too(command, write_jsonl, tmp_path):
    path = write_jsonl([chat(n, thinking=None) for n in range(3)])
    page = str(tmp_path / "p.html")
    failed = command("preview", path, "--strict", "--html", page)
    assert failed.exit_code == 2 and "without thoughts" in failed.output
    assert command("preview", path, "--html", page).exit_code == 0


def test_one_of_two_sources_without_thoughts_is_told_and_can_be_low(command, write_jsonl):
    plain = write_jsonl([chat(n, thinking=None) for n in range(3)], "plain.jsonl")
    deep = write_jsonl([chat(n + 9) for n in range(9)], "deep.jsonl")
    told = command("check-data", [plain, deep], "--strict")
    assert told.exit_code == 2
    assert f"{plain}: 3 rows of 3 without thoughts" in told.output
    assert "write reasoning_effort: low beside its path" in told.output
    low = {"path": plain, "reasoning_effort": "low"}
    followed = command("check-data", [low, deep], "--strict", "--json")
    assert followed.exit_code == 0
    assert json.loads(followed.stdout)["splits"]["train"]["efforts"] == {"low": 3, "medium": 9}


def test_thoughts_in_the_text_are_told_as_such_alone(command, write_jsonl):
    rows = [{"question": f"Q{n}?", "answer": f"<think>So {n}.</think>It is {n}."} for n in range(4)]
    path = write_jsonl(rows)
    told = command("check-data", path, "--strict")
    assert told.exit_code == 2 and "without thoughts" not in told.output
    assert "4 times: an answer spells thoughts in its text" in told.output
    assert command("preview", path, "--strict", thinking_tags="split").exit_code == 0


TRACES = {
    "ChatML": "<|im_start|>assistant\nHi<|im_end|>",
    "Llama 2": "[INST] Hi [/INST] Hello",
    "Llama 3": "<|start_header_id|>user<|end_header_id|>",
    "Gemma": "<start_of_turn>model\nHi",
    "Alpaca": "Below is a task.\n\n### Instruction:\nSay hi\n\n### Response:\nHi",
    "DeepSeek": "<｜User｜>Hi<｜Assistant｜>",
}


@pytest.mark.parametrize("name", TRACES)
def test_another_models_template_in_a_text_is_told(name, write_jsonl, vocabulary):
    rows = [chat(1, asked=TRACES[name]), chat(2, answer=TRACES[name]), {"text": TRACES[name]}]
    told = [line for line in warnings(rows, write_jsonl, vocabulary) if "another model's" in line]
    assert sum("times: a message spells" in line for line in told) == 1
    assert sum(": a text spells" in line for line in told) == 1


def test_texts_that_only_look_like_a_template_are_not_told(write_jsonl, vocabulary):
    said = "a[INSTANCE] <b>bold</b> ## Response: x\n  ### Instruction: y [inst] <end>"
    rows = [chat(1, answer=said, asked=said), {"text": said}]
    assert warnings(rows, write_jsonl, vocabulary) == []


def test_a_page_that_a_tool_brought_may_hold_anything(write_jsonl, vocabulary):
    call = {"function": {"name": "get", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Read it."},
        {"role": "assistant", "thinking": "I call.", "tool_calls": [call]},
        {"role": "tool", "content": "[INST] Hi [/INST]"},
        {"role": "assistant", "content": "Done."},
    ]
    rows = [{"tools": [{"name": "get"}], "messages": messages}]
    assert warnings(rows, write_jsonl, vocabulary) == []


def test_a_blank_answer_and_a_system_prompt_said_twice_are_told(write_jsonl, vocabulary):
    system = "You answer questions about the harbour."
    rows = [chat(1, answer=" \n"), chat(2, asked=f"{system}\n\nWhen?", system=system)]
    blank, twice = warnings(rows, write_jsonl, vocabulary)
    assert "an answer is blank" in blank and blank.endswith(":1)")
    assert "the first message of the user repeats the system prompt" in twice
    assert warnings([chat(1, system="Hi", asked="Hi you")], write_jsonl, vocabulary) == []


def test_one_answer_to_every_question_is_told(write_jsonl, vocabulary):
    same = [chat(n, answer="I cannot help with that.") for n in range(12)]
    (told,) = warnings(same, write_jsonl, vocabulary)
    assert "12 of 12 rows have the same answer" in told and "(first lines 1, 2, 3)" in told
    others = [chat(n + 20) for n in range(2)]
    assert warnings([*same[:-2], *others], write_jsonl, vocabulary) == []
    assert warnings(same[:5], write_jsonl, vocabulary) == [], "a few rows say nothing"


def cut_at(characters, number):
    text = f"{number} {SENTENCE * 9}"
    while not text[characters - 1].isalpha():
        text = f"x{text}"
    return text[:characters]


def test_answers_that_are_cut_at_one_length_are_told(write_jsonl, vocabulary):
    rows = [chat(n, answer=cut_at(400, n)) for n in range(6)]
    rows += [chat(n, answer=f"{SENTENCE}{'and so on ' * n}.") for n in range(6, 30)]
    (told,) = warnings(rows, write_jsonl, vocabulary)
    assert "6 of 30 rows have an answer that stops in the middle of a sentence at 400 char" in told
    ended = [chat(n, answer=f"{cut_at(399, n)}.") for n in range(6)]
    assert warnings([*ended, *rows[6:]], write_jsonl, vocabulary) == []
    spread = [chat(n, answer=cut_at(400 + n, n)) for n in range(6)]
    assert warnings([*spread, *rows[6:]], write_jsonl, vocabulary) == []


def test_answers_that_are_cut_at_one_number_of_tokens_are_told(write_jsonl, vocabulary):
    rows = []
    for number in range(20):
        ids = vocabulary.encode(f"{number * 37 + 11} is what I {'n' * number} say: {SENTENCE * 9}")
        rows.append(chat(number, answer=vocabulary.decode(ids[:100])))
    told = [line for line in warnings(rows, write_jsonl, vocabulary) if "at 100 tokens" in line]
    assert len(told) == 1 and "rows have an answer that stops in the middle" in told[0]


def test_what_the_recipe_cuts_is_not_told_as_cut(write_jsonl, vocabulary):
    rows = [chat(n, asked="Same?", answer=f"{n} {SENTENCE * 9}") for n in range(20)]
    told = warnings(rows, write_jsonl, vocabulary, max_length=120, too_long="truncate")
    assert [line for line in told if "middle of a sentence" in line] == []


def test_training_tells_the_same_once(write_jsonl, vocabulary):
    rows = [chat(n, answer="Same.", thinking=None) for n in range(12)]
    data = DataSection.model_validate({"train": write_jsonl(rows)})
    told: list[str] = []
    load_dataset(data, split="train", vocabulary=vocabulary, tell=told.append)
    assert told == data_statistics(data, vocabulary, seed=0).splits["train"].findings
    assert ["without thoughts" in line for line in told] == [True, False]


@pytest.mark.parametrize("folder", ["conversations", "tiny"])
def test_the_shipped_data_raise_no_alarm(folder, vocabulary):
    for path in sorted((shipped("data") / folder).glob("*.jsonl")):
        if "pairs" in path.name or "labels" in path.name:
            continue
        data = DataSection.model_validate({"train": str(path)})
        assert data_statistics(data, vocabulary, seed=0).splits["train"].findings == []
