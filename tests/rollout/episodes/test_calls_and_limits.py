"""What models and environments do wrong, and the limits of an episode: each costs itself alone."""

import json
import threading
import time

import pytest

from gptoss_tune.environments import Tool
from gptoss_tune.environments.environment import Rewards
from gptoss_tune.environments.rewards.reward import RewardFunction
from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.rollout.play import Limits, Player

FINAL = "<|channel|>final<|message|>3<|return|>"
TALK = "<|channel|>final<|message|>So far.<|return|>"


def call(arguments, name="functions.price", channel="commentary"):
    return f"<|channel|>{channel} to={name} <|constrain|>json<|message|>{arguments}<|call|>"


GOOD = call('{"item": "pear"}')


class Own:
    """An environment whose parts a test replaces."""

    asked = None
    tool = staticmethod(lambda item: "3")

    def reset(self, row, seed):
        return self.asked

    def tools(self):
        return [Tool("price", "", None, self.tool)]

    def reward(self, outcome):
        return 1.0


def own(**parts):
    """Return an environment with other parts; a function becomes a method."""
    return type("Changed", (Own,), parts)


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        (call("{}", "functions.cost"), "there is no tool functions.cost; the tools are: functions"),
        (call("{}", "price"), "there is no tool price"),
        (call("print(1)", "python"), "there is no tool python"),
        (call('{"item": "pear"'), "the arguments are not JSON"),
        (call("item=pear"), "the arguments are not JSON"),
        (call('"pear"'), "JSON, but no object"),
        (call("{}"), "'item' is a required property"),
        (call('{"item": 3}'), "is not of type 'string'"),
        (call('{"item": "pear", "size": 1}'), "price takes no argument 'size'"),
        (call('{"item": "fig"}'), "there is no result for these arguments"),
    ],
)
def test_a_malformed_call_is_answered_with_an_error_and_the_episode_goes_on(
    play, row, said, mistake
):
    episode, sampler = play(row, said, GOOD, FINAL)
    wrong, right = episode.outcome.uses
    assert mistake in wrong.mistake and wrong.by_model
    assert wrong.result == f"Error: {wrong.mistake}"
    assert (right.mistake, right.result) == (None, "3")
    assert episode.outcome.ended == "answer"
    # The model is shown what was wrong, in ids that are not trained.
    first, second = (requests[0].prompt for requests in sampler.requests[:2])
    (sample,) = episode.samples
    text = sampler.encoding.decode(list(second[len(first) :]))
    assert text.endswith(f"<|message|>{wrong.result}<|end|><|start|>assistant")
    shown = len(sampler.encoding.encode(wrong.result))
    assert not sample.sampled[len(second) - 3 - shown : len(second)].any()


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("Just text<|return|>", "has text outside of any message"),
        ("<|channel|>analysis<|message|>Hm.<|return|>", "ends in <|return|> in channel 'analysis'"),
        ("<|channel|>final<|message|>3<|call|>", "ends in <|call|> without a recipient"),
        ("<|channel|>final<|message|>3<|endoftext|>", "ends in <|endoftext|>"),
        ("<|channel|>secret<|message|>3<|return|>", "unknown channel 'secret'"),
        ("<|return|>", "ends in <|return|> in channel None"),
        (GOOD.replace("<|call|>", "<|return|>"), "a call that does not end in <|call|>"),
        (
            GOOD.replace("<|call|>", "<|end|><|start|>assistant") + FINAL,
            "goes on after a call instead of waiting for its result",
        ),
        (
            FINAL.replace("<|return|>", "<|end|><|start|>assistant") + FINAL,
            "goes on after its final answer",
        ),
        (call("{}", "functions.a/b"), "calls the unknown tool"),
        (call("{}", "user"), "calls the unknown tool"),
        (call("{}", "system"), "calls the unknown tool"),
        (call("{}", "assistant"), "calls the unknown tool"),
        (call('{"item": "pear"}', channel="final"), "a call in channel 'final'"),
        ("<|channel|>final<|message|>3<|start|>x<|return|>", "inside a message"),
    ],
)
def test_what_is_not_harmony_ends_the_episode_with_the_reason(play, row, said, fault):
    episode, _ = play(row, said)
    assert episode.outcome.ended == "format"
    assert any(fault in line for line in episode.outcome.faults), episode.outcome.faults
    (sample,) = episode.samples
    assert sample.sampled[-1] and len(sample.channels) == len(sample.input_ids)
    assert episode.rewards.total == 1.0  # judged like any other


