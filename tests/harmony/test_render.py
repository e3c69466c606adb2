"""The context a turn is trained in, and which of its tokens are trained."""

import numpy as np
import pytest
from openai_harmony import Conversation, Message, RenderConversationConfig, Role

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.vocabulary import END, RETURN

THREE_TURNS = {
    "messages": [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "one", "thinking": "think1"},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "two", "thinking": "think2"},
        {"role": "user", "content": "3?"},
        {"role": "assistant", "content": "three", "thinking": "think3"},
    ]
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "F."}}]
CALLING = {
    "tools": TOOLS,
    "messages": [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "thinking": "plan",
            "content": "preamble",
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "r1"},
        {"role": "assistant", "content": "done", "thinking": "read"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "ok", "thinking": "again"},
    ],
}


def conversation_part(example, vocabulary):
    """The text after the system and developer messages."""
    text = vocabulary.decode(example.input_ids.tolist())
    return text[text.index("<|start|>user") :]


def trained(example, vocabulary):
    return vocabulary.decode(example.input_ids[example.loss_weights > 0].tolist())


def test_each_turn_is_trained_in_the_context_it_is_served_in(render, vocabulary):
    texts = [conversation_part(example, vocabulary) for example in render(THREE_TURNS)]
    start, first = "<|start|>user<|message|>", "<|start|>assistant<|channel|>"
    assert texts == [
        f"{start}1?<|end|>{first}analysis<|message|>think1<|end|>"
        f"{first}final<|message|>one<|return|>",
        f"{start}1?<|end|>{first}final<|message|>one<|end|>"
        f"{start}2?<|end|>{first}analysis<|message|>think2<|end|>"
        f"{first}final<|message|>two<|return|>",
        f"{start}1?<|end|>{first}final<|message|>one<|end|>"
        f"{start}2?<|end|>{first}final<|message|>two<|end|>"
        f"{start}3?<|end|>{first}analysis<|message|>think3<|end|>"
        f"{first}final<|message|>three<|return|>",
    ]


def test_each_turn_trains_its_own_messages_alone(render, vocabulary):
    texts = [trained(example, vocabulary) for example in render(THREE_TURNS)]
    assert texts == [
        "<|channel|>analysis<|message|>think1<|end|>"
        "<|start|>assistant<|channel|>final<|message|>one<|return|>",
        "<|channel|>analysis<|message|>think2<|end|>"
        "<|start|>assistant<|channel|>final<|message|>two<|return|>",
        "<|channel|>analysis<|message|>think3<|end|>"
        "<|start|>assistant<|channel|>final<|message|>three<|return|>",
    ]


def test_the_library_s_training_render_loses_the_thoughts_of_the_trained_turn(render, vocabulary):
    """Why we drop ourselves: the library's default drops the analysis that is to be trained."""
    messages = [
        Message.from_role_and_content(Role.USER, "1?"),
        Message.from_role_and_content(Role.ASSISTANT, "think1").with_channel("analysis"),
        Message.from_role_and_content(Role.ASSISTANT, "one").with_channel("final"),
    ]
    conversation = Conversation.from_messages(messages)
    trap = vocabulary.encoding.render_conversation_for_training(conversation)
    assert "think1" not in vocabulary.decode(trap)
    kept = vocabulary.encoding.render_conversation_for_training(
        conversation, RenderConversationConfig(auto_drop_analysis=False)
    )
    row = {"messages": THREE_TURNS["messages"][:2]}
    (example,) = render(row)
    assert "think1" in vocabulary.decode(example.input_ids.tolist())
    assert example.input_ids.tolist()[-len(kept) :] == kept


def test_the_library_with_dropping_keeps_thoughts_after_the_first_answer(render, vocabulary):
    """... and drops only what stands before the FIRST answer; the second turn's would stay."""
    messages = []
    for number in "123":
        messages += [
            Message.from_role_and_content(Role.USER, f"{number}?"),
            Message.from_role_and_content(Role.ASSISTANT, f"think{number}").with_channel(
                "analysis"
            ),
            Message.from_role_and_content(Role.ASSISTANT, number).with_channel("final"),
        ]
    trap = vocabulary.decode(
        vocabulary.encoding.render_conversation_for_training(Conversation.from_messages(messages))
    )
    assert "think1" not in trap and "think2" in trap
    last = vocabulary.decode(render(THREE_TURNS)[-1].input_ids.tolist())
    assert "think1" not in last and "think2" not in last and "think3" in last


def test_thoughts_stay_through_the_calls_of_their_own_turn(render, vocabulary):
    first, second = render(CALLING)
    text = conversation_part(first, vocabulary)
    assert text.count("<|channel|>analysis") == 2
    assert text.endswith("<|channel|>final<|message|>done<|return|>")
    assert conversation_part(second, vocabulary) == (
        "<|start|>user<|message|>go<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>preamble<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}"
        "<|call|><|start|>functions.f to=assistant<|channel|>commentary<|message|>r1<|end|>"
        "<|start|>assistant<|channel|>final<|message|>done<|end|>"
        "<|start|>user<|message|>more<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>again<|end|>"
        "<|start|>assistant<|channel|>final<|message|>ok<|return|>"
    )


def test_what_the_server_writes_is_not_trained_and_all_the_model_writes_is(render, vocabulary):
    first = render(CALLING)[0]
    # The server writes <|start|>assistant after the user and after a result; the model itself
    # writes it after the <|end|> of its thought or preamble.
    assert trained(first, vocabulary) == (
        "<|channel|>analysis<|message|>plan<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>preamble<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}"
        "<|call|>"
        "<|channel|>analysis<|message|>read<|end|>"
        "<|start|>assistant<|channel|>final<|message|>done<|return|>"
    )


