"""Environments of a user's module: found in the current directory, or refused in one sentence."""

import subprocess
import sys

import pytest

from gptoss_tune.environments.load import built_in, load_environment
from gptoss_tune.environments.rows import RowTools
from gptoss_tune.errors import RecipeError

WHOLE = """
class {name}:
    def reset(self, row, seed): return None
    def tools(self): return []
    def reward(self, outcome): return 1.0
"""
SHOP = WHOLE.format(name="Shop")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes a module beside the user and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    written = []

    def write(text, name=None):
        name = name or f"own_environment_{len(written)}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_a_class_of_the_current_directory_is_called_for_each_episode(module):
    name = module(WHOLE.format(name="Shop"))
    make = load_environment(f"{name}:Shop")
    assert make() is not make()
    assert make().tools() == []


@pytest.mark.parametrize(
    ("text", "asked", "said"),
    [
        ("x = 1", "{m}", "expected module:Class"),
        ("x = 1", "{m}:Shop:Shop", "expected module:Class"),
        ("x = 1", "../{m}:Shop", "expected module:Class"),
        ("x = 1", "{m}.py:Shop", "there is no module"),
        ("x = 1", "{m}:Shop", "has no Shop; it defines no class"),
        (WHOLE.format(name="Other"), "{m}:Shop", "has no Shop; it has Other"),
        ("Shop = 1", "{m}:Shop", "Shop is int; expected a class"),
        ("Shop = lambda: 1", "{m}:Shop", "Shop is function; expected a class"),
        ("class Shop:\n    def reset(self, row, seed): ...", "{m}:Shop", "no tools and no reward"),
        (
            SHOP + "    def reset(self, row): ...",
            "{m}:Shop",
            "Shop.reset takes",
        ),
        (SHOP + "    def reply(self): ...", "{m}:Shop", "Shop.reply takes"),
        (
            SHOP + "    def __init__(self, prices): ...",
            "{m}:Shop",
            "cannot be called without arguments",
        ),
        (SHOP + "    async def tools(self): ...", "{m}:Shop", "is async"),
        ("raise ValueError('no key')", "{m}:Shop", "importing .* fails: ValueError: no key"),
        ("import sys; sys.exit(3)", "{m}:Shop", "importing .* fails: SystemExit: 3"),
        ("import not_installed_anywhere", "{m}:Shop", "not_installed_anywhere.*install what it"),
        ("def broken(:", "{m}:Shop", "importing .* fails: SyntaxError"),
        ("x = 1", "nothing_of_this_name:Shop", "there is no module nothing_of_this_name"),
    ],
)
def test_what_is_no_environment_is_refused_in_one_sentence(module, text, asked, said):
    spec = asked.format(m=module(text))
    with pytest.raises(RecipeError, match=said) as refused:
        load_environment(spec)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_it_is_refused_before_torch_is_imported(tmp_path):
    code = """
import sys
import gptoss_tune.rollout.play, gptoss_tune.rollout.tasks
from gptoss_tune.environments.load import load_environment
from gptoss_tune.errors import RecipeError
try:
    load_environment("nothing_here:Shop")
except RecipeError:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_those_that_come_along_are_made_for_each_episode():
    make = built_in("rows", tool_seconds=5)
    assert isinstance(make(), RowTools) and make() is not make()
    assert [tool.name for tool in built_in("python", tool_seconds=5)().tools()] == ["python"]
