"""Whole episodes as token ids: what the model sees, what is trained of it, and its places."""

import numpy as np
import openai_harmony as oh
import pytest

from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.vocabulary import CALL, END, RETURN

THOUGHT = "<|channel|>analysis<|message|>Ask the price.<|end|>"
CALLED = (
    "<|start|>assistant to=functions.price<|channel|>commentary <|constrain|>json<|message|>"
    '{"item": "pear"}<|call|>'
)
FINAL = "<|channel|>final<|message|>3<|return|>"
RESULT = "<|start|>functions.price to=assistant<|channel|>commentary<|message|>3<|end|>"


def ids_of(vocabulary, text):
    return vocabulary.encoding.encode(text, allowed_special="all")


def library_prompt(vocabulary, messages, *, python=False):
    """Return openai-harmony's own rendering of a conversation that an assistant is to go on."""
    tools = oh.ToolDescription.new(
        "price",
        "The price of a fruit.",
        {
            "type": "object",
            "properties": {"item": {"type": "string"}},
            "required": ["item"],
        },
    )
    system = (
        oh.SystemContent.new()
        .with_reasoning_effort(oh.ReasoningEffort.LOW)
        .with_conversation_start_date("2025-06-28")
    )
    if python:
        system = system.with_python_tool()
    head = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    if not python:
        developer = oh.DeveloperContent.new().with_function_tools([tools])
        head.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    conversation = oh.Conversation.from_messages([*head, *messages])
    return vocabulary.encoding.render_conversation_for_completion(conversation, oh.Role.ASSISTANT)


def user(text):
    return oh.Message.from_role_and_content(oh.Role.USER, text)


def assistant(channel, text, recipient=None, kind=None):
    said = oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)
    if recipient is not None:
        said = said.with_recipient(recipient)
    return said if kind is None else said.with_content_type(kind)


def result(name, text, channel="commentary"):
    author = oh.Author.new(oh.Role.TOOL, name)
    said = oh.Message.from_author_and_content(author, text)
    return said.with_channel(channel).with_recipient("assistant")


QUESTION = user("What does a pear cost?")


def test_a_call_its_result_and_the_answer(vocabulary, play, row):
    episode, sampler = play(row, THOUGHT + CALLED, FINAL)
    first, second = (requests[0].prompt for requests in sampler.requests)

    # What the model is asked with is the library's own rendering, before and after the call.
    assert list(first) == library_prompt(vocabulary, [QUESTION])
    called = assistant("commentary", '{"item": "pear"}', "functions.price", "<|constrain|>json")
    played = [QUESTION, assistant("analysis", "Ask the price."), called]
    played.append(result("functions.price", "3"))
    assert list(second) == library_prompt(vocabulary, played)
    # It is the ids that were drawn, and those of the tool behind them.
    drawn, said = ids_of(vocabulary, THOUGHT + CALLED), ids_of(vocabulary, FINAL)
    told = ids_of(vocabulary, RESULT + "<|start|>assistant")
    assert list(second) == [*first, *drawn, *told]

    (sample,) = episode.samples
    assert sample.input_ids.tolist() == [*second, *said]
    prompt = len(first)
    expected = [0] * prompt + [1] * len(drawn) + [0] * len(told) + [1] * len(said)
    assert sample.sampled.tolist() == expected
    assert (sample.logps[~sample.sampled] == 0).all()
    assert sample.logps[prompt : prompt + 2].tolist() == [-0.125, -0.25]
    assert sample.logps[len(second)] == -0.125
    thought = len(ids_of(vocabulary, THOUGHT))
    channels = [0] * prompt + [1] * thought + [2] * (len(drawn) - thought) + [0] * len(told)
    assert sample.channels.tolist() == [*channels, *[3] * len(said)]

    assert episode.outcome.ended == "answer"
    assert episode.outcome.final == "3"
    assert episode.outcome.given.analysis == "Ask the price."
    assert [(u.call.name, u.result, u.mistake) for u in episode.outcome.uses] == [
        ("price", "3", None)
    ]
    assert episode.outcome.tokens == len(drawn) + len(said)
    assert not episode.outcome.faults
    assert (episode.version, episode.cut_off) == (7, False)
    assert [(m["role"], m["channel"], m["content"]) for m in episode.messages] == [
        ("user", None, "What does a pear cost?"),
        ("assistant", "analysis", "Ask the price."),
        ("assistant", "commentary", '{"item": "pear"}'),
        ("tool", "commentary", "3"),
        ("assistant", "final", "3"),
    ]


