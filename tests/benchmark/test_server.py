"""Chat servers on loopback: what is sent, what is read, and those that do not parse harmony."""

import json
import threading

import pytest

from gptoss_tune.benchmark.subjects.answer import ChatAnswer
from gptoss_tune.benchmark.subjects.server import ChatServer, Served, served_model
from gptoss_tune.benchmark.subjects.subject import Asking, UnreadableServer
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.evaluate.format_checks import problems

GREEDY = Asking(max_new_tokens=64)
SUMS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(8)]


@pytest.fixture
def served(renderer):
    """Return a function from a server to the subject that asks it."""

    def make(server, key=None, wait=None, **options):
        api = ChatServer(server.url, "tuned", key, **({"wait": wait} if wait else {}))
        return Served("served", api, renderer, **options)

    return make


def answers(subject, questions, asking=GREEDY):
    return dict(subject.ask(questions, asking))


def unhealthy(reply, question):
    return problems(reply.answer, question, None)


def test_answers_are_read_with_their_channels(served, questions, good_server):
    asked = questions(*SUMS)
    found = answers(served(good_server), asked)
    assert sorted(found) == list(range(8))
    assert [found[n].given.final for n in range(8)] == [str(2 * n) for n in range(8)]
    one = found[3]
    assert (
        one.given.analysis == "Add them." and one.ended == "return" and not unhealthy(one, asked[3])
    )
    assert one.tokens == 12 and one.analysis_tokens == 3
    assert [m["channel"] for m in one.messages] == ["analysis", "final"]


def test_the_request_says_how_it_is_asked(served, questions, good_server):
    subject = served(good_server, key="secret")
    asked = questions({"prompt": "What is 1 + 1?", "reasoning_effort": "high"})
    answers(subject, asked, Asking(99, temperature=0.7, top_p=0.9, seed=5))
    (body,), (headers,) = good_server.bodies, good_server.headers
    assert body["messages"] == [{"role": "user", "content": "What is 1 + 1?"}]
    assert body["reasoning_effort"] == "high"
    assert body["chat_template_kwargs"] == {"reasoning_effort": "high"}
    limits = {key: body[key] for key in ("max_tokens", "temperature", "top_p", "seed", "model")}
    expected = {"max_tokens": 99, "temperature": 0.7, "top_p": 0.9, "seed": 5, "model": "tuned"}
    assert limits == expected
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == "Bearer secret"


def test_no_text_to_go_on_with_is_ever_sent(served, questions, good_server):
    subject = served(good_server)
    answers(subject, questions(*SUMS))
    assert subject.identity["address"].endswith("/v1/chat/completions")
    for body in good_server.bodies:
        assert "prompt" not in body and body["messages"][-1]["role"] == "user"


def test_a_call_a_cut_off_and_a_silent_answer(served, questions, chat_server):
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    said = [
        {"content": None, "reasoning": "Ask.", "tool_calls": [{"function": function}]},
        {"content": "", "reasoning": "On and on", "finish_reason": "length"},
        {"content": "", "reasoning": "Hm."},
    ]
    server = chat_server(lambda body, number: dict(said[number]))
    tool = {"type": "function", "function": {"name": "get_weather"}}
    rows = [{"prompt": f"Weather {n}?", "tools": [tool], "answer": "x"} for n in range(3)]
    asked = questions(*rows)
    found = answers(served(server, concurrency=1), asked)
    (call,) = found[0].given.calls
    assert (call.name, call.arguments) == ("get_weather", '{"city": "Rome"}')
    assert (
        found[0].given.final is None
        and found[0].ended == "call"
        and not unhealthy(found[0], asked[0])
    )
    assert found[1].ended == "length" and found[1].given.final is None
    assert any("no end" in line for line in unhealthy(found[1], asked[1]))
    assert found[2].given.final == "" and "the final answer is empty" in unhealthy(
        found[2], asked[2]
    )


GLUED = [
    "analysisWe need to add them.assistantfinal{}",
    "finalThe sum is {}",
    "final{}",
    "<|channel|>final<|message|>{}<|return|>",
    "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant<|channel|>final<|message|>{}",
    'commentary to=functions.add json{{"a": {}}}',
    "We need to add.assistantfinal{}",
]


@pytest.mark.parametrize("text", GLUED)
def test_a_server_that_does_not_parse_harmony_is_refused(served, questions, chat_server, text):
    """The right number stands in every one of these; none may be graded."""
    server = chat_server(lambda body, number: {"content": text.format(42)})
    found = []
    with pytest.raises(UnreadableServer, match="does not parse harmony") as error:
        found += served(server, concurrency=1).ask(questions(*SUMS), GREEDY)
    assert found == [] and "not graded" in str(error.value)
    assert len(server.bodies) < len(SUMS), "it is given up after a few"


@pytest.mark.parametrize(
    "text",
    ["42", "The analysis: 42", "analysis is the study of limits", "Finally, 42", "finally 42",
     "final: 42", "Final42", "final answer: 42", "commentary, in short: 42", "finalists: 3",
     "finals", "finality"],
)  # fmt: skip
def test_an_ordinary_answer_without_a_thought_is_not_taken_for_glued(text):
    answer = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    assert not ChatAnswer(answer).is_glued


