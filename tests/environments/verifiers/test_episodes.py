"""Environments of verifiers played as ours: prompts, tools, the user, the rubric."""

import asyncio
import importlib.machinery
import json
import math
import signal
import sys
import threading
import types

import pytest

from gptoss_tune.environments.environment import Task, ToolUse
from gptoss_tune.environments.load import files_of, load_environment
from gptoss_tune.environments.rewards.reward import RewardFunction
from gptoss_tune.environments.verifiers import load, wrap, write_rows
from gptoss_tune.errors import DataError, MachineError, RecipeError
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.formats.prompt import read_prompt


def times(a: int, b: int) -> int:
    """Multiply."""
    return a * b


async def plus(a: int, b: int) -> int:
    """Add."""
    return a + b


def test_functions_of_the_rubric_are_components_and_their_sum_is_the_rubrics(own, row, episode):
    played = wrap(own())
    assert played.components == ("right", "brevity", "num_turns", "environment")
    world = played()
    assert world.reset(row, 1) is None and list(world.tools()) == []
    found = world.reward(episode(Given("cba", analysis="Hm.")))
    # 1 + 0.5 / 3 characters; num_turns has no weight
    assert found == {
        "right": 1.0,
        "brevity": pytest.approx(1 / 3),
        "num_turns": 1.0,
        "environment": pytest.approx(1 + 0.5 / 3),
    }


def test_the_runs_own_weights_and_the_rubrics(own, row, episode):
    played = wrap(own())
    task = Task(0, "x.jsonl:1", row, Conversation("x.jsonl:1"))

    def judged(weights):
        world = played()
        world.reset(row, 1)
        reward = RewardFunction(weights, own=True)
        reward.check([task], world)
        return reward.judge(world, task, episode(Given("cba")))

    assert judged({"right": 2.0, "format": 1.0}).total == 2.5
    assert judged({"environment": 1.0}).total == pytest.approx(1 + 0.5 / 3)
    with pytest.raises(RecipeError, match=r"rewards\.rigth: .*did you mean right\?"):
        judged({"rigth": 1.0})


def test_a_function_that_raises_is_counted_and_costs_nothing_else(own, row, episode):
    def breaks(completion):
        raise ValueError("no such word")

    def undefined(completion):
        return math.nan

    def right(completion, answer):
        return completion[-1].content == answer

    played = wrap(own([breaks, undefined, right], [1.0, 1.0, 1.0]))
    world = played()
    world.reset(row, 1)
    task = Task(0, "x.jsonl:1", row, Conversation("x.jsonl:1"))
    reward = RewardFunction({"breaks": 1.0, "right": 1.0, "environment": 1.0}, own=True)
    found = reward.judge(world, task, episode(Given("cba")))
    assert found.total == 2.0 and set(found.failed) == {"breaks", "undefined"}
    assert found.failed["breaks"].startswith("ValueError: no such word (test_episodes.py:")


def test_tools_are_called_and_told_of(vf, own, row, episode):
    world = wrap(own(kind=vf.ToolEnv, tools=[times, plus]))()
    world.reset(row, 1)
    tools = {tool.name: tool for tool in world.tools()}
    assert tools["times"].description.startswith("Multiply")
    assert set(tools["plus"].parameters["properties"]) == {"a", "b"}
    assert tools["times"].run(a=3, b=4) == "12" and tools["plus"].run(a=3, b=4) == "7"
    call = Call("times", '{"a": 3, "b": 4}')
    found = world.reward(
        episode(Given(None, (call,), "Hm."), Given("cba"), uses=[ToolUse(call, "12")])
    )
    assert found["total_tool_calls"] == 1.0 and found["num_turns"] == 2.0 and found["right"] == 1.0


def test_a_user_replies_until_the_end(vf, own, row, episode):
    class Guess(vf.MultiTurnEnv):
        async def setup_state(self, state):
            state["secret"] = 7
            return state

        async def env_response(self, messages, state, **rest):
            said = messages[-1].content
            if said == "7":
                state["final_env_response"] = []
                return []
            word = "Higher." if int(said) < state["secret"] else "Lower."
            return [{"role": "user", "content": word}]

    async def rounds(state, completion):
        users = [message for message in completion if message.role == "user"]
        return len(state["trajectory"]) + len(users) / 10

    played = wrap(own([rounds], [1.0], kind=Guess, max_turns=4))
    world = played()
    world.reset(row, 1)
    assert [world.reply(Given(said)) for said in ("3", "9", "7")] == ["Higher.", "Lower.", None]
    assert world.reward(episode(Given("3"), Given("9"), Given("7")))["rounds"] == 3.2
    # its own bound of turns ends it too, and a cut episode is judged with what there is
    world = played()
    world.reset(row, 1)
    said = [world.reply(Given("3")) for _ in range(4)]
    assert said == ["Higher.", "Higher.", "Higher.", None]
    world = played()
    world.reset(row, 1)
    world.reply(Given("3"))
    assert world.reward(episode(Given("3"), Given(None), ended="length"))["rounds"] == 2.1
    assert not hasattr(wrap(own())(), "reply")


