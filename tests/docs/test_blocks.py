"""What the pages tell people to type is taken: commands, options, recipes, settings, code."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.main import get_command

from gptoss_tune.cli import app
from gptoss_tune.recipe import Recipe, load_recipe
from gptoss_tune.workflows.sweep import first_run

ROOT = Path(__file__).resolve().parents[2]
# The form of every command, and commands that are wrong on purpose.
NOT_TO_BE_TYPED = {"commands.md", "mistakes.md"}
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    *(ROOT / "recipes").glob("README.md"),
    *(ROOT / "data").glob("README.md"),
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in NOT_TO_BE_TYPED),
]
PAGES = [page for page in PAGES if page.exists()]
APP = get_command(app)
STOPS = {"|", ">", ">>", "<", "&&", "||", ";", "&", "2>&1"}
SHELLS = ("bash", "sh", "console", "")


def blocks(page, *languages):
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
        if match[1] in languages:
            yield match[2]


def lines(page):
    """Yield each line with whether it is whole, as in a block; in a sentence parts may lack."""
    for block in blocks(page, *SHELLS):
        without_files = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", block, flags=re.M | re.S)
        yield from ((line, True) for line in without_files.replace("\\\n", " ").splitlines())
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    yield from ((code, False) for code in re.findall(r"`([^`\n]+)`", prose))


def words_of(line):
    """Return the words of the first simple command of a line."""
    words = shlex.split(line, comments=True)
    ends = [index for index, word in enumerate(words) if word in STOPS]
    # `[key=value ...]` says that it may be left out.
    return [
        word if re.search(r"=\[.*\]$", word) else word.strip("[]")  # a value may be a list
        for word in words[: min(ends, default=None)]
    ]


def typed():
    for page in PAGES:
        seen = set()
        for text, whole in lines(page):
            line = text.strip()
            if re.match(r"gptoss-tune [a-z]", line) and line not in seen:
                seen.add(line)
                yield pytest.param(line, whole, id=f"{page.name}: {line}")


def shipped_recipe(word):
    """Return the file of a recipe that is named by its path or by its name; else None."""
    if re.fullmatch(r"recipes/[\w./-]+\.yaml", word):
        return ROOT / word
    if re.fullmatch(r"(tiny|gpt-oss-20b|gpt-oss-120b)/[\w-]+", word):
        return ROOT / "recipes" / f"{word}.yaml"
    return None


@pytest.mark.parametrize("line, whole", typed())
def test_commands_are_taken(line, whole):
    """Parsed by the command itself; its recipe exists, and takes the settings laid over it."""
    _, name, *rest = words_of(line)
    assert name in APP.commands, f"`gptoss-tune {name}` is not a command"
    if rest:  # alone it is only named
        # A device is looked for when it is named.
        rest = ["cpu" if word == "cuda" else word for word in rest]
        try:
            APP.commands[name].make_context(name, rest)
        except typer.BadParameter as error:
            # A sentence names a command by what matters to it.
            assert not whole and type(error).__name__ == "MissingParameter", error.format_message()
    recipes = [file for word in rest if (file := shipped_recipe(word))]
    for recipe in recipes:
        assert recipe.is_file(), recipe
    settings = [word for word in rest if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+=.*", word)]
    if recipes and settings:
        load_recipe(recipes[0], first_run(settings)[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_of_accelerate_lines_and_scripts_exist(page):
    for line, _ in lines(page):
        if "accelerate launch" in line and "gptoss_tune.train" in line:
            words = words_of(line)
            for word in words:
                file = shipped_recipe(word)
                assert file is None or file.is_file(), f"{page.name}: {word}"
        for script in re.findall(r"(?:python|bash) ((?:kernels|data|src|docs)/[\w/.]+\.\w+)", line):
            assert (ROOT / script).exists(), f"{page.name}: {script}"


LEAST = {
    "model": {"name_or_path": "base"},
    "data": {"train": "rows.jsonl"},
    "train": {"output_dir": "run"},
}


def recipes():
    for page in PAGES:
        found = [*blocks(page, "yaml")]
        for block in blocks(page, "bash"):
            found += re.findall(r"^cat > \w+\.yaml <<'EOF'\n(.*?)^EOF$", block, flags=re.M | re.S)
        for number, block in enumerate(found):
            yield pytest.param(block, id=f"{page.name}-{number}")


@pytest.mark.parametrize("block", recipes())
def test_recipes_and_parts_of_them_load(block, tmp_path):
    part = yaml.safe_load(block)
    if not set(part) <= set(Recipe.model_fields):
        pytest.skip("no recipe")
    whole = {
        section: {**LEAST.get(section, {}), **part.get(section, {})} for section in {*LEAST, *part}
    }
    if not {"max_steps", "num_train_epochs"} & set(whole["train"]):
        whole["train"]["max_steps"] = 1
    # A block that is whole is read as it stands: its numbers and words are YAML of their own.
    text = block if set(LEAST) <= set(part) else json.dumps(whole)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_and_json_can_be_read(page):
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "json"):
        json.loads(block)
