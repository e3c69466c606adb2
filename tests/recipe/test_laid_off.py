"""What an override leaves of the file without effect goes back to its default, with one line."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.recipe import RecipeMistakes, load_recipe
from gptoss_tune.recipe.dump import by_name
from gptoss_tune.shipped import recipe_names

FULL = """\
model: {name_or_path: openai/gpt-oss-20b, revision: main}
lora: {expert_rank: 8}
method: {name: dpo, sft_weight: 0.1}
data: {train: a.jsonl, eval: b.jsonl, on_error: skip, max_errors: 5}
train:
  output_dir: runs/a
  num_train_epochs: 2
  warmup_ratio: 0.1
  eval_steps: 5
evaluation:
  prompts: p.jsonl
  max_new_tokens: 64
  max_analysis_tokens: 32
  drift: {probes: q.jsonl, max_probes: 9}
tracking: {wandb: offline, project: p}
distributed: {num_processes: 8, strategy: ddp}
"""

# One override -> the settings of the file that go back to their defaults, and no others.
LAID_OFF = {
    "data.eval=null": ["train.eval_steps"],
    "data.eval_fraction=0.1": ["data.eval"],
    "train.max_steps=100": ["train.num_train_epochs"],
    "train.max_steps=1": ["train.num_train_epochs", "train.warmup_ratio"],
    "train.warmup_steps=3": ["train.warmup_ratio"],
    "train.lr_scheduler_type=constant": ["train.warmup_ratio"],
    "method.name=orpo": ["method.sft_weight"],
    "method.name=ipo": [],
    "model.name_or_path=./base": ["model.revision"],
    "lora.target_parameters=[]": ["lora.expert_rank"],
    "data.on_error=stop": ["data.max_errors"],
    "evaluation.prompts=null": ["evaluation.max_analysis_tokens"],
    "evaluation.drift.probes=null": ["evaluation.drift.max_probes"],
    "evaluation.max_new_tokens=16": ["evaluation.max_analysis_tokens"],
    "tracking.wandb=disabled": ["tracking.project"],
    "distributed.num_processes=1": ["distributed.strategy"],
}


@pytest.mark.parametrize("override", LAID_OFF)
def test_only_what_has_no_effect_is_laid_off(tmp_path, override):
    file, said = tmp_path / "a.yaml", []
    file.write_text(FULL)
    before = by_name(load_recipe(file, say=said.append).model_dump())
    assert said == []
    after = by_name(load_recipe(file, [override], say=said.append).model_dump())
    key = override.partition("=")[0]
    changed = {name for name, value in before.items() if after.get(name, "") != value} - {key}
    # Each method has defaults of its own, which the file does not give.
    changed = {name for name in changed if name.rpartition(".")[2] in FULL}
    assert changed == set(LAID_OFF[override])
    assert len(said) == bool(changed), "one line for one override"
    for line in said:
        assert line.startswith(f"note: {override} lays off the recipe's ")
        assert all(name in line for name in changed)


def test_the_line_says_what_stood_where(tmp_path):
    file, said = tmp_path / "a.yaml", []
    file.write_text(FULL)
    load_recipe(file, ["train.max_steps=1", "distributed.num_processes=1"], say=said.append)
    assert said == [
        "note: train.max_steps=1 lays off the recipe's train.num_train_epochs: 2 (line 7) and "
        "train.warmup_ratio: 0.1 (line 8)",
        "note: distributed.num_processes=1 lays off the recipe's distributed.strategy: 'ddp' "
        "(line 16)",
    ]


@pytest.mark.parametrize(
    ("overrides", "mistake"),
    [
        (["data.eval=null", "train.eval_steps=3"], "train.eval_steps: got 3 without data"),
        (["train.max_steps=9", "train.num_train_epochs=1"], "train.max_steps: got 9 beside"),
        (["lora.merge_aware=true", "model.experts_precision=bf16"], "merge_aware: got true with"),
        (["method.name=orpo", "method.sft_weight=0.2"], "method.sft_weight: got an unknown key"),
        (["data.turns=last"], "data.turns: got last with method.name dpo"),
        (["data.eval=null", "train.sed=3"], "train.sed: got an unknown key"),
    ],
)
def test_an_override_is_never_laid_off_and_a_real_contradiction_is_a_mistake(
    tmp_path, overrides, mistake
):
    file, said = tmp_path / "a.yaml", []
    file.write_text(FULL)
    with pytest.raises(RecipeMistakes, match=mistake) as caught:
        load_recipe(file, overrides, say=said.append)
    assert said == [] and len(caught.value.mistakes) == 1


def test_what_the_file_alone_contradicts_is_a_mistake(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(FULL.replace("eval: b.jsonl, ", ""))
    for overrides in ([], ["train.seed=3"]):
        with pytest.raises(RecipeMistakes, match=r"a\.yaml:9:3: train\.eval_steps: got 5 without"):
            load_recipe(file, overrides)


def test_the_weights_of_the_file_are_not_laid_off_for_another_method(tmp_path):
    """They would train something else: that is for a person to decide."""
    file = tmp_path / "a.yaml"
    text = FULL.replace("method: {name: dpo, sft_weight: 0.1}\n", "")
    file.write_text(text.replace("on_error: skip, ", "too_long: truncate, on_error: skip, "))
    with pytest.raises(RecipeMistakes, match=r"data\.too_long: got truncate with method\.name dpo"):
        load_recipe(file, ["method.name=dpo"])


def rows_for(name):
    if name.endswith("kto"):
        return [{"prompt": "Two?", "completion": "2", "label": n % 2 == 0} for n in range(6)]
    if "dpo" in name:
        return [{"prompt": "Two?", "chosen": f"2.{n}", "rejected": "3"} for n in range(6)]
    user = {"role": "user", "content": "Two?"}
    return [{"messages": [user, {"role": "assistant", "content": f"2.{n}"}]} for n in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_one_s_own_rows_need_no_third_override(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps(row) + "\n" for row in rows_for(name))
    (tmp_path / "my.jsonl").write_text(rows)
    runner = CliRunner()
    mine = ("data.train=my.jsonl", "data.eval=null")
    result = runner.invoke(app, ["check", name, *mine])
    assert result.exit_code == 0, str(result.exception)
    assert "  eval: null\n" in result.stdout and "  train: my.jsonl " in result.stdout
    for other in (
        ("data.train=my.jsonl",),
        ("data.train=my.jsonl", "data.eval_fraction=0.2"),
        (*mine, "train.max_steps=1"),
        (*mine, "train.num_train_epochs=1"),
        (*mine, "distributed.num_processes=1"),
        (*mine, "evaluation.prompts=null"),
    ):
        result = runner.invoke(app, ["check", name, *other])
        assert result.exit_code == 0, str(result.exception)


@pytest.mark.parametrize("name", ["gpt-oss-20b/qlora", "gpt-oss-120b/dpo-80gb", "gpt-oss-20b/kto"])
def test_one_s_own_rows_are_read_by_the_data_s_commands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows_for(name)))
    words = ["check-data", name, "data.train=my.jsonl", "data.eval=null"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output + str(result.exception)