def test_experts_are_those_of_the_turn_that_drew_or_prefilled_a_token(play, row):
    episode, sampler = play(row, THOUGHT + CALLED, FINAL)
    (sample,) = episode.samples
    n = len(sample.input_ids)
    first, second = (len(requests[0].prompt) for requests in sampler.requests)
    drawn = int(sample.sampled[:second].sum())
    assert sample.choices.shape == (n, 2, 3)
    assert sample.choices.dtype == np.uint8
    # The last token of an answer goes through the model with the next one's prompt.
    seen = first + drawn - 1
    expected = [(10 + i) % 251 for i in range(seen)] + [(20 + i) % 251 for i in range(seen, n - 1)]
    assert sample.choices[:, 0, 0].tolist() == [*expected, expected[-1]]


@pytest.mark.parametrize(
    "spelled",
    [
        '<|channel|>commentary to=functions.price <|constrain|>json<|message|>{"item": "pear"}',
        '<|channel|>commentary to=functions.price json<|message|>{"item": "pear"}',
        '<|channel|>commentary to=functions.price<|message|>{"item": "pear"}',
        ' to=functions.price<|channel|>commentary json<|message|>{"item": "pear"}',
        ' to=functions.price<|channel|>commentary <|constrain|>json<|message|>{"item": "pear"}',
    ],
)
def test_each_spelling_of_a_call_is_read_and_kept_as_it_was_drawn(vocabulary, play, row, spelled):
    spelled += "<|call|>"
    episode, sampler = play(row, spelled, FINAL)
    assert [(u.call.name, u.result, u.mistake) for u in episode.outcome.uses] == [
        ("price", "3", None)
    ]
    assert (episode.outcome.ended, episode.outcome.faults) == ("answer", ())
    # Nothing is written again in the usual spelling.
    first, second = (requests[0].prompt for requests in sampler.requests)
    assert list(second[len(first) :]) == ids_of(vocabulary, spelled + RESULT + "<|start|>assistant")
    (sample,) = episode.samples
    drawn = len(ids_of(vocabulary, spelled))
    assert set(sample.channels[len(first) : len(first) + drawn].tolist()) == {2}


class Talks:
    """Asks, and says one more thing after the first answer."""

    said = "And two pears?"

    def reset(self, row, seed):
        self.replies = [self.said]
        return None

    def tools(self):
        from gptoss_tune.environments import Tool

        return [Tool("price", "", None, lambda item: "3")]

    def reward(self, outcome):
        return 1.0

    def reply(self, given):
        self.given = given
        return self.replies.pop() if self.replies else None


def test_thoughts_go_where_the_user_speaks_again(vocabulary, play, row):
    once = "<|channel|>analysis<|message|>Known now.<|end|><|start|>assistant" + FINAL
    twice = "<|channel|>analysis<|message|>Twice.<|end|><|start|>assistant" + FINAL.replace(
        "3", "6"
    )
    episode, sampler = play(row, THOUGHT + CALLED, once, twice, make=Talks)
    third = list(sampler.requests[2][0].prompt)
    called = assistant("commentary", '{"item": "pear"}', "functions.price", "<|constrain|>json")
    history = [QUESTION, assistant("analysis", "Ask the price."), called]
    history += [result("functions.price", "3"), assistant("analysis", "Known now.")]
    history += [assistant("final", "3"), user("And two pears?")]
    assert third == library_prompt(vocabulary, history)

    before, after = episode.samples
    assert before.input_ids[-1] == RETURN and before.sampled[-1]
    assert RETURN not in third and CALL in third
    assert after.input_ids.tolist() == [*third, *ids_of(vocabulary, twice)]
    # What was drawn before is context now: each drawn token is trained once.
    assert not after.sampled[: len(third)].any() and after.sampled[len(third) :].all()
    assert before.sampled.sum() + after.sampled.sum() == episode.outcome.tokens
    assert (after.channels[: len(third)] == 0).all()
    assert after.choices.shape[0] == len(after.input_ids)
    assert [given.final for given in episode.outcome.answers] == [None, "3", "6"]
    assert episode.outcome.final == "6"


