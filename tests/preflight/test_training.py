"""Before a run: every obstacle at once, each with its place; nothing written or downloaded."""

import importlib.util
import json
import os
import re

import pytest

from gptoss_tune.errors import DataError, MachineError, RecipeError
from gptoss_tune.preflight import machine
from gptoss_tune.preflight.training import look_before_training
from gptoss_tune.preflight.unusual import unusual_settings
from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.load import places
from gptoss_tune.shipped import shipped

GRPO = ("method.name=grpo", "method.max_new_tokens=64", "train.learning_rate=1e-5")


@pytest.fixture
def look(recipe_file, monkeypatch):
    """Return a function that looks at the recipe with overrides, on a machine without a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def look(*overrides, **options):
        recipe = load_recipe(recipe_file, overrides)
        where = places(recipe_file, overrides)
        return look_before_training("a.yaml", recipe, where, **options)

    return look


def test_a_sound_recipe_is_let_through_and_nothing_is_written(look, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert look() == []
    assert sorted(tmp_path.rglob("*")) == before


def test_all_obstacles_are_told_at_once_with_their_places(look, tmp_path, recipe_file):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RecipeError) as raised:
        look("data.train=no.jsonl", f"train.output_dir={tmp_path}", "lora.init_from=nowhere")
    first, *lines = str(raised.value).splitlines()
    assert first == "3 obstacles to a.yaml"
    assert [line.split(": ")[0].strip() for line in lines] == [
        "override 3",
        "override 1",
        "override 2",
    ]


def test_an_obstacle_of_the_file_has_its_line(look, recipe_file, rows):
    text = recipe_file.read_text()
    recipe_file.write_text(text.replace(str(rows), "no.jsonl"))
    number = next(n for n, line in enumerate(text.splitlines(), 1) if str(rows) in line)
    with pytest.raises(DataError, match=rf"recipe\.yaml:{number}:3: data\.train: no\.jsonl"):
        look()


def test_the_first_rows_are_read_as_the_method_reads_them(look, tmp_path):
    with pytest.raises(DataError, match=r"data\.train: .*:1: the row has no pair"):
        look("method.name=dpo")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text_of": 1}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: no known columns"):
        look(f"data.train={bad}")
    look(f"data.train={bad}", "data.on_error=skip")  # which may skip them all, and says so


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "5"},
        {"problem": "q", "answer": "5", "grader": "number"},
        {"instruction": "i", "output": "5", "answer": "5"},
        {"query": "q", "response": "5", "pattern": "5"},
        {"messages": [{"role": "user", "content": "q"}], "answer": "5"},
    ],
)
def test_prompts_of_grpo_are_read_in_each_format_that_an_episode_has(look, tmp_path, row):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert look(*GRPO, f"data.train={file}") == []


def test_what_grades_a_prompt_is_looked_at_where_it_is_rewarded(look, tmp_path, monkeypatch):
    (tmp_path / "till.py").write_text(
        "class Shop:\n"
        "    def reset(self, row, seed): return [{'role': 'user', 'content': str(row['count'])}]\n"
        "    def tools(self): return []\n"
        "    def reward(self, outcome): return 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "prompts.jsonl"
    grpo = (*GRPO, f"data.train={file}")
    file.write_text('{"count": 2, "prices": {"pear": 3}, "grader": "judge"}\n')
    assert look(*grpo, environment="till:Shop") == [], "the class asks, and judges by itself"
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: no known columns"):
        look(*grpo)
    file.write_text('{"prompt": "Say a.", "grader": "judge"}\n')
    assert look(*grpo, "method.rewards={format: 1}") == []
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: grader is 'judge'"):
        look(*grpo)
    file.write_text('{"prompt": "Say a."}\n')
    with pytest.raises(DataError, match="neither answer, pattern nor grader"):
        look(*grpo)
    file.write_text('{"q": "Say a.", "answer": "a"}\n')
    assert look(*GRPO, f"data.train=[{{path: {file}, columns: {{prompt: '{{{{q}}}}'}}}}]") == []
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(DataError, match=r"is a preference pair .*remove both answers") as raised:
        look(*grpo)
    assert "fine-tuning" not in str(raised.value)


def test_more_processes_than_gpus_are_refused_and_a_cpu_takes_any(look, tmp_path, monkeypatch):
    assert look("distributed.num_processes=2") == []
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\ncase "$*" in *query*) echo "GPU-0, [N/A], X, 24564";; esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(MachineError, match="got 2, a GPU for each, and this machine shows one"):
        look("distributed.num_processes=2")
    assert look("distributed.num_processes=2", launched=True) == [], "a launcher counts them"


def test_a_missing_library_is_named_with_its_extra(look, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        machine.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    with pytest.raises(MachineError, match=r"tracking\.wandb: offline needs wandb.*tune\[wandb\]"):
        look("tracking.wandb=offline")


def test_days_on_a_cpu_are_refused_before_a_download_and_may_be_meant(look, monkeypatch):
    monkeypatch.setattr("gptoss_tune.plan.machine.cpu.measured_rate", lambda: 1e10)
    large = ["model.name_or_path=openai/gpt-oss-20b", "train.max_steps=100000"]
    with pytest.raises(MachineError, match="No GPU here: this would take at least") as raised:
        look(*large)
    assert "--on-cpu" in str(raised.value)
    monkeypatch.setattr(
        "gptoss_tune.preflight.files.download", lambda *a: (_ for _ in ()).throw(DataError("asked"))
    )
    with pytest.raises(DataError, match="asked"):  # the way out leads to the Hub
        look(*large, on_cpu=True)


def test_names_of_changes_are_those_of_the_run_in_the_folder(look, tmp_path):
    with pytest.raises(RecipeError, match=r"'train\.seed': .* holds no run yet"):
        look(allow_change=["train.seed"])
    run = tmp_path / "run"
    run.mkdir()
    record = {"run_id": "x", "status": "stopped", "fingerprint": {"batch": 2}, "changes": []}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(RecipeError, match=r"'train\.lerning_rate': .*did you mean train\.le"):
        look(allow_change=["train.lerning_rate"])
    assert look(allow_change=["train.seed", "batch"]) == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.learning_rate=1", "train.learning_rate is 1, .*usual: 1e-5 to 1e-3"),
        ("train.learning_rate=1e-9", "hardly moves"),
        ("lora.alpha=4000", "lora.alpha is 4000 with lora.rank 4, a scaling of 1000"),
        ("train.warmup_ratio=0.7", "over half of the run"),
        ("train.weight_decay=5", "draws the adapters to zero"),
        ("train.gradient_accumulation_steps=60000", "120,000 rows a step"),
        ("train.save_steps=100", "the run has 4 steps: nothing is saved before its end"),
    ],
)
def test_settings_far_out_of_the_usual_are_told(look, override, told):
    found = look(override, on_cpu=True)
    assert len(found) == 1 and re.search(told, found[0]), found


def test_a_thousand_epochs_are_told(look):
    (told,) = look("train.max_steps=null", "train.num_train_epochs=1000")
    assert "learns rows by heart" in told


def test_no_shipped_recipe_is_unusual():
    for path in sorted(shipped("recipes").glob("*/*.yaml")):
        if path.parent.name == "accelerate":
            continue
        one = load_recipe(path)
        assert unusual_settings(one.model, one.lora, one.method, one.data, one.train) == [], path
