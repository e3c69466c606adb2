"""What the recipes and docs/memory.md promise of cards is what the plan says."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.plan import plan
from gptoss_tune.recipe import Recipe, load_recipe
from gptoss_tune.shipped import shipped


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("gpt-oss-20b/qlora.yaml", "rtx4090-24gb"),
        ("gpt-oss-20b/qlora-12gb.yaml", "rtx3060-12gb"),
        ("gpt-oss-20b/qlora-16gb.yaml", "rtx4080-16gb"),
        ("gpt-oss-20b/qlora-128k.yaml", "h100-80gb"),
        ("gpt-oss-20b/lora.yaml", "h100-80gb"),
        ("gpt-oss-120b/qlora-80gb.yaml", "h100-80gb"),
        ("gpt-oss-120b/qlora.yaml", "rtxpro6000-96gb"),
        ("gpt-oss-20b/dpo.yaml", "rtx4090-24gb"),
        ("gpt-oss-20b/kto.yaml", "rtx4090-24gb"),
        ("gpt-oss-120b/dpo-80gb.yaml", "h100-80gb"),
        ("gpt-oss-20b/grpo.yaml", "l40s-48gb"),
        ("gpt-oss-20b/grpo-server.yaml", "rtx4090-24gb"),
        ("gpt-oss-120b/grpo-80gb.yaml", "h100-80gb"),
    ],
)
def test_shipped_recipes_fit_the_cards_they_are_meant_for(name, gpu):
    assert plan(load_recipe(shipped("recipes") / name), card(gpu)).fits


def test_the_peaks_in_the_documentation_are_those_of_the_plan():
    text = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = re.findall(r"\[`(gpt-oss-\S+)`\].*?\| ([\d.]+) GiB \|", text)
    assert len(rows) == 11
    for name, said in rows:
        made = plan(load_recipe(shipped("recipes") / name), card("h100-80gb"))
        assert made.memory.peak / 2**30 == pytest.approx(float(said), abs=0.06), name
    exact, small, nf4 = re.findall(r"^\| peak \| 13.97 \| (\S+) \| (\S+) \| (\S+) \|$", text, re.M)[
        0
    ]
    for precision, said in (("bf16", exact), ("int8", small), ("nf4", nf4)):
        recipe = load_recipe(shipped("recipes") / "gpt-oss-20b/qlora-12gb.yaml")
        recipe = recipe.with_settings({"model.linear_precision": precision})
        peak = plan(recipe, card("3060")).memory.peak / 2**30
        assert peak == pytest.approx(float(said), abs=0.006) and peak < 12.5
    (before,) = re.findall(r"with FSDP2: ([\d.]+) GiB with `gpt-oss-20b/dpo.yaml`", text)
    made = plan(load_recipe(shipped("recipes") / "gpt-oss-20b/dpo.yaml"), card("h100-80gb"))
    assert made.reference is not None
    assert made.reference.peak / 2**30 == pytest.approx(float(before), abs=0.06)
    by_length = re.findall(r"^\| `(\w+)`" + 4 * r" \| ([\d.]+)" + r" \|$", text, re.M)
    assert [mode for mode, *_ in by_length] == ["none", "selective", "full", "offload"]
    sparse = {"name_or_path": "openai/gpt-oss-20b"}
    for mode, *figures in by_length:
        for length, said in zip((4096, 16384, 32768, 131_072), figures, strict=True):
            recipe = Recipe.model_validate(
                {
                    "model": sparse,
                    "data": {"train": "a.jsonl", "max_length": length},
                    "train": {
                        "output_dir": "run",
                        "max_steps": 1,
                        "activation_checkpointing": mode,
                    },
                }
            )
            made = plan(recipe, card("h100-80gb"))
            assert made.memory.peak / 2**30 == pytest.approx(float(said), abs=0.06)


def test_what_the_guide_of_the_plan_shows_is_said(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("my.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for line in re.findall(r"^gptoss-tune .*$", text, re.M):
        if "plan" in line:
            result = CliRunner().invoke(app, [*shlex.split(line)[1:]])
            assert result.exit_code == 0, result.output
    words = ["plan", "gpt-oss-20b/qlora", "train.optim=adamw", "--gpu", "4080"]
    assert re.findall(r"^(to make it fit.*(?:\n  .*)+)\n```$", text, re.M) == [
        "\n".join(re.findall(r"^to make it fit.*|^  .* GiB  .* - .*", said, re.M))
        for said in [CliRunner().invoke(app, words).stdout]
    ]
    notes = []
    for override in ("data.eval=null", "train.max_steps=20"):
        load_recipe("gpt-oss-20b/qlora", [override], say=notes.append)
    assert "\n".join(notes) in text
