"""The part of verifiers 0.3 that is used here, as far as its own behaviour matters.

The tests run against the package itself too, where it is installed: what stands here is held to it.
"""

import inspect
import signal
import sys
import types
import uuid


class Message(types.SimpleNamespace):
    pass


def _kind(role):
    def made(**values):
        return Message(**{"role": role, "tool_calls": None, "content": None, **values})

    return made


class State(dict):
    def __getitem__(self, key):
        if key in ("prompt", "answer", "info", "example_id") and key in self.get_plain("input"):
            return self.get_plain("input")[key]
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        inside = super().get("input", {})
        (inside if key in inside and key in ("prompt", "answer", "info") else super()).__setitem__(
            key, value
        )

    def get_plain(self, key):
        return super().get(key, {})

    def get(self, key, default=None):
        try:
            return self[key]
        except KeyError:
            return default


class Parser:
    def parse_answer(self, completion):
        said = [message.content for message in completion if message.role == "assistant"]
        return said[-1] if said else None


class Rubric:
    def __init__(self, funcs=None, weights=None, parser=None):
        self.funcs = list(funcs or [])
        self.weights = list(weights or [1.0] * len(self.funcs))
        self.parser = parser or Parser()

    @property
    def has_group_rewards(self):
        plural = {"completions", "states", "prompts", "answers"}
        return any(plural & set(inspect.signature(f).parameters) for f in self.funcs)

    def score_objects(self, state):
        row = {k: v for k, v in state.get_plain("input").items() if k not in ("prompt",)}
        return {
            **row,
            "prompt": state["prompt"],
            "completion": state["completion"],
            "answer": state.get("answer", ""),
            "state": state,
            "info": state.get("info", {}),
            "parser": self.parser,
        }

    async def score_rollout(self, state):
        raise NotImplementedError

    async def cleanup(self, state):
        state["cleaned"] = True


class RubricGroup(Rubric):
    def __init__(self, rubrics):
        super().__init__()
        self.rubrics = rubrics

    @property
    def has_group_rewards(self):
        return any(each.has_group_rewards for each in self.rubrics)

    async def score_rollout(self, state):
        raise NotImplementedError

    async def cleanup(self, state):
        for each in self.rubrics:
            await each.cleanup(state)


class Environment:
    def __init__(self, dataset=None, eval_dataset=None, system_prompt=None, rubric=None, **rest):
        self._rows, self._eval = dataset, eval_dataset
        self.system_prompt = system_prompt
        self.rubric = rubric or Rubric()
        self.tool_defs = None
        for key, value in rest.items():
            setattr(self, key, value)
        # As the package does: whoever loads an environment loses these.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(143))

    def _formatted(self, rows):
        if rows is None:
            return None
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [
            {
                **row,
                "example_id": n,
                "prompt": [*system, {"role": "user", "content": row["question"]}],
            }
            for n, row in enumerate(rows)
        ]

    def build_dataset(self):
        return self._formatted(self._rows)

    def build_eval_dataset(self):
        return self._formatted(self._eval)

    def add_rubric(self, rubric):
        self.rubric = RubricGroup([self.rubric, rubric])

    async def init_state(self, values, client, model, sampling_args=None):
        state = State(input=dict(values))
        state["prompt"] = [Message(**message) for message in values["prompt"]]
        state.update(trajectory=[], trajectory_id=uuid.uuid4().hex, completion=None, client=client)
        return state

    async def cleanup(self, state):
        last = state["trajectory"][-1] if state["trajectory"] else None
        whole = [*last["prompt"], *last["completion"]] if last else []
        state["completion"] = whole[len(state["prompt"]) :]


class MultiTurnEnv(Environment):
    def __init__(self, max_turns=-1, **rest):
        super().__init__(**rest)
        self.max_turns = max_turns

        async def num_turns(state):
            return len(state["trajectory"])

        self.add_rubric(Rubric([num_turns], [0.0]))

    async def env_response(self, messages, state, **rest):
        raise NotImplementedError

    async def setup_state(self, state):
        return state

    async def is_completed(self, state):
        return 0 < self.max_turns <= len(state["trajectory"]) or "final_env_response" in state

    async def add_trajectory_step(self, state, step):
        state["trajectory"].append(step)

    async def rollout(self, row, client, model):
        raise NotImplementedError

    async def get_prompt_messages(self, state):
        raise NotImplementedError

    async def get_model_response(self, state, prompt):
        raise NotImplementedError

    async def add_model_response(self, state, prompt, response):
        raise NotImplementedError


class SingleTurnEnv(MultiTurnEnv):
    def __init__(self, **rest):
        super().__init__(max_turns=1, **rest)

    async def env_response(self, messages, state, **rest):
        raise NotImplementedError


_JSON = {int: "integer", str: "string", float: "number"}


class ToolEnv(MultiTurnEnv):
    def __init__(self, tools=None, **rest):
        super().__init__(**rest)
        self.tool_map = {tool.__name__: tool for tool in tools or []}
        self.tool_defs = [
            types.SimpleNamespace(
                name=name,
                description=inspect.getdoc(tool),
                parameters={
                    "type": "object",
                    "properties": {
                        key: {"type": _JSON[each.annotation]}
                        for key, each in inspect.signature(tool).parameters.items()
                    },
                    "required": list(inspect.signature(tool).parameters),
                },
            )
            for name, tool in self.tool_map.items()
        ]

        async def total_tool_calls(completion):
            return float(sum(len(message.tool_calls or ()) for message in completion))

        self.add_rubric(Rubric([total_tool_calls], [0.0]))

    async def env_response(self, messages, state, **rest):
        raise NotImplementedError

    async def call_tool(self, name, arguments, number, **rest):
        result = self.tool_map[name](**arguments)
        result = await result if inspect.isawaitable(result) else result
        return Message(role="tool", content=str(result), tool_call_id=number)


class StatefulToolEnv(ToolEnv):
    pass


class EnvGroup(Environment):
    pass


class Client:
    __abstractmethods__ = frozenset({"get_native_response"})

    def __init__(self, given):
        self.given = given


def load_environment(name, **settings):
    if name != "own-environment":
        raise ValueError(f"Could not import '{name}' environment.")
    import own_environment

    return own_environment.load_environment(**settings)


def modules():
    """Return the modules of the package by name."""
    package = types.ModuleType("verifiers")
    package.__version__ = "0.3.1"
    for each in (
        *(Environment, MultiTurnEnv, SingleTurnEnv, ToolEnv, StatefulToolEnv, EnvGroup),
        *(Rubric, RubricGroup, Parser, load_environment),
    ):
        setattr(package, each.__name__, each)
        each.__module__ = "verifiers.stand_in"
    kinds = types.ModuleType("verifiers.types")
    kinds.AssistantMessage, kinds.ToolMessage = _kind("assistant"), _kind("tool")
    kinds.ToolCall = Message
    clients = types.ModuleType("verifiers.clients")
    clients.Client = Client
    utils = types.ModuleType("verifiers.utils")
    messages = types.ModuleType("verifiers.utils.message_utils")
    messages.maybe_normalize_messages = lambda said, field_name: [
        Message(**each) if isinstance(each, dict) else each for each in said
    ]
    return {each.__name__: each for each in (package, kinds, clients, utils, messages)}
