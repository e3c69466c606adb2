"""Every rule of harmony health has an answer that trips it and a like one that does not."""

import pytest
from openai_harmony import HarmonyError, Role

from gptoss_tune.evaluate.format_checks import problems, repeated_period
from gptoss_tune.evaluate.parse import read_answer
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.harmony.conversation import Conversation

THOUGHT = (
    "The user asks for the capital of France. That is a question of geography, and the answer is "
    "well known: it lies on the Seine. I will answer in one sentence and name the city only."
)
ANALYSIS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>{}<|return|>"
CALL = "<|channel|>commentary to={} <|constrain|>json<|message|>{}<|call|>"
DRAFT = (
    "Paris is the capital of France and lies on the Seine, where it has been for two thousand years"
)


def judged(vocabulary, text, limit=None):
    ids = vocabulary.encoding.encode(text, allowed_special="all")
    recipients = frozenset({"functions.get_weather", "python"})
    question = Question("f:1", "low", (1,), (), recipients, None, Conversation("f:1"))
    return read_answer(ids, vocabulary.encoding), problems(
        read_answer(ids, vocabulary.encoding), question, limit
    )


HEALTHY = {
    "an answer": FINAL.format("Paris."),
    "a thought and an answer": ANALYSIS.format(THOUGHT) + FINAL.format("Paris."),
    "a call": ANALYSIS.format("Look.") + CALL.format("functions.get_weather", '{"city": "Oslo"}'),
    "a call whose recipient stands before the channel": (
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
    ),
    "a call of a built-in tool in the analysis channel": (
        "<|channel|>analysis to=python code<|message|>print(2**64)<|call|>"
    ),
    "a preamble before a call": (
        "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"
        + CALL.format("functions.get_weather", "{}")
    ),
    "a draft of the answer in a longer thought": ANALYSIS.format(
        f"{THOUGHT} Draft: {DRAFT}. That is short enough, and it is right; no need for dates, nor "
        "for the number of inhabitants, which was not asked for."
    )
    + FINAL.format(f"{DRAFT}."),
    "a thought quoted in part": ANALYSIS.format("Add them.") + FINAL.format("Add them: 4."),
    "words that thoughts hold too": FINAL.format("The user guide says: let me think of a number."),
    "a friendly beginning": FINAL.format("Okay, let me show you. So, first of all ..."),
    "an html tag": FINAL.format("Use <b>bold</b> and the assistant for final checks."),
    "a table's rule": FINAL.format("| a | b |\n|" + "---|" * 8 + "\n| 1 | 2 |"),
    "a list that counts": FINAL.format(", ".join(str(n) for n in range(200))),
    "a short refrain": FINAL.format("row, row, row your boat " * 3),
}

BROKEN = {
    "no end": ("<|channel|>final<|message|>Paris", ["no end: neither"]),
    "no end at all": ("", ["no end: neither"]),
    "text without a message": ("Paris is it.", ["text outside of any message", "no end"]),
    "a header cut off by the limit": (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>fin",
        ["no end: neither"],
    ),
    "an end inside a header": ("<|channel|>final<|return|>", ["inside a header", "channel None"]),
    "an unknown channel": (
        "<|channel|>answer<|message|>4<|return|>",
        ["unknown channel 'answer'", "<|return|> in channel 'answer'"],
    ),
    "no channel": ("<|message|>4<|return|>", ["a message without a channel", "in channel None"]),
    "ends while thinking": (
        "<|channel|>analysis<|message|>hm<|return|>",
        ["<|return|> in channel 'analysis'"],
    ),
    "another end": (
        "<|channel|>final<|message|>4<|endoftext|>",
        ["ends in <|endoftext|> instead"],
    ),
    "an empty answer": (FINAL.format(" \n"), ["the final answer is empty"]),
    "another role": (
        "<|channel|>final<|message|>4<|end|><|start|>user<|message|>And 3?<|end|>",
        ["goes on as the role 'user'", "goes on after its final", "no end"],
    ),
    "two answers": (
        "<|channel|>final<|message|>4<|end|><|start|>assistant" + FINAL.format("5"),
        ["goes on after its final answer"],
    ),
    "a control token inside": (
        "<|channel|>analysis<|message|>hm<|channel|>final<|message|>4<|return|>",
        ["<|channel|> inside", "<|message|> inside", "<|return|> in channel 'analysis'"],
    ),
    "runaway by repetition": (
        "<|channel|>analysis<|message|>" + "Wait, let me check that again. " * 12,
        ["runaway analysis: the same", "no end"],
    ),
    "a loop of one token": (
        "<|channel|>final<|message|>" + " no" * 80 + "<|return|>",
        ["runaway text: the same 1 token repeats"],
    ),
    "markers of thinking in the answer": (
        FINAL.format("<think>Add them.</think>4"),
        ["final channel: the marker '<think>'"],
    ),
    "channel names run into the answer": (
        FINAL.format("analysisAdd them.assistantfinal4"),
        ["final channel: the marker 'analysis'"],
    ),
    "thinking aloud in the answer": (
        FINAL.format("The user asks for a capital, so I should say Paris."),
        ["final channel: it begins 'The user asks'"],
    ),
    "thinking aloud after a sigh": (
        FINAL.format("Okay, so the user wants a capital."),
        ["final channel: it begins 'Okay, so the user'"],
    ),
    "the thought repeated": (
        ANALYSIS.format(THOUGHT) + FINAL.format(f"{THOUGHT} Paris."),
        ["final channel: it begins", "words repeated"],
    ),
    "an unknown tool": (
        CALL.format("functions.get_time", "{}"),
        ["unknown tool 'functions.get_time' (declared: functions.get_weather, python)"],
    ),
    "arguments that are no JSON": (
        CALL.format("functions.get_weather", "{'city': 'Oslo'}"),
        ["are not JSON"],
    ),
    "arguments that are no object": (
        CALL.format("functions.get_weather", '"Oslo"'),
        ["are JSON, but no object"],
    ),
    "a call in the wrong channel": (
        "<|channel|>final to=functions.get_weather<|message|>{}<|call|>",
        ["a call in channel 'final'"],
    ),
    "a call that ends as an answer does": (
        "<|channel|>commentary to=functions.get_weather<|message|>{}<|return|>",
        ["<|return|> in channel 'commentary'", "does not end in <|call|>"],
    ),
    "a call to nobody": (
        "<|channel|>commentary<|message|>{}<|call|>",
        ["<|call|> without a recipient"],
    ),
    "a call without waiting": (
        "<|channel|>commentary to=functions.get_weather<|message|>{}<|end|><|start|>assistant"
        + FINAL.format("Snow."),
        ["instead of waiting"],
    ),
}


