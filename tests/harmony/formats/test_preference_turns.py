"""Preference rows of several turns: what they share is the prompt; answers may call tools."""

import pytest
from pair_messages import (
    ASKED,
    CALL,
    CHOSEN,
    HH,
    HISTORY,
    ONE_TURN,
    OTHER,
    REJECTED,
    TOOL,
    assistant,
    read,
    told,
    user,
)

from gptoss_tune.harmony.render import Renderer, RenderSettings

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
