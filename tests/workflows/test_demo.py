import pytest
import torch
from rich.console import Console

from gptoss_tune.errors import RecipeError
from gptoss_tune.workflows.demo import Judgement, _holds, run_demo


def test_a_folder_with_anything_else_in_it_is_not_cleared(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match=r"holds 'thesis\.tex', which no demo left there"):
        run_demo(tmp_path, Console(quiet=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "thesis.tex"]


def test_a_row_whose_router_tips_is_no_wrong_merge_and_a_lost_adapter_is():
    logits = torch.randn(24, 50, generator=torch.Generator().manual_seed(0))
    before = Judgement(14.0, 0.0, [], torch.zeros(24, 50))
    adapted = Judgement(0.3, 1.0, [], logits)
    tipped = logits + 1e-3
    tipped[8] += 1.0
    assert _holds(before, adapted, Judgement(0.3, 1.0, [], tipped))
    assert not _holds(before, adapted, Judgement(0.3, 1.0, [], logits * 1.2))
    assert not _holds(before, adapted, Judgement(14.0, 0.0, [], logits))
