import pytest
from rich.console import Console

from gptoss_tune.demo import run_demo
from gptoss_tune.errors import RecipeError


def test_a_folder_with_anything_else_in_it_is_not_cleared(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match=r"holds 'thesis\.tex', which no demo left there"):
        run_demo(tmp_path, Console(quiet=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "thesis.tex"]