def test_a_call_in_the_channel_of_thoughts_is_made_and_noted(play, row):
    episode, _ = play(row, call('{"item": "pear"}', channel="analysis"), FINAL)
    assert (episode.outcome.ended, episode.outcome.uses[0].mistake) == ("answer", None)
    assert "calls belong in 'commentary'" in episode.outcome.faults[0]
    assert episode.messages[2]["channel"] == "analysis"


def test_a_row_without_results_asks_for_the_call_itself(play, row):
    asked = {key: value for key, value in row.items() if key != "tool_results"}
    episode, sampler = play(asked, GOOD)
    assert (episode.outcome.ended, len(sampler.requests)) == ("answer", 1)
    assert [c.arguments for c in episode.outcome.given.calls] == ['{"item": "pear"}']
    wrong, _ = play(asked, call("{}"))
    assert (wrong.outcome.ended, wrong.outcome.uses[0].by_model) == ("answer", True)


def test_a_declared_tool_that_nothing_runs_is_no_answer_beside_one_that_is(play, row):
    asked = {**row, "tools": [*row["tools"], {"name": "stock"}]}
    episode, _ = play(asked, call("{}", "functions.stock"), GOOD, FINAL, make=Own)
    unanswered, answered = episode.outcome.uses
    assert "nothing answers this tool here" in unanswered.mistake and not unanswered.by_model
    assert (answered.result, episode.outcome.ended) == ("3", "answer")


def test_answers_turns_and_tokens_are_limited(play, row):
    long = "<|channel|>final<|message|>" + "word " * 50 + "<|return|>"
    episode, _ = play(row, long, max_new_tokens=20)
    assert (episode.outcome.ended, episode.outcome.tokens, episode.cut_off) == ("length", 20, True)
    assert episode.outcome.longest == 20 and episode.outcome.answers[0].final.startswith("word")

    episode, sampler = play(row, GOOD, GOOD, max_turns=2)
    assert (episode.outcome.ended, len(episode.outcome.uses)) == ("turns", 2)
    (sample,) = episode.samples
    assert sample.sampled[-1], "nothing stands behind what was drawn last"

    prompt = len(sampler.requests[0][0].prompt)
    episode, _ = play(row, long, max_length=prompt + 15)
    assert (episode.outcome.ended, episode.outcome.tokens) == ("tokens", 15)
    assert len(episode.samples[0].input_ids) == prompt + 15

    drawn = len(sampler.encoding.encode(GOOD, allowed_special="all"))
    episode, cut = play(row, GOOD, max_length=prompt + drawn + 3)
    assert (episode.outcome.ended, len(cut.requests)) == ("tokens", 1)
    assert episode.outcome.uses[0].result == "3"

    episode, _ = play(row, "")
    assert (episode.outcome.ended, episode.outcome.tokens, episode.samples) == ("length", 0, ())

    episode, none = play(row, max_length=prompt)
    assert (episode.outcome.ended, episode.samples, none.requests) == ("tokens", (), [])


def test_the_time_of_an_episode_is_limited(play, row):
    def slow(item):
        time.sleep(0.3)
        return "3"

    make = own(tool=staticmethod(slow))
    episode, sampler = play(row, GOOD, FINAL, make=make, episode_seconds=0.2)
    assert (episode.outcome.ended, len(sampler.requests)) == ("time", 1)
    assert episode.outcome.uses[0].mistake is not None and episode.cut_off
    assert 0.2 <= episode.seconds < 5


