"""Preference rows of every shape: the same prompt twice, two answers, and what is refused."""

import json

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.formats.preference import read_preference
from gptoss_tune.harmony.reading import ReadSettings
from gptoss_tune.harmony.render import Renderer, RenderSettings


def user(text, **fields):
    return {"role": "user", "content": text, **fields}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def told(conversation):
    """Channel or role, text and weight of every message."""
    return [
        (header.channel or header.role, text, weight)
        for header, text, weight in conversation.messages
    ]


def read(row, **reading):
    return read_preference(row, "d.jsonl:3", reading=ReadSettings(**reading))


def refusal(row, **reading):
    with pytest.raises(DataError) as caught:
        read(row, **reading)
    assert str(caught.value).startswith("d.jsonl:3: ")
    return str(caught.value)


ASKED = [user("2+2?")]
CHOSEN, REJECTED = assistant("4"), assistant("5")
HISTORY = [user("Hi"), assistant("Hello"), *ASKED]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OTHER = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 2}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "F.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant:"

# The prompt is "2+2?", the answers are 4 and 5.
ONE_TURN = {
    "texts": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "messages": {"prompt": ASKED, "chosen": [CHOSEN], "rejected": [REJECTED]},
    "one message each": {"prompt": ASKED[0], "chosen": CHOSEN, "rejected": REJECTED},
    "a text and a message": {"prompt": "2+2?", "chosen": "4", "rejected": REJECTED},
    "null columns": {
        **{"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        **dict.fromkeys(["tools", "system", "thinking", "messages", "completion", "label"]),
    },
    "whole conversations": {"chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]},
    "one whole conversation": {"prompt": "2+2?", "chosen": [*ASKED, CHOSEN], "rejected": "5"},
    "UltraFeedback": {
        "prompt": "2+2?",
        "prompt_id": "ab12",
        "chosen": [*ASKED, CHOSEN],
        "rejected": [*ASKED, REJECTED],
        "messages": [*ASKED, CHOSEN],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    },
    "UltraFeedback without prompt": {
        "chosen": [*ASKED, CHOSEN],
        "rejected": [*ASKED, REJECTED],
        "messages": [*ASKED, CHOSEN],
    },
    "HH": {
        "chosen": "\n\nHuman: 2+2?\n\nAssistant: 4",
        "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5",
    },
    "HH with a prompt": {
        "prompt": "\n\nHuman: 2+2?\n\nAssistant:",
        "chosen": " 4",
        "rejected": " 5",
    },
    "a table's JSON text": {
        "prompt": json.dumps(ASKED),
        "chosen": json.dumps([CHOSEN]),
        "rejected": json.dumps(REJECTED),
    },
    "a table's whole conversations": {
        "chosen": json.dumps([*ASKED, CHOSEN]),
        "rejected": json.dumps([*ASKED, REJECTED]),
    },
    "HelpSteer3": {
        "domain": "general",
        "language": "english",
        "context": ASKED,
        "response1": "4",
        "response2": "5",
        "overall_preference": -2,
        "individual_preference": [{"score": -2, "reasoning": "r", "feedback1": "f"}],
    },
    "HelpSteer3, the second is better": {
        "context": ASKED,
        "response1": "5",
        "response2": "4",
        "overall_preference": 3,
    },
    "HelpSteer3 of a table": {
        "context": json.dumps(ASKED),
        "response1": "5",
        "response2": "4",
        "overall_preference": 1.0,
    },
    "OpenAI": {
        "input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [CHOSEN],
        "non_preferred_output": [REJECTED],
    },
    "OpenAI of a table": {
        "input": json.dumps({"messages": ASKED}),
        "preferred_output": json.dumps([CHOSEN]),
        "non_preferred_output": json.dumps([REJECTED]),
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "ShareGPT with texts": {
        "conversations": json.dumps([{"from": "human", "value": "2+2?"}]),
        "chosen": "4",
        "rejected": "5",
    },
    "messages beside the answers": {"messages": ASKED, "chosen": "4", "rejected": "5"},
    "harmony's own and text": {
        "prompt": "2+2?",
        "chosen": [{"role": "assistant", "channel": "final", "content": "4"}],
        "rejected": "5",
    },
    "harmony's own prompt": {
        "prompt": [{"role": "developer", "content": [{"type": "developer_content"}]}, *ASKED],
        "chosen": "4",
        "rejected": "5",
    },
}


@pytest.mark.parametrize("name", ONE_TURN)
def test_every_shape_is_a_prompt_and_two_answers(name):
    pair = read(ONE_TURN[name])
    assert told(pair.chosen) == [("user", "2+2?", 0.0), ("final", "4", 1.0)]
    assert told(pair.rejected) == [("user", "2+2?", 0.0), ("final", "5", 1.0)]
    assert pair.prompt_length == 1 and not pair.tie
    assert not pair.notes.warnings
    assert not (pair.equal or pair.differs_in_length_only or pair.lost_analysis)


# The prompt is that of HISTORY.
SEVERAL_TURNS = {
    "messages": {"prompt": HISTORY, "chosen": "4", "rejected": [REJECTED]},
    "whole conversations": {"chosen": [*HISTORY, CHOSEN], "rejected": [*HISTORY, REJECTED]},
    "UltraFeedback, the first question": {
        "prompt": "Hi",
        "chosen": [*HISTORY, CHOSEN],
        "rejected": [*HISTORY, REJECTED],
    },
    "UltraFeedback, the last question": {
        "prompt": "2+2? ",
        "chosen": [*HISTORY, CHOSEN],
        "rejected": [*HISTORY, REJECTED],
    },
    "a repeated list": {
        "prompt": HISTORY[:1],
        "chosen": [*HISTORY, CHOSEN],
        "rejected": [*HISTORY, REJECTED],
    },
    "HH": {"chosen": f"{HH} 4", "rejected": f"{HH} 5\n"},
    "HH with a prompt": {"prompt": HH, "chosen": "4", "rejected": "5"},
    "HH that repeats its prompt": {"prompt": HH, "chosen": f"{HH} 4", "rejected": "5"},
    "OpenAI": {
        "input": {"messages": HISTORY},
        "preferred_output": [CHOSEN],
        "non_preferred_output": [REJECTED],
    },
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "2+2?"},
        ],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "HelpSteer3": {
        "context": HISTORY,
        "response1": "4",
        "response2": "5",
        "overall_preference": -1,
    },
    "weights in the prompt": {
        "prompt": [*HISTORY[:1], assistant("Hello", weight=1), *ASKED],
        "chosen": "4",
        "rejected": "5",
    },
    "different weights in what is shared": {
        "chosen": [HISTORY[0], assistant("Hello", weight=0.5), *ASKED, CHOSEN],
        "rejected": [*HISTORY, REJECTED],
    },
}


@pytest.mark.parametrize("name", SEVERAL_TURNS)
def test_several_turns_are_the_prompt_and_none_of_them_is_trained(name):
    pair = read(SEVERAL_TURNS[name])
    before = [("user", "Hi", 0.0), ("final", "Hello", 0.0), ("user", "2+2?", 0.0)]
    assert told(pair.chosen) == [*before, ("final", "4", 1.0)]
    assert told(pair.rejected) == [*before, ("final", "5", 1.0)]
    assert pair.prompt_length == 3


@pytest.mark.parametrize("name", [*ONE_TURN, *SEVERAL_TURNS])
def test_both_branches_begin_with_the_same_ids_and_end_as_served(name, vocabulary):
    pair = read({**ONE_TURN, **SEVERAL_TURNS}[name])
    renderer = Renderer(vocabulary, RenderSettings(turns="last"))
    (chosen,), (rejected,) = renderer.render(pair.chosen), renderer.render(pair.rejected)
    first = int(chosen.loss_weights.argmax())
    assert chosen.input_ids[:first].tolist() == rejected.input_ids[:first].tolist()
    for example, text in ((chosen, "4"), (rejected, "5")):
        trained = vocabulary.decode(example.input_ids[example.loss_weights > 0].tolist())
        assert trained == f"<|channel|>final<|message|>{text}<|return|>"


@pytest.mark.parametrize("rejected", [[assistant("no")], [assistant(None, tool_calls=[OTHER])]])
@pytest.mark.parametrize("place", ["row", "input", "system message"])
def test_either_branch_may_call_a_tool_and_end_in_the_call(rejected, place):
    chosen = [assistant("Looking.", thinking="t", tool_calls=[CALL])]
    answers = {"preferred_output": chosen, "non_preferred_output": rejected}
    row = {"prompt": "go", "chosen": chosen, "rejected": rejected, "tools": [TOOL]}
    if place == "input":
        row = {"input": {"messages": [user("go")], "tools": [TOOL]}, **answers}
    elif place == "system message":
        del row["tools"]
        row["prompt"] = [{"role": "system", "content": "s", "tools": [TOOL]}, user("go")]
    pair = read(row)
    assert told(pair.chosen) == [
        ("user", "go", 0.0),
        ("analysis", "t", 1.0),
        ("commentary", "Looking.", 1.0),
        ("commentary", '{"a": 1}', 1.0),
    ]
    assert [weight for *_, weight in told(pair.rejected)] == [0.0, 1.0]
    assert pair.chosen.namespaces == pair.rejected.namespaces != {}
    assert not pair.lost_analysis and not pair.differs_in_length_only
    if place == "row":
        assert read({**row, "chosen": rejected, "rejected": chosen}).lost_analysis


def test_an_answer_may_have_several_turns_and_results_and_users_are_never_trained():
    chosen = [
        assistant(None, tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        assistant("A"),
        user("more"),
        assistant("B"),
    ]
    pair = read({"prompt": "go", "tools": [TOOL], "chosen": chosen, "rejected": "C"})
    assert told(pair.chosen) == [
        ("user", "go", 0.0),
        ("commentary", '{"a": 1}', 1.0),
        ("commentary", "r", 0.0),
        ("final", "A", 1.0),
        ("user", "more", 0.0),
        ("final", "B", 1.0),
    ]
    assert told(pair.rejected) == [("user", "go", 0.0), ("final", "C", 1.0)]


def test_the_prompt_may_end_in_a_tool_s_result_also_in_the_middle_of_parallel_calls():
    calls = [CALL, {**OTHER, "id": "2"}]
    results = [{"role": "tool", "tool_call_id": id_, "content": f"r{id_}"} for id_ in "12"]
    shared = [user("go"), assistant(None, thinking="t", tool_calls=calls), *results]
    pair = read(
        {
            "tools": [TOOL],
            "chosen": [*shared, assistant("A")],
            "rejected": [*shared, assistant("B")],
        }
    )
    assert pair.prompt_length == 6
    assert told(pair.chosen)[:2] == [("user", "go", 0.0), ("analysis", "t", 0.0)]
    assert told(pair.chosen)[5:] == [("commentary", "r2", 0.0), ("final", "A", 1.0)]
    again = read({"tools": [TOOL], "prompt": shared, "chosen": "A", "rejected": "B"})
    assert told(again.chosen) == told(pair.chosen) and again.prompt_length == 6
    third = [user("go"), assistant(None, thinking="t", tool_calls=[CALL]), results[0]]
    pair = read(
        {"tools": [TOOL], "chosen": [*shared, assistant("A")], "rejected": [*third, assistant("A")]}
    )
    assert pair.prompt_length == 4
    assert [weight for *_, weight in told(pair.chosen)] == [0, 0, 0, 0, 1, 0, 1]


def test_a_thought_that_both_answers_begin_with_is_part_of_the_answers():
    pair = read(
        {
            "chosen": [*ASKED, assistant("4", thinking="sum")],
            "rejected": [*ASKED, assistant("5", thinking="sum")],
        }
    )
    assert pair.prompt_length == 1
    assert told(pair.rejected) == [
        ("user", "2+2?", 0.0),
        ("analysis", "sum", 1.0),
        ("final", "5", 1.0),
    ]


THOUGHTS = {
    "tags": ({"chosen": "<think>c</think>4", "rejected": "<think>r</think>5"}, "c", "r"),
    "columns": ({"chosen_thinking": "c", "rejected_thinking": "r"}, "c", "r"),
    "one column": ({"chosen_thinking": "c"}, "c", None),
    "reasoning_content": ({"rejected_reasoning_content": "r"}, None, "r"),
    "one for both": ({"thinking": "t"}, "t", "t"),
    "blank": ({"thinking": "", "chosen_thinking": None}, None, None),
    "in the messages": ({"chosen": [assistant("4", reasoning="c")]}, "c", None),
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts_stand_before_their_own_answer(name):
    columns, *expected = THOUGHTS[name]
    pair = read(
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", **columns}, thinking_tags="split"
    )
    for conversation, thought in zip((pair.chosen, pair.rejected), expected, strict=True):
        before = [] if thought is None else [("analysis", thought, 1.0)]
        assert told(conversation)[1:-1] == before
    assert pair.lost_analysis is (expected[0] is None and expected[1] is not None)
    assert not pair.notes.warnings


def test_a_thought_of_the_prompt_is_nobody_s_lost_analysis():
    shared = [user("Hi"), assistant("Hello", thinking="t"), *ASKED]
    pair = read({"prompt": shared, "chosen": "4", "rejected": "5"})
    assert not pair.lost_analysis
    assert read({"prompt": shared, "chosen": "4", "rejected": assistant("5", thinking="x")})


def test_what_stands_beside_a_pair_is_in_both_conversations():
    pair = read(
        {
            **{"prompt": "2+2?", "chosen": "4", "rejected": "5", "system": "Be brief."},
            **{"reasoning_effort": "low", "weight": 0.5, "builtin_tools": ["python"]},
        }
    )
    for conversation in (pair.chosen, pair.rejected):
        assert conversation.instructions == "Be brief."
        assert conversation.effort == "low" and conversation.weight == 0.5
        assert conversation.builtin_tools == ("python",)


@pytest.mark.parametrize("system", [None, "Row."])
def test_instructions_of_a_prompt_are_not_lost_where_the_answers_repeat_it_without_them(system):
    rules = {"role": "system", "content": "Be brief."}
    both = {"chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]}
    expected = "Be brief." if system is None else "Row.\n\nBe brief."
    for row in (
        {"prompt": [rules, *ASKED], **both},
        {"prompt": [rules, *ASKED], "chosen": "4", "rejected": both["rejected"]},
        {"prompt": ASKED, **{key: [rules, *turns] for key, turns in both.items()}},
    ):
        pair = read({**row, "system": system})
        assert pair.chosen.instructions == pair.rejected.instructions == expected
        assert pair.prompt_length == 1
    ruled = {key: [{**rules, "content": "Be long."}, *turns] for key, turns in both.items()}
    assert "different instructions (system messages)" in refusal(
        {"prompt": [rules, *ASKED], **ruled}
    )


def test_roles_of_the_recipe_and_spellings_of_other_sets_tell_who_answers():
    row = {
        "conversations": [{"from": "Klant", "value": "2+2?"}],
        "chosen": {"from": "Ons", "value": "4"},
        "rejected": [{"from": "Ons", "value": "5"}],
    }
    pair = read(row, roles=(("Klant", "user"), ("Ons", "assistant")))
    assert told(pair.chosen) == [("user", "2+2?", 0.0), ("final", "4", 1.0)]
    assert "is 'Klant'; expected one of" in refusal(row)


def test_a_prompt_that_begins_with_the_assistant_is_not_there_twice():
    greeted = [assistant("Hello"), *ASKED]
    for row in (
        {"prompt": greeted, "chosen": [*greeted, CHOSEN], "rejected": [*greeted, REJECTED]},
        {"prompt": greeted, "chosen": "4", "rejected": [*greeted, REJECTED]},
        {"prompt": greeted, "chosen": "4", "rejected": "5"},
    ):
        pair = read(row)
        assert [text for _, text, _ in told(pair.chosen)] == ["Hello", "2+2?", "4"]
        assert [text for _, text, _ in told(pair.rejected)] == ["Hello", "2+2?", "5"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "equal", "length"),
    [
        ("4", "4", True, False),
        ("4.", "4. Or more.", False, True),
        ("4. Or more.", "4.", False, True),
        ("4", "5", False, False),
        (assistant("4", thinking="t"), "4 or so", False, True),
        (assistant("4", thinking="t"), "4", False, False),
        (assistant("4", weight=0), "4", True, False),
        ([CHOSEN], [CHOSEN, user("sure?"), assistant("Yes")], False, True),
        ([CHOSEN, user("sure?"), assistant("Yes")], [CHOSEN, user("so"), CHOSEN], False, False),
        (assistant(None, tool_calls=[CALL]), "", False, None),
        (assistant(None, tool_calls=[CALL]), assistant(None, tool_calls=[OTHER]), False, False),
        (assistant("x", tool_calls=[CALL]), "xy", False, False),
    ],
)
def test_equal_answers_and_those_that_differ_in_length_alone_are_told(
    chosen, rejected, equal, length
):
    row = {"prompt": "2+2?", "tools": [TOOL], "chosen": chosen, "rejected": rejected}
    if length is None:
        assert "rejected is empty; add the answer" in refusal(row)
        return
    pair = read(row)
    assert (pair.equal, pair.differs_in_length_only) == (equal, length)


def test_a_tie_is_no_error_and_says_so():
    row = {"context": "2+2?", "response1": "4", "response2": "5", "overall_preference": 0}
    assert read(row).tie
    for value in (None, 4, 0.5, "-2", True, [1]):
        assert "overall_preference is" in refusal({**row, "overall_preference": value})


def test_one_branch_that_is_the_whole_beginning_of_the_other_is_told_once():
    row = {
        "chosen": [*ASKED, CHOSEN],
        "rejected": [*ASKED, CHOSEN, user("sure?"), assistant("No")],
        "zzzzqq": 1,
    }
    pair = read(row)
    assert told(pair.chosen) == [("user", "2+2?", 0.0), ("final", "4", 1.0)]
    assert len(pair.rejected.messages) == 4 and pair.prompt_length == 1
    assert sorted(pair.notes.warnings.values()) == [1, 1]
    assert any("the whole beginning of the other" in said for said in pair.notes.warnings)


def test_messages_that_are_neither_prompt_nor_answer_are_told():
    for column in ("messages", "conversations"):
        row = {"prompt": "2+2?", column: [user("else")], "chosen": "4", "rejected": "5"}
        (warning,) = read(row).notes.warnings
        assert f"the key '{column}' of a pair is neither its prompt nor an answer" in warning
        assert read({**row, "prompt": ASKED, column: [*ASKED, assistant("4")]}).notes.warnings
        assert not read(
            {**row, "prompt": ASKED, "chosen": CHOSEN, column: [*ASKED, CHOSEN]}
        ).notes.warnings


PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
REFUSED = [
    ({**PAIR, "chosen": ""}, "chosen is empty; add the answer, or remove the row"),
    ({**PAIR, "rejected": " \n"}, "rejected is empty"),
    ({**PAIR, "rejected": []}, "rejected is an empty list; expected text or a list of messages"),
    ({**PAIR, "chosen": 3}, "chosen is 3; expected text or a list of messages"),
    ({**PAIR, "chosen": [3]}, "chosen[0] is a number; expected a message"),
    ({**PAIR, "chosen": [assistant("")]}, "chosen[0] of the assistant has neither content nor"),
    ({**PAIR, "chosen": assistant("4", weight=0.5)}, "a message of chosen has weight 0.5; an ans"),
    ({**PAIR, "rejected": [assistant("5", weight=2)]}, "write 0 or 1, or scale the sample"),
    ({**PAIR, "channel_weights": {"final": 2}}, "the row has channel_weights"),
    ({**PAIR, "channel_weights": '{"final": 2}'}, "set in the recipe (method.analysis)"),
    ({**PAIR, "prompt": [*ASKED, CHOSEN]}, "prompt ends in a message of the assistant"),
    (
        {**PAIR, "prompt": None, "messages": [*ASKED, assistant("4")]},
        "messages ends in a message of the assistant",
    ),
    ({**PAIR, "prompt": [{"role": "system", "content": "s"}]}, "no messages"),
    ({**PAIR, "prompt": None}, "has chosen and rejected and no prompt that they answer to; add"),
    (
        {**PAIR, "prompt": None, "instruction": "2+2?"},
        '{prompt: "{{ instruction }}", chosen: "{{ chosen }}", rejected: "{{ rejected }}"}',
    ),
    (
        {**PAIR, "prompt": None, "messages": ASKED, "conversations": [user("x")]},
        "has conversations and messages beside its answers, and no prompt; keep one",
    ),
    ({"chosen": [CHOSEN], "rejected": [REJECTED]}, "no prompt that they answer to"),
    (
        {"chosen": [user("a"), CHOSEN], "rejected": [user("b"), CHOSEN]},
        "chosen and rejected share no prompt, since they differ from their first message on",
    ),
    (
        {"chosen": [*ASKED, user("a"), CHOSEN], "rejected": [*ASKED, REJECTED]},
        "after the 1 messages that chosen and rejected share, chosen goes on with a message of ro",
    ),
    (
        {
            "chosen": [{"role": "system", "content": "s"}, *ASKED, CHOSEN],
            "rejected": [*ASKED, CHOSEN],
        },
        "have different instructions (system messages); a pair answers the same prompt twice",
    ),
    (
        {
            "chosen": [{"role": "system", "content": "s", "tools": [TOOL]}, *ASKED, CHOSEN],
            "rejected": [{"role": "system", "content": "s"}, *ASKED, REJECTED],
        },
        "chosen and rejected have different tools;",
    ),
    (
        {"prompt": "3+3?", "chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]},
        "and as whole conversations they do not begin with prompt; make them answers alone, or",
    ),
    (
        {
            **PAIR,
            **{k: [{"role": "system", "content": "s"}, CHOSEN] for k in ("chosen", "rejected")},
        },
        "the answers do not begin with the assistant's message",
    ),
    (
        {"prompt": "3+3?", "chosen": [*ASKED, CHOSEN], "rejected": "5"},
        "chosen begins with a message of role 'user' and does not repeat the prompt",
    ),
    (
        {**PAIR, "thinking": "t", "chosen_thinking": "c"},
        "has thinking and chosen_thinking; keep one",
    ),
    (
        {"input": [1], "preferred_output": "4", "non_preferred_output": "5"},
        "input is a list; expected",
    ),
    ({"input": {}, "preferred_output": "4", "non_preferred_output": "5"}, "input has no messages"),
    (
        {
            "input": {"messages": ASKED, "tools": [TOOL]},
            **{"preferred_output": "4", "non_preferred_output": "5", "tools": []},
        },
        "'tools' stands in input and beside it, and they differ",
    ),
    (
        {"input": {"messages": ASKED}, "preferred_output": 1, "non_preferred_output": "5"},
        "preferred_output is 1; expected",
    ),
    ({"response1": "a", "response2": "b", "overall_preference": 1}, "the row has no context"),
    ({"prompt": "a"}, "a prompt without answers; add both"),
    ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is missing or null; add it"),
    ({"messages": [*ASKED, CHOSEN]}, "it holds one answer; add both, or set method.name to sft"),
    (
        {"prompt": "a", "completion": "b"},
        "it holds one answer; add both, or set method.name to sft",
    ),
    (
        {"prompt": "a", "completion": "b", "label": True},
        "an answer with a label; add both, or set method.name to kto",
    ),
    ({"question": "a", "good": "b", "bad": "c"}, "(got 'question', 'good', 'bad'); name their col"),
    ({}, "(got none)"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=[reason[:50] for _, reason in REFUSED])
def test_a_row_that_is_no_pair_of_answers_is_refused_with_its_reason(row, reason):
    assert reason in refusal(row)


@pytest.mark.parametrize(
    "text", ["[]", "[1]", "{}", '{"role": "engineer"}', '[{"role": "user"}', '[{"content": "a"}]']
)
def test_json_that_is_no_message_is_an_answer_s_text(text):
    pair = read({"prompt": text, "chosen": text, "rejected": f"{text} "})
    assert told(pair.chosen) == [("user", text, 0.0), ("final", text, 1.0)]
