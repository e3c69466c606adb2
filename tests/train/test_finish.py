"""The page that a run leaves: at its end, and when the guard stops it."""

import json
import re

import pytest
import torch

from gptoss_tune.errors import GuardError
from gptoss_tune.train import run as run_module
from gptoss_tune.train.run import train


def test_a_run_leaves_its_page_with_the_plan_held_against_it(recipe, tmp_path):
    train(recipe("train.save_steps=2"))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert ">finished</span>" in page
    rows = dict(
        re.findall(r'<th scope="row">([^<]*)</th><td>[^<]*</td><td>[^<]*</td><td>([^<]*)<', page)
    )
    assert rows["parameters trained"] == "1.000"
    for name in ("base and adapters, resident", "adapter file"):
        assert float(rows[name]) == pytest.approx(1, abs=0.08), name
    # The plan's allowance for small files is a quarter of so small a checkpoint.
    assert float(rows["one checkpoint"]) == pytest.approx(1, abs=0.3)
    assert rows["peak memory"].startswith("not comparable")
    for title in ("Gradient norm by layer: experts", "Expert load at step 4", "Learning rate"):
        assert f"<h3>{title}</h3>" in page


def test_a_run_that_the_guard_stops_leaves_a_page_with_the_reason(recipe, tmp_path, monkeypatch):
    build = run_module._model

    def broken(*args):
        model = build(*args)
        (weight,) = (
            p for n, p in model.named_parameters() if "layers.1.self_attn.v_proj.lora_B" in n
        )
        weight.register_hook(torch.zeros_like)
        return model

    monkeypatch.setattr(run_module, "_model", broken)
    with pytest.raises(GuardError):
        train(recipe())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The guard stopped this run." in page
    assert "layers.1.self_attn.v_proj.lora_B.default.weight got no gradient" in page


@pytest.mark.parametrize(("size", "rate"), [(8, 5e-3), (3, 0.0)], ids=["one step", "two steps"])
def test_a_share_of_few_steps_leaves_the_last_one_its_full_rate(recipe, tmp_path, size, rate):
    """Six rows in one epoch: rounded up, a warm-up of 0.6 of the steps would be all of them."""
    train(
        recipe(
            "train.num_train_epochs=1",
            "train.warmup_ratio=0.6",
            f"train.per_device_train_batch_size={size}",
        )
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [row["learning_rate"] for row in map(json.loads, lines) if "loss" in row]
    assert rates == ([rate] if size == 8 else [rate, 5e-3])