def test_two_replies_are_asked_as_training_renders_them(renderer, play):
    class TalksTwice(Talks):
        def reset(self, row, seed):
            self.replies = ["And three?", "And two?"]
            return None

    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + FINAL
    asked = {"messages": [{"role": "user", "content": "One?"}]}
    _, sampler = play(asked, said, said, said, make=TalksTwice)
    turns = []
    for question in ("One?", "And two?"):
        answer = {"role": "assistant", "content": "3", "thinking": "Hm."}
        turns += [{"role": "user", "content": question}, answer]
    turns.append({"role": "user", "content": "And three?"})
    told = read_prompt({"messages": turns}, "a.jsonl:1")
    tools = {"functions": {"name": "functions", "tools": [{"name": "price", "description": ""}]}}
    told.namespaces.update(tools)
    assert renderer.vocabulary.decode(list(sampler.requests[2][0].prompt)) == (
        renderer.vocabulary.decode(renderer.render_prompt(told))
    )


def test_final_ids_that_no_encoder_writes_stay_as_they_were_drawn(vocabulary, play, row):
    # "hello" from single letters: rendered again it would be one token.
    letters = [vocabulary.encode(c)[0] for c in "hello"]
    assert vocabulary.encode("hello") != letters
    head = ids_of(vocabulary, "<|channel|>final<|message|>")
    episode, sampler = play(row, [*head, *letters, RETURN], FINAL, make=Talks)
    prompt = list(sampler.requests[1][0].prompt)
    at = next(n for n in range(len(prompt)) if prompt[n : n + 5] == letters)
    assert prompt[at + 5] == END
    assert episode.outcome.answers[0].final == "hello"


def test_python_is_called_with_code_in_the_channel_of_the_call(vocabulary, play):
    from gptoss_tune.environments import Tool

    codes = []

    class Codes(Talks):
        reply = None

        def tools(self):
            run = lambda code: codes.append(code) or "42"  # noqa: E731
            return [Tool("python", "", None, run, builtin=True)]

    asked = {"messages": [{"role": "user", "content": "6 * 7?"}]}
    call = " to=python<|channel|>analysis code<|message|>print(6 * 7)<|call|>"
    episode, sampler = play(asked, call, FINAL, make=Codes)
    assert codes == ["print(6 * 7)"]
    called = assistant("analysis", "print(6 * 7)", "python", "code")
    history = [user("6 * 7?"), called, result("python", "42", "analysis")]
    assert list(sampler.requests[1][0].prompt) == library_prompt(vocabulary, history, python=True)
    assert episode.outcome.uses[0].call.name == "python"


def test_episodes_are_played_together_and_each_has_draws_of_its_own(
    renderer, scripted, task_of, row, judge_all
):
    from gptoss_tune.environments.rows import RowTools
    from gptoss_tune.rollout.play import Limits, Player

    def played(seeds):
        sampler = scripted(*[[THOUGHT + CALLED, FINAL] for _ in seeds])
        player = Player(sampler, renderer, RowTools, judge_all, Limits(100, 8, 2000, 5.0))
        asked = [(task_of(row, 4), index, seed) for index, seed in enumerate(seeds)]
        return player.play(asked, temperature=1.0), sampler

    episodes, sampler = played([11, 12])
    assert [len(requests) for requests in sampler.requests] == [2, 2]
    assert [(e.task, e.index, e.source) for e in episodes] == [
        (4, 0, "rows.jsonl:5"),
        (4, 1, "rows.jsonl:5"),
    ]
    seeds = [request.seed for requests in sampler.requests for request in requests]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    # The draws of an episode do not depend on the one beside it.
    _, alone = played([12])
    assert [r[0].seed for r in alone.requests] == [r[1].seed for r in sampler.requests]
