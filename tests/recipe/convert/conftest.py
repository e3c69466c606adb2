"""Files of other tools in the current directory, and their conversion."""

import importlib.util
from pathlib import Path

import pytest

from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.convert import Options
from gptoss_tune.recipe.convert import convert as conversion_of

_spec = importlib.util.spec_from_file_location("convert_files", Path(__file__).parent / "files.py")
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a file of each kind, and the list of LLaMA-Factory's data sets."""
    monkeypatch.chdir(tmp_path)
    for name, text in files.FILES.items():
        (tmp_path / f"{name}.yml").write_text(text, encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(files.DATASET_INFO, encoding="utf-8")
    return tmp_path


@pytest.fixture
def convert(folder):
    """Convert a text, or one of the files by its name; the recipe is loaded as check does."""

    def run(source, **options):
        path = folder / "source.yml"
        path.write_text(files.FILES.get(source, source), encoding="utf-8")
        made = conversion_of("source.yml", Options(**options))
        (folder / "recipe.yaml").write_text(made.text, encoding="utf-8")
        assert load_recipe("recipe.yaml") == made.recipe
        return made

    return run
