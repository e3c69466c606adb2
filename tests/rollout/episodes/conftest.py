"""Episodes played by a sampler that says what a test gives it."""

import json

import numpy as np
import pytest

from gptoss_tune.environments.environment import Rewards, Task
from gptoss_tune.environments.rows import RowTools
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.rollout.play import Limits, Player
from gptoss_tune.rollout.sampler import Sampled

LAYERS, CHOSEN = 2, 3
PRICE = {
    "name": "price",
    "description": "The price of a fruit.",
    "parameters": {
        "type": "object",
        "properties": {"item": {"type": "string"}},
        "required": ["item"],
    },
}
ROW = {
    "messages": [{"role": "user", "content": "What does a pear cost?"}],
    "tools": [PRICE],
    "tool_results": [{"name": "price", "arguments": {"item": "pear"}, "result": "3"}],
    "answer": "3",
}


class Scripted:
    """A sampler whose answers are given; each episode of a round takes its next one.

    Experts and log-probabilities tell of their place: the expert of token i of round r is
    ``(10 * r + i) % 251``.
    """

    name = "scripted"

    def __init__(self, encoding, scripts):
        self.encoding, self.scripts = encoding, [list(script) for script in scripts]
        self.version, self.rounds, self.requests = 7, 0, []
        self.of_prompt = {}

    def sample(self, requests, temperature, should_stop=lambda: False):
        self.requests.append(list(requests))
        self.rounds += 1
        found = []
        for number, request in enumerate(requests):
            script = self.scripts[number if len(self.scripts) == len(requests) else 0]
            said = script.pop(0)
            ids = (
                self.encoding.encode(said, allowed_special="all") if isinstance(said, str) else said
            )
            ids = tuple(ids[: request.max_new_tokens])
            places = len(request.prompt) + len(ids) - 1
            told = (10 * self.rounds + np.arange(places)) % 251
            choices = np.broadcast_to(told[:, None, None], (places, LAYERS, CHOSEN))
            logps = -np.arange(1, len(ids) + 1, dtype=np.float32) / 8
            found.append(Sampled(ids, logps, choices.astype(np.uint8), self.version))
        return found


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary()


@pytest.fixture(scope="session")
def renderer(vocabulary):
    return Renderer(vocabulary, RenderSettings(reasoning_effort="low"))


@pytest.fixture(scope="session")
def row():
    return json.loads(json.dumps(ROW))


@pytest.fixture(scope="session")
def task_of():
    return lambda row, number=0: Task(
        number, f"rows.jsonl:{number + 1}", row, read_prompt(row, f"rows.jsonl:{number + 1}")
    )


@pytest.fixture(scope="session")
def scripted(vocabulary):
    return lambda *scripts: Scripted(vocabulary.encoding, scripts)


def no_judge(asked, *, waiting):
    return [Rewards(1.0, {"answer": 1.0}) for _ in asked]


@pytest.fixture(scope="session")
def play(renderer, scripted, task_of):
    """Return a function that plays one row with given answers: the episode and its sampler."""

    def played(row, *answers, make=RowTools, judge=no_judge, should_stop=lambda: False, **limits):
        sampler = scripted(answers)
        allowed = {
            "max_new_tokens": 100,
            "max_turns": 8,
            "max_length": 2000,
            "tool_seconds": 5.0,
        } | limits
        player = Player(sampler, renderer, make, judge, Limits(**allowed))
        asked = [(task_of(row), 0, 1)]
        (episode,) = player.play(asked, temperature=1.0, should_stop=should_stop)
        return episode, sampler

    return played


@pytest.fixture(scope="session")
def judge_all():
    return no_judge