def test_each_episode_has_a_state_of_its_own(own, row, episode):
    def first(state):
        state["seen"] = state.get("seen", 0) + 1
        return state["seen"]

    played = wrap(own([first], [1.0]))
    for _ in range(2):
        world = played()
        world.reset(row, 1)
        assert world.reward(episode(Given("x")))["first"] == 1.0
    assert row["answer"] == "cba"


def test_coroutines_of_all_episodes_share_a_loop(own, row, episode):
    # as a client of an API needs, whose connections live in the loop that it was first used in
    loops = []

    async def asks(completion):
        loops.append(asyncio.get_running_loop())
        return 1.0

    played = wrap(own([asks], [1.0]))
    reward = RewardFunction({"asks": 1.0}, own=True)
    task = Task(0, "x.jsonl:1", row, Conversation("x.jsonl:1"))
    worlds = [played() for _ in range(8)]
    for world in worlds:
        world.reset(row, 1)
    judged = reward.judge_many([(world, task, episode(Given("x"))) for world in worlds])
    assert [found.total for found in judged] == [1.0] * 8
    assert len(set(map(id, loops))) == 1 and not loops[0].is_closed()


def test_plain_functions_and_tools_are_called_where_they_are_asked_for(vf, own, row, episode):
    threads = []

    def plain(completion):
        threads.append(threading.current_thread())
        return 1.0

    def tool(a: int) -> int:
        """Look where it is called."""
        threads.append(threading.current_thread())
        return a

    world = wrap(own([plain], [1.0], kind=vf.ToolEnv, tools=[tool]))()
    world.reset(row, 1)
    assert world.tools()[0].run(a=3) == "3"
    assert world.reward(episode(Given("x")))["plain"] == 1.0
    assert threads == [threading.current_thread()] * 2


# A loop that is blocked is left after some seconds, which the others need to be judged.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seconds"), [("waits", 1.5), ("spins", 1.5), ("spins in the loop", 5.0)]
)
def test_a_function_that_hangs_costs_its_own_episode_alone(kind, seconds, own, row, episode):
    gate = threading.Event()

    def spins(completion, answer):
        while completion[-1].content == "hang" and not gate.is_set():
            pass
        return 1.0

    async def waits(completion, answer):
        while completion[-1].content == "hang":
            await asyncio.sleep(3600)
        return 1.0

    async def spins_in_loop(completion, answer):
        return spins(completion, answer)

    function = {"waits": waits, "spins": spins, "spins in the loop": spins_in_loop}[kind]
    function.__name__ = "function"
    played = wrap(own([function], [1.0]))
    reward = RewardFunction({"function": 1.0, "format": 0.5}, own=True, seconds=seconds)
    task = Task(0, "x.jsonl:1", row, Conversation("x.jsonl:1"))

    def judged(texts):
        worlds = [played() for _ in texts]
        for world in worlds:
            world.reset(row, 1)
        said = [episode(Given(text, analysis="Hm.")) for text in texts]
        return reward.judge_many([(w, task, o) for w, o in zip(worlds, said, strict=True)])

    found = judged(["a", "hang", "b", "c"])
    gate.set()
    assert [one.total for one in found] == [1.5, 0.5, 1.5, 1.5]
    assert list(found[1].failed) == ["environment"]
    assert f"longer than {seconds:g} s" in found[1].failed["environment"]
    assert [one.total for one in judged(["a", "b"])] == [1.5, 1.5]


def test_names_that_are_none_get_one(own):
    played = wrap(own([lambda completion: 1.0, lambda completion: 2.0], [1.0, 1.0]))
    assert played.components[:2] == ("lambda", "lambda_2")


def test_a_row_without_a_prompt_is_refused(own):
    with pytest.raises(ValueError, match=r"write the environment's own by .*write_rows"):
        wrap(own())().reset({"answer": "cba"}, 1)


