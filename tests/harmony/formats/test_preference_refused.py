"""Rows that are no pair of answers to one prompt: each is refused with its reason."""

import pytest
from pair_messages import ASKED, CHOSEN, REJECTED, TOOL, assistant, read, refusal, told, user

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
