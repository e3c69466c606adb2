"""A conversation that goes on, asked as its data was rendered."""

import pytest

from gptoss_tune.chat.talk import Talk
from gptoss_tune.error_hints import is_out_of_memory
from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.harmony.vocabulary import RETURN, load_vocabulary

ANSWER = (
    "<|channel|>analysis<|message|>Two and two.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 4 🙂.<|return|>"
)


def asked(answerer, talk, text):
    shown = []
    return talk.ask(text, shown.append), shown


def test_thoughts_of_earlier_turns_are_dropped_and_answers_stay(answerer, by_heart):
    by_heart(ANSWER)
    talk = Talk(answerer, Sampling(40, 0.0), "Be brief.")
    answer, shown = asked(answerer, talk, "2 + 2?")
    assert answer.ended == "stop"
    assert [(m.header.channel, m.text) for m in answer.messages] == [
        ("analysis", "Two and two."),
        ("final", "It is 4 🙂."),
    ]
    assert {(d.channel, d.message) for d in shown} == {("analysis", 0), ("final", 1)}
    by_heart("<|channel|>final<|message|>Yes.<|return|>")
    prompts = []
    render = answerer.render
    answerer.render = lambda conversation: prompts.append(render(conversation)) or prompts[-1]
    try:
        asked(answerer, talk, "Sure?")
    finally:
        del answerer.render
    text = load_vocabulary().encoding.decode(prompts[0])
    assert "Two and two" not in text and "It is 4 🙂.<|end|>" in text
    assert "# Instructions\n\nBe brief." in text and "Reasoning: low" in text
    assert text.endswith("<|start|>user<|message|>Sure?<|end|><|start|>assistant")
    row = {"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is 4 🙂.", "thinking": "Two and two."},
        {"role": "user", "content": "Sure?"},
    ]}  # fmt: skip
    assert answerer.prompt(row) == prompts[0], "as training reads and renders the same row"
    high = answerer.prompt({**row, "reasoning_effort": "high"})
    assert "Reasoning: high" in load_vocabulary().encoding.decode(high)


def test_an_answer_says_why_it_ended_and_a_question_without_one_is_taken_back(answerer, by_heart):
    talk = Talk(answerer, Sampling(3, 0.0))
    assert asked(answerer, talk, "Hi")[0].ended == "length"
    before = list(talk.said)
    by_heart("<|channel|>final<|message|>Half an answer that goes on")
    talk.sampling = Sampling(40, 0.0)

    def ctrl_c(delta):
        seen.append(delta.text)
        if len(seen) == 2:
            raise KeyboardInterrupt

    seen = []
    answer = talk.ask("Hi", ctrl_c)
    assert answer.ended == "interrupt" and answer.messages[0].text == "".join(seen) == "Half an"
    assert talk.said[-1] is answer.messages[0]
    kept = list(talk.said)
    answer = talk.ask("Again", seen.append, lambda: True)
    assert answer.ended == "interrupt" and answer.messages == []
    assert talk.said == kept != before


def test_an_answer_in_process_goes_on_where_it_was_cut(answerer, by_heart):
    talk, shown = Talk(answerer, Sampling(8, 0.0)), []
    by_heart("<|channel|>analysis<|message|>One 🙂 two three four five<|end|><|start|>assistant")
    assert talk.ask("Count.", shown.append).ended == "length"
    begun = len(shown)
    by_heart(" six<|end|><|start|>assistant<|channel|>final<|message|>Ten.<|return|>")
    talk.sampling = Sampling(20, 0.0)
    prompts, tokens = [], answerer._tokens
    answerer._tokens = lambda ids, *rest: prompts.append(list(ids)) or tokens(ids, *rest)
    try:
        answer = talk.go_on(shown.append)
    finally:
        del answerer._tokens
    assert prompts == [answer.stream.prompt + answer.stream.ids[:8]]
    assert [m.header.channel for m in answer.messages] == ["analysis", "final"]
    assert answer.messages[0].text.endswith(" six") and len(talk.turns) == 1
    assert "".join(d.text for d in shown[begun:]).endswith("Ten."), "only what is new is shown"
    assert talk.turns[0].answer is answer and answer.ended == "stop"
    assert sum(answer.stream.by_channel.values()) < answer.stream.tokens == len(answer.stream.ids)
    assert answer.stream.by_channel["final"] == 2
    with pytest.raises(DataError, match="no answer that was cut off"):
        talk.go_on(print)


def test_what_cannot_be_asked(answerer):
    with pytest.raises(DataError, match="the last message is the assistant's own"):
        answerer.prompt({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        ]})  # fmt: skip
    with pytest.raises(DataError, match=r"over the 131,072 of gpt-oss"):
        answerer.stream([1] * 131_000, Sampling(100))


def test_running_out_of_memory_says_what_to_do(answerer):
    def full(module, inputs, output):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 GB")

    handle = answerer._model.lm_head.register_forward_hook(full)
    try:
        with pytest.raises(MachineError, match=r"out of memory: .*9 GB.*--device cpu"):
            list(answerer.stream([RETURN], Sampling(1)))
    finally:
        handle.remove()
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shapes"))