def test_tasks_become_rows_that_are_read_as_prompts(vf, own, tmp_path):
    path = tmp_path / "rows.jsonl"
    assert write_rows("own-environment", path, system_prompt="Be brief.") == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert rows[1]["answer"] == "zyx"
    conversation = read_prompt(rows[0], "rows.jsonl:1")
    assert conversation.messages[-1].text == "Reverse abc"
    with pytest.raises(DataError, match="has no tasks for eval"):
        write_rows("own-environment", tmp_path / "none.jsonl", split="eval")
    assert not (tmp_path / "none.jsonl").exists()
    assert write_rows("own-environment", path, split="eval", evaluated=True) == 2


def test_loading_leaves_the_handlers_of_signals_alone(vf, own):
    def mine(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, mine)
    own()
    assert signal.getsignal(signal.SIGTERM) is not mine, "it leaves them alone by itself"
    signal.signal(signal.SIGTERM, mine)
    played = load_environment("verifiers:own-environment")
    assert signal.getsignal(signal.SIGTERM) is mine
    assert played.components[0] == "right"


def test_a_module_of_the_users_own_may_wrap_one(own, tmp_path, monkeypatch):
    def mine(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, mine)
    (tmp_path / "mine_of_verifiers.py").write_text(
        "import own_environment\n"
        "from gptoss_tune.environments.verifiers import wrap\n"
        "Reverse = wrap(own_environment.load_environment(system_prompt='Be brief.'))\n"
    )
    monkeypatch.delitem(sys.modules, "mine_of_verifiers", raising=False)
    assert load_environment("mine_of_verifiers:Reverse").components[0] == "right"
    assert signal.getsignal(signal.SIGTERM) is mine


def test_the_files_of_one_are_its_own_and_not_what_wraps_it(own, tmp_path, monkeypatch):
    """Those that a continuation has to bring unchanged."""
    spec = "verifiers:own-environment"
    files = files_of(spec, load_environment(spec))
    assert tmp_path / "own_environment.py" in files
    assert "gptoss_tune" not in {path.parent.parent.name for path in files}
    mine = tmp_path / "mine_of_verifiers.py"
    mine.write_text(
        "import own_environment\n"
        "from gptoss_tune.environments.verifiers import wrap\n"
        "Reverse = wrap(own_environment.load_environment())\n"
    )
    monkeypatch.delitem(sys.modules, "mine_of_verifiers", raising=False)
    spec = "mine_of_verifiers:Reverse"
    files = files_of(spec, load_environment(spec))
    assert files[0] == mine and tmp_path / "own_environment.py" in files


def test_what_cannot_be_loaded_says_so(vf):
    with pytest.raises(RecipeError, match=r"--environment verifiers:nowhere: .*cannot load it"):
        load("nowhere")


def test_what_cannot_be_played_is_refused_with_the_reason(vf, own):
    class Rollout(vf.MultiTurnEnv):
        async def env_response(self, messages, state, **rest):
            return []

        async def get_model_response(self, state, prompt, **rest):
            raise NotImplementedError

    class TalkingTools(vf.ToolEnv):
        async def env_response(self, messages, state, **rest):
            return []

    class Stateful(vf.StatefulToolEnv):
        def update_tool_args(self, *args, **rest):
            return {}

    class Alone(vf.Environment):
        async def rollout(self, *args, **rest):
            raise NotImplementedError

        def add_rubric(self, rubric):
            raise NotImplementedError

    class OwnRubric(vf.Rubric):
        async def score_rollout(self, state):
            state["reward"] = 1.0

    def compared(completions):
        return [0.0] * len(completions)

    whole = own()
    whole.rubric = OwnRubric([compared])
    for environment, said in (
        (own(kind=Rollout), "its own get_model_response, so the model would not be the run's"),
        (own(kind=TalkingTools, tools=[times]), "its own env_response beside tools"),
        (own(kind=Alone), "a rollout of its own, which asks a model through a client"),
        (own(kind=Stateful), "a state that its own rollout keeps"),
        (own([compared], [1.0]), "compares the episodes of a group"),
    ):
        with pytest.raises(RecipeError, match="cannot be played here") as raised:
            wrap(environment)
        assert said in str(raised.value)
    whole.rubric = OwnRubric([lambda completion: 1.0])
    with pytest.raises(RecipeError, match="its OwnRubric has its own score_rollout"):
        wrap(whole)


def test_another_version_and_none_are_refused(monkeypatch):
    later = types.ModuleType("verifiers")
    later.__spec__ = importlib.machinery.ModuleSpec("verifiers", None)
    later.__version__ = "0.4.0"
    monkeypatch.setitem(sys.modules, "verifiers", later)
    with pytest.raises(MachineError, match=r"verifiers 0\.4\.0 has no .*expected 0\.2 or 0\.3"):
        load_environment("verifiers:any")
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(MachineError, match="this needs the extra 'verifiers': pip install"):
        load("any")