def test_a_call_that_opens_a_generation_trains_its_recipient(render, vocabulary):
    row = {
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        ],
    }
    (example,) = render(row)
    assert trained(example, vocabulary) == (
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
    )


def test_turns_without_thoughts_share_a_row_and_only_the_last_trains_its_return(render, vocabulary):
    row = {
        "messages": [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "2?"},
            {"role": "assistant", "content": "two", "thinking": "think2"},
            {"role": "user", "content": "3?"},
            {"role": "assistant", "content": "three"},
        ]
    }
    first, second = render(row)
    assert trained(first, vocabulary) == (
        "<|channel|>final<|message|>one"
        "<|channel|>analysis<|message|>think2<|end|>"
        "<|start|>assistant<|channel|>final<|message|>two<|return|>"
    )
    assert trained(second, vocabulary) == "<|channel|>final<|message|>three<|return|>"
    assert "think2" not in vocabulary.decode(second.input_ids.tolist())
    ends = np.flatnonzero(first.input_ids == END)
    assert not first.loss_weights[ends[:-1]].any()  # no answer is taught to end in <|end|>
    assert np.count_nonzero(first.input_ids == RETURN) == 1


def test_turns_last_trains_the_last_turn_alone(render, vocabulary):
    (example,) = render(THREE_TURNS, turns="last")
    assert example.input_ids.tolist() == render(THREE_TURNS)[-1].input_ids.tolist()
    assert trained(example, vocabulary) == trained(render(THREE_TURNS)[-1], vocabulary)


def test_thoughts_of_built_in_tools_go_with_the_turn(render, vocabulary):
    row = {
        "builtin_tools": ["python"],
        "messages": [
            {"role": "user", "content": "1?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "function": {"name": "python", "arguments": {"code": "1+1"}}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "again?"},
            {"role": "assistant", "content": "two!"},
        ],
    }
    first, second = (conversation_part(example, vocabulary) for example in render(row))
    assert "to=python<|channel|>analysis code<|message|>1+1<|call|>" in first
    assert "python" not in second
    assert second.startswith(
        "<|start|>user<|message|>1?<|end|><|start|>assistant<|channel|>final<|message|>two<|end|>"
    )


def test_channel_weights_of_the_recipe_the_row_and_the_message_multiply(render, vocabulary):
    row = {
        "weight": 0.5,
        "channel_weights": {"final": 4},
        "messages": [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "one", "thinking": "t", "weight": 3},
        ],
    }
    weights = (("analysis", 0.1), ("commentary", 1.0), ("final", 7.0))
    (example,) = render(row, channel_weights=weights)
    by_channel = {
        number: {
            round(weight, 4) for weight in example.loss_weights[example.channels == number].tolist()
        }
        for number in (0, 1, 3)
    }
    # The server's <|start|>assistant has channel 1 and weight 0; the inner one has the final's.
    assert by_channel == {0: {0.0}, 1: {0.0, 0.15}, 3: {6.0}}
    assert np.count_nonzero((example.channels == 1) & (example.loss_weights == 0)) == 2


def test_a_channel_of_weight_zero_is_context(render, vocabulary):
    weights = (("analysis", 0.0), ("commentary", 1.0), ("final", 1.0))
    (example,) = render({"messages": THREE_TURNS["messages"][:2]}, channel_weights=weights)
    assert trained(example, vocabulary) == (
        "<|start|>assistant<|channel|>final<|message|>one<|return|>"
    )


def test_a_message_of_weight_zero_is_context(render, vocabulary):
    row = {
        "messages": [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "wrong", "weight": 0},
            {"role": "user", "content": "2?"},
            {"role": "assistant", "content": "right", "weight": 1},
        ]
    }
    (example,) = render(row)
    assert trained(example, vocabulary) == "<|channel|>final<|message|>right<|return|>"
    assert "wrong" in vocabulary.decode(example.input_ids.tolist())


def test_a_row_with_nothing_to_train_gives_no_sample(render):
    row = {"weight": 0, "messages": THREE_TURNS["messages"]}
    assert render(row) == []


@pytest.mark.parametrize("row", [THREE_TURNS, CALLING])
def test_columns_fit_together(row, render, vocabulary):
    for example in render(row):
        assert example.input_ids.dtype == np.int32
        assert example.loss_weights.dtype == np.float32
        assert example.channels.dtype == np.int8
        length = len(example.input_ids)
        assert len(example.loss_weights) == len(example.channels) == length
        assert not example.loss_weights[example.channels == 0].any()
        assert example.loss_weights[0] == 0  # nothing predicts the first token of a document
        assert [span.start for span in example.spans[1:]] == [s.end for s in example.spans[:-1]]
        assert example.spans[0].start == 0 and example.spans[-1].end == length
        assert example.source == "row:1"


BAD_ORDERS = {
    "last message has role 'user'": [{"role": "user", "content": "x"}],
    "two answers of the assistant in a row": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ],
    "messages is an empty list; a row needs at least one question": [],
    "has neither content nor tool_calls (content is null)": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None},
    ],
    "answers a call with name null": [
        {"role": "user", "content": "x"},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ],
    "the call 1 of 'functions.f' has no result": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "system", "content": "s"},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ],
}


@pytest.mark.parametrize("message", BAD_ORDERS)
def test_an_order_that_no_server_produces_is_refused(message, render):
    with pytest.raises(DataError) as caught:
        render({"messages": BAD_ORDERS[message]})
    assert str(caught.value).startswith("row:1: ")
    assert message in str(caught.value)
