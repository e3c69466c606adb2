"""Two gloo ranks find what one finds, with whole copies and with spread weights."""

import json
from pathlib import Path

import pytest
import torch

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.evaluator import Evaluator, figures
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.recipe import recipe_yaml
from gptoss_tune.weights import open_checkpoint


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 3, 5, 6])
def test_shares_are_of_one_size_and_come_back_in_order(size, total, monkeypatch):
    items = list(range(total))
    ranks = [Ranks() for _ in range(size)]
    for rank, one in enumerate(ranks):
        one.rank, one.size = rank, size
    shares = [rank.share(items) for rank in ranks]
    assert len({len(share) for share in shares}) == 1
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda out, mine: out.__setitem__(slice(None), shares),
    )
    assert ranks[0].ordered(shares[0], total) == items


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(
    tuned, recipe, write_rows, references, forked_python, tmp_path, base
):
    tuned.save_pretrained(str(tmp_path / "start"), save_embedding_layers=False)
    prompts = write_rows(
        "prompts.jsonl", *[{"prompt": "Why? " * n, "pattern": "a"} for n in (1, 30, 3)]
    )
    asked = recipe(
        f"lora.init_from={tmp_path / 'start'}",
        f"evaluation.prompts={prompts}",
        "evaluation.max_new_tokens=4",
        "evaluation.batch_size=1",
        f"evaluation.drift.references={references}",
        f"evaluation.drift.probes={prompts}",
        "evaluation.drift.max_probes=1",
        "evaluation.drift.reasoning=true",
    )
    (tmp_path / "asked.yaml").write_text(recipe_yaml(asked), encoding="utf-8")
    script = Path(__file__).with_name("evaluate_on_ranks.py")
    ended = forked_python([script, tmp_path / "asked.yaml", tmp_path / "found.json"], ranks=2)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.pop("whole, stopped") and found.pop("spread, stopped")
    model = build(asked, open_checkpoint(str(base)), "cpu").model
    evaluator = Evaluator(
        asked.evaluation, asked.data, load_vocabulary(base), seed=asked.train.seed
    )
    expected = evaluator.run(model, step=0, device=torch.device("cpu"))
    assert expected["drift"]["kl"] > 0.001
    assert found.keys() == {"whole", "spread"}
    for report in found.values():
        assert report["samples"] == expected["samples"]
        # Sums over the ranks in another order.
        assert figures(report) == pytest.approx(figures(expected), rel=1e-5)