def test_no_call_is_made_once_the_time_is_over(renderer, scripted, task_of, row, judge_all):
    called, sampler = [], scripted([GOOD])
    whole = sampler.sample
    sampler.sample = lambda *a, **k: time.sleep(0.3) or whole(*a, **k)
    make = own(tool=staticmethod(called.append))
    player = Player(sampler, renderer, make, judge_all, Limits(100, 8, 2000, 5.0, 0.2))
    (episode,) = player.play([(task_of(row), 0, 0)], temperature=1.0)
    assert (episode.outcome.ended, called, episode.outcome.uses) == ("time", [], ())
    assert [c.name for c in episode.outcome.given.calls] == ["price"]
    assert episode.samples[0].sampled.any()


def test_a_tool_that_raises_hangs_or_gives_rubbish_costs_its_own_call(play, row):
    gate = threading.Event()

    def hang(item):
        gate.wait(30)

    def leave(item):
        raise SystemExit(3)

    def fail(item):
        raise KeyError("no such fruit")

    started = time.monotonic()
    for tool, said in (
        (fail, "KeyError: 'no such fruit'"),
        (hang, "took longer than 0.3 s"),
        (leave, "SystemExit: 3"),
        (lambda item: object(), "neither text nor JSON"),
        (lambda item: "x" * 200_000, "its result has 200,000 characters"),
        (lambda item: " " * 100_001, "over 100,000"),
        (lambda: "3", "TypeError"),
    ):
        make = own(tool=staticmethod(tool))
        episode, _ = play(row, GOOD, FINAL, make=make, tool_seconds=0.3)
        (use,) = episode.outcome.uses
        assert said in use.mistake and not use.by_model, use
        assert episode.outcome.ended == "answer"
    gate.set()
    assert time.monotonic() - started < 10


def test_a_tool_or_reward_that_finds_the_machine_broken_ends_the_run(play, row):
    def broken(*_, **__):
        raise MachineError("the sandbox cannot be set up")

    with pytest.raises(MachineError, match="the sandbox cannot be set up"):
        play(row, GOOD, FINAL, make=own(tool=staticmethod(broken)))
    judge = RewardFunction({"environment": 1.0}, own=True).judge_many
    with pytest.raises(MachineError, match="the sandbox cannot be set up"):
        play(row, GOOD, FINAL, make=own(reward=broken), judge=judge)


def test_an_environment_may_change_its_row_and_no_other_episode_sees_it(
    renderer, scripted, task_of, judge_all
):
    class Takes(Own):
        def reset(self, row, seed):
            return [{"role": "user", "content": row.pop("ask") + row["fruits"].pop()}]

    row = {"prompt": "-", "ask": "A ", "fruits": ["plum", "pear"]}
    task = task_of(row)
    whole = json.loads(json.dumps(row))
    for _ in range(2):  # a group, and a later phase
        sampler = scripted([FINAL], [FINAL])
        player = Player(sampler, renderer, Takes, judge_all, Limits(100, 8, 2000, 5.0))
        episodes = player.play([(task, 0, 1), (task, 1, 2)], temperature=1.0)
        assert [e.messages[0]["content"] for e in episodes] == ["A pear", "A pear"]
        assert [e.outcome.row for e in episodes] == [whole, whole]
        episodes[0].outcome.row["fruits"].clear()  # as a reward may
    assert task.row == whole


def test_calls_of_a_round_run_at_the_same_time(renderer, scripted, task_of, row, judge_all):
    together = threading.Barrier(3)

    def meet(item):
        together.wait(10)
        return "3"

    sampler = scripted(*[[GOOD, FINAL]] * 3)
    make = own(tool=staticmethod(meet))
    player = Player(sampler, renderer, make, judge_all, Limits(100, 8, 2000, 20.0))
    asked = [(task_of(row), index, index) for index in range(3)]
    episodes = player.play(asked, temperature=1.0)
    assert [e.outcome.uses[0].result for e in episodes] == ["3"] * 3


