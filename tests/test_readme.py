"""The README's recipe, first screen and table of commands; lines and links: tests/docs."""

import re
from pathlib import Path

from typer.main import get_command

from gptoss_tune.cli import app
from gptoss_tune.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = get_command(app).commands


def test_the_readmes_recipe_loads_and_keeps_its_held_out_rows_apart(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    data = load_recipe(tmp_path / "recipe.yaml").data
    assert data.eval is not None
    for source in (*data.train, *data.eval):
        assert (ROOT / source.path).is_file(), source.path
    assert not {s.path for s in data.train} & {s.path for s in data.eval}


def test_first_screen_is_short_and_has_the_commands():
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:24])
    for wanted in ("make demo", "make test", "accelerate launch -m gptoss_tune.train"):
        assert wanted in first_screen


def test_every_command_has_help_and_the_readme_names_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        assert command.help, name
        assert f"gptoss-tune {name}" in readme, f"README.md does not name `gptoss-tune {name}`"


def test_the_project_speaks_of_itself_alone():
    """No path of a machine it was made on, and no package index, in any tracked text."""
    words = re.compile("|".join(("/wo" + "rk/", "/fa" + "rm/", "pypi" + r"\.org/simple")))
    suffixes = {".py", ".md", ".yaml", ".toml", ".json", ".jsonl", ".html", ".txt", ""}
    for folder in ("src", "kernels", "tests", "recipes", "data", "."):
        pattern = "*" if folder == "." else "**/*"
        for path in (ROOT / folder).glob(pattern):
            if path.name == ".git" or not path.is_file():
                continue  # a linked working tree has a file of that name
            if path.suffix in suffixes and path.stat().st_size < 4_000_000:
                text = path.read_text(encoding="utf-8", errors="replace")
                assert not words.search(text), path
