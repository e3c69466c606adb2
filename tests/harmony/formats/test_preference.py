"""Preference rows of every shape: the same prompt twice, and two answers."""

import pytest
from pair_messages import (
    ASKED,
    CALL,
    CHOSEN,
    ONE_TURN,
    OTHER,
    REJECTED,
    TOOL,
    assistant,
    read,
    refusal,
    told,
    user,
)


@pytest.mark.parametrize("name", ONE_TURN)
def test_every_shape_is_a_prompt_and_two_answers(name):
    pair = read(ONE_TURN[name])
    assert told(pair.chosen) == [("user", "2+2?", 0.0), ("final", "4", 1.0)]
    assert told(pair.rejected) == [("user", "2+2?", 0.0), ("final", "5", 1.0)]
    assert pair.prompt_length == 1 and not pair.tie
    assert not pair.notes.warnings
    assert not (pair.equal or pair.differs_in_length_only or pair.lost_analysis)


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