@pytest.mark.parametrize("text", HEALTHY.values(), ids=HEALTHY)
def test_healthy_answers_have_no_problem(vocabulary, text):
    answer, found = judged(vocabulary, text)
    assert found == []
    # The oracle reads the same messages from the same tokens.
    ids = list(answer.token_ids)
    messages = vocabulary.encoding.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
    assert [(m.channel, m.recipient, m.content[0].text) for m in messages] == [
        (said.channel, said.recipient, said.content) for said in answer.messages
    ]


@pytest.mark.parametrize("text, expected", BROKEN.values(), ids=BROKEN)
def test_each_problem_is_named(vocabulary, text, expected):
    _, found = judged(vocabulary, text)
    for part in expected:
        assert any(part in line for line in found), found
    assert len(found) == len(expected), found


def test_a_long_thought_is_runaway_only_over_its_limit(vocabulary):
    text = HEALTHY["a thought and an answer"]
    answer, _ = judged(vocabulary, text)
    assert judged(vocabulary, text, limit=answer.analysis_tokens)[1] == []
    _, (problem,) = judged(vocabulary, text, limit=answer.analysis_tokens - 1)
    assert problem.startswith(f"runaway analysis: {answer.analysis_tokens} tokens, the limit is")


def test_tokens_that_no_parser_takes_are_kept_as_text(vocabulary):
    text = "<|channel|>final<|message|>4<|end|>lost words"
    ids = vocabulary.encoding.encode(text, allowed_special="all")
    with pytest.raises(HarmonyError):
        vocabulary.encoding.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
    answer = read_answer(ids, vocabulary.encoding)
    assert [(s.channel, s.content) for s in answer.messages] == [
        ("final", "4"),
        (None, "lost words"),
    ]
    assert any("is not harmony" in fault for fault in answer.faults)


def test_tokens_are_counted_by_channel(vocabulary):
    text = ANALYSIS.format("one two three") + FINAL.format("four")
    answer, _ = judged(vocabulary, text)
    assert answer.analysis_tokens == 3
    assert answer.final == "four" and answer.ended == "return"
    assert [said.token_ids for said in answer.messages] == [
        tuple(vocabulary.encode("one two three")),
        tuple(vocabulary.encode("four")),
    ]


@pytest.mark.parametrize("period", [1, 2, 7, 20, 64])
def test_loops_are_found_wherever_they_are_and_not_before_they_are_long(period):
    loop = list(range(100, 100 + period))
    turns = max(-(-60 // period), 4)
    assert repeated_period([1, 2, 3, *loop * turns, 4, 5]) == period
    assert repeated_period([1, 2, 3, *(loop * turns)[: max(60, 4 * period) - 1], 4]) is None
    assert repeated_period(list(range(5000))) is None
    assert repeated_period([]) is None
