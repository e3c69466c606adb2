import importlib.util
import signal
import sys
from pathlib import Path

import pytest

OWN = """
import asyncio
import verifiers as vf

ROWS = [{"question": f"Reverse {word}", "answer": word[::-1]} for word in ("abc", "xyz")]


def rows():
    try:
        from datasets import Dataset
    except ImportError:
        return ROWS
    return ROWS if vf.Rubric.__module__ == "verifiers.stand_in" else Dataset.from_list(ROWS)


async def right(completion, answer, parser):
    await asyncio.sleep(0)
    return float(parser.parse_answer(completion) == answer)


def brevity(completion, **rest):
    return 1.0 / len(completion[0].content)


def load_environment(funcs=None, weights=None, kind=None, evaluated=False, **rest):
    rubric = vf.Rubric(funcs=funcs or [right, brevity], weights=weights or [1.0, 0.5])
    return (kind or vf.SingleTurnEnv)(
        dataset=rows(), eval_dataset=rows() if evaluated else None, rubric=rubric, **rest
    )
"""


@pytest.fixture(params=["stand-in", "installed"])
def vf(request, monkeypatch, tmp_path):
    """The package verifiers: what stands in for it, and itself where it is installed."""
    if request.param == "stand-in":
        for name in [name for name in sys.modules if name.split(".")[0] == "verifiers"]:
            monkeypatch.delitem(sys.modules, name)
        spec = importlib.util.spec_from_file_location(
            "stand_in", Path(__file__).parent / "stand_in.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, each in module.modules().items():
            monkeypatch.setitem(sys.modules, name, each)
    package = pytest.importorskip("verifiers", reason="the extra verifiers is not installed")
    (tmp_path / "own_environment.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_environment", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield package
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.modules.pop("own_environment", None)


@pytest.fixture
def own(vf):
    """Make an environment of verifiers."""
    import own_environment

    return own_environment.load_environment


@pytest.fixture
def row():
    return {
        "prompt": [{"role": "user", "content": "Reverse abc"}],
        "answer": "cba",
        "example_id": 0,
    }


@pytest.fixture
def episode(row):
    from gptoss_tune.environments.environment import Outcome

    def made(*answers, uses=(), ended="answer"):
        return Outcome(row, answers[-1], answers, tuple(uses), ended, longest=100)

    return made