def test_where_the_server_parses_a_glued_answer_is_the_models_fault(served, questions, chat_server):
    """One answer leaks, the others have their thought apart: it is graded, and not healthy."""

    def says(body, number):
        if "2 + 2" in body["messages"][-1]["content"]:
            return {"content": "analysisAdd.assistantfinal4"}
        return {"content": "1", "reasoning_content": "Hm."}

    asked = questions(*SUMS)
    found = answers(served(chat_server(says), concurrency=1), asked)
    assert len(found) == len(SUMS) and found[2].given.final == "analysisAdd.assistantfinal4"
    assert any(
        "chain of thought in the final channel" in line for line in unhealthy(found[2], asked[2])
    )


def test_a_field_that_the_server_refuses_is_left_out_and_told(served, questions, chat_server):
    def says(body, number):
        if "chat_template_kwargs" in body:
            return 422, {"detail": "Unexpected fields: {'chat_template_kwargs'}"}
        return {"content": "1", "reasoning_content": "Hm."}

    server = chat_server(says)
    subject = served(server, concurrency=1)
    assert len(answers(subject, questions(*SUMS))) == len(SUMS)
    assert len(server.bodies) == len(SUMS) + 1
    assert subject.notes == ("served takes no chat_template_kwargs",)


def test_a_server_that_loads_is_waited_for(served, questions, chat_server):
    waits = []

    def says(body, number):
        if number < 2:
            return 503, {"error": "loading"}
        return {"content": "1", "reasoning_content": "Hm."}

    subject = served(chat_server(says), concurrency=1, wait=waits.append)
    assert len(answers(subject, questions(*SUMS[:2]))) == 2 and len(waits) == 2


@pytest.mark.parametrize(
    "said, expected",
    [
        ((200, {"choices": []}), "expected choices"),
        ((200, {"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}), "a text"),
        ((200, {"choices": [{"message": {"content": "x"}, "finish_reason": "?"}]}), "one of stop"),
        ((200, {"error": {"message": "no such model"}}), 'it says: "no such model"'),
        ((200, ["x"]), "expected choices"),
        ((404, {"error": {"message": "unknown"}}), "#NAME behind the address"),
        ((401, {}), "--api-key-env"),
        ((500, {"message": "boom"}), "HTTP 500"),
    ],
)
def test_odd_answers_end_in_one_sentence(served, questions, chat_server, said, expected):
    server = chat_server(lambda body, number: said)
    with pytest.raises(MachineError) as error:
        answers(served(server), questions(*SUMS))
    assert expected in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_server_that_is_not_there(served, questions, chat_server):
    server = chat_server(lambda body, number: {})
    server.close()
    with pytest.raises(MachineError, match="chat/completions"):
        answers(served(server), questions(*SUMS))


def test_several_questions_are_asked_at_a_time(served, questions, chat_server):
    """Four requests meet at a barrier, which one after the other would never pass."""
    together = threading.Barrier(4)

    def says(body, number):
        together.wait(timeout=20)
        return {"content": "1", "reasoning_content": "Hm."}

    assert len(answers(served(chat_server(says), concurrency=4), questions(*SUMS))) == 8


def test_another_model_under_the_same_name_is_another_subject(served, chat_server):
    first = chat_server(lambda body, number: {"content": "Earth", "reasoning": "a"})
    state = {"text": "Earth"}
    second = chat_server(lambda body, number: {"content": state["text"], "reasoning": "a"})
    one = served(second).identity
    assert served(second).identity == one
    state["text"] = "The Earth"
    assert served(second).identity != one and served(first).identity != one


def test_prompts_of_another_length_are_told(served, questions, chat_server):
    asked = questions(*SUMS[:2])
    usage = {"completion_tokens": 5, "prompt_tokens": len(asked[0].prompt_ids)}

    def says(body, number):
        more = number * 3  # the second prompt is rendered longer
        counted = usage | {"prompt_tokens": usage["prompt_tokens"] + more}
        return {"content": "1", "reasoning": "a", "usage": counted}

    subject = served(chat_server(says), concurrency=1)
    answers(subject, asked)
    assert "rendered 1 of 2 prompts to another number of tokens" in subject.notes[0]


def test_the_only_model_is_found_and_several_are_listed(chat_server):
    one = chat_server(json.dumps, models=("openai/gpt-oss-20b",))
    assert served_model(one.url, None) == "openai/gpt-oss-20b"
    two = chat_server(json.dumps, models=("a", "b"))
    with pytest.raises(MachineError, match="serves a, b; name the one"):
        served_model(two.url, None)


def test_what_is_no_address_or_key():
    with pytest.raises(CheckpointError, match="--subjects is 'localhost'"):
        ChatServer("localhost", "m")
    with pytest.raises(CheckpointError, match="line feeds"):
        ChatServer("http://localhost", "m", "a\nb")