def _raise(*_):
    raise OSError("no stock")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"reset": _raise}, "reset() or tools(): OSError: no stock"),
        ({"tools": _raise}, "OSError: no stock"),
        ({"__init__": _raise}, "OSError: no stock"),
        ({"reply": _raise}, "reply(): OSError: no stock"),
        ({"reply": lambda self, given: 3}, "reply() gave int; expected text or None"),
        ({"asked": "What?"}, "reset() returned 'What?'; expected a list"),
        ({"asked": []}, "empty list"),
        ({"tools": lambda self: ["price"]}, "tools() gave str; expected"),
        ({"tools": lambda self: [Tool("two words", "", None, str)]}, "tools()"),
        ({"tools": lambda self: [Tool("f", "", {"type": "wrong"}, str)]}, "type is 'wrong'"),
        ({"tools": lambda self: [Tool("shell", "", None, str, builtin=True)]}, "builtin_tools"),
        ({"tools": lambda self: [Tool("f", "", None, str)] * 2}, "gave 'functions.f' twice"),
        ({"tools": lambda self: [Tool("f", "", [], str)]}, "the tool 'f' with list as parameters"),
        ({"tools": lambda self: [Tool("f", "", "{}", str)]}, "the tool 'f' with str as parameters"),
        ({"tools": lambda self: None}, "TypeError"),
    ],
)
def test_an_environment_that_fails_costs_its_own_episode(
    renderer, scripted, task_of, row, parts, said
):
    makes = iter([own(**parts), Own])
    judged = []

    def judge(asked, *, waiting):
        judged.extend(asked)
        return [Rewards(1.0)] * len(asked)

    lock = threading.Lock()

    def make():
        with lock:
            kind = next(makes)
        return kind()

    sampler = scripted([TALK], [TALK]) if "reply" in parts else scripted([FINAL])
    player = Player(sampler, renderer, make, judge, Limits(100, 8, 2000, 5.0))
    asked = [(task_of(row), 0, 0), (task_of(row), 1, 1)]
    episodes = player.play(asked, temperature=1.0)
    failed = [episode for episode in episodes if episode.outcome.ended == "error"]
    (bad,) = failed
    assert said in bad.rewards.failed["environment"], bad.rewards
    assert bad.rewards.total == 0 and not bad.cut_off
    (other,) = [episode for episode in episodes if episode is not bad]
    assert (other.outcome.ended, other.rewards.total) == ("answer", 1.0)
    assert len(judged) == 1, "the failed one is not judged"


def test_an_environment_asks_with_messages_of_its_own_drawn_from_the_seed(
    renderer, scripted, task_of, row, judge_all
):
    class Asks(Own):
        def reset(self, row, seed):
            return [
                {"role": "system", "content": f"Be brief, {row['answer']}."},
                {"role": "user", "content": f"What does fruit {seed} cost?"},
            ]

    sampler = scripted([FINAL], [FINAL])
    player = Player(sampler, renderer, Asks, judge_all, Limits(100, 8, 2000, 5.0))
    episodes = player.play([(task_of(row), 0, 5), (task_of(row), 1, 6)], temperature=1.0)
    texts = [renderer.vocabulary.decode(list(r.prompt)) for r in sampler.requests[0]]
    for seed, text, episode in zip((5, 6), texts, episodes, strict=True):
        assert f"What does fruit {seed} cost?" in text and "Be brief, 3." in text
        assert "What does a pear cost?" not in text and "namespace functions" in text
        assert episode.messages[0]["role"] == "developer"


def test_a_stop_is_heard_while_a_tool_runs(play, row):
    gate, asked = threading.Event(), []

    def hang(item):
        asked.append(item)
        gate.wait(30)

    started = time.monotonic()
    with pytest.raises(Stopped):
        play(
            row,
            GOOD,
            make=own(tool=staticmethod(hang)),
            tool_seconds=30,
            should_stop=lambda: bool(asked),
        )
    gate.set()
    assert asked == ["pear"] and time.monotonic() - started < 10


def test_everything_of_an_episode_can_be_written_as_json(play, row):
    episode, _ = play(row, call("{}"), GOOD, FINAL)
    told = json.loads(json.dumps({"messages": episode.messages, "faults": episode.outcome.faults}))
    assert [m.get("name") for m in told["messages"] if m["role"] == "tool"] == [
        "functions.price",
        "functions.price",
    ]
