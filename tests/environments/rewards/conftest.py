import pytest

from gptoss_tune.environments.environment import Outcome, Task, ToolUse
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.harmony.conversation import Conversation


@pytest.fixture(scope="session")
def task():
    """Make a task of a row."""

    def made(row, number=0):
        source = f"data/x.jsonl:{number + 1}"
        return Task(number, source, row, Conversation(source))

    return made


@pytest.fixture(scope="session")
def use():
    """Make a call of a tool; True: wrong by the model, False: by the tool."""

    def made(name="price", arguments="{}", wrong_by_model=None):
        mistake = None if wrong_by_model is None else "wrong"
        return ToolUse(Call(name, arguments), "result", mistake, bool(wrong_by_model))

    return made


@pytest.fixture(scope="session")
def episode():
    """Make an outcome of answers: a text is final, a tuple calls; thoughts are said apart."""

    def made(*said, thoughts="Hm.", ended="answer", **rest):
        answers = tuple(
            Given(each, analysis=thoughts)
            if isinstance(each, str) or each is None
            else Given(None, tuple(each), thoughts)
            for each in said
        )
        finals = [given.final for given in answers if given.final is not None]
        calls = tuple(call for given in answers for call in given.calls)
        whole = Given(finals[-1] if finals else None, calls, thoughts)
        rest.setdefault("longest", 100)
        return Outcome({}, whole, answers, ended=ended, **{"uses": (), **rest})

    return made
