"""``gptoss-tune evaluate`` on an adapter, a run and a merged folder of the same model."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.evaluate.lm_eval import lm_eval_command
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.recipe import recipe_yaml
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter


@pytest.fixture
def run(tuned, base, recipe, write_rows, references, tmp_path):
    """A folder as a finished run leaves it."""
    folder = tmp_path / "run"
    tuned.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    prompts = write_rows(
        "prompts.jsonl",
        {"prompt": "Capital of [bold]France[/]?", "answer": "Paris"},
        {"prompt": "2 + 2?"},
    )
    asked = recipe(
        f"evaluation.prompts={prompts}",
        "evaluation.max_new_tokens=3",
        f"evaluation.drift.references={references}",
        "evaluation.drift.max_references=1",
    )
    (folder / "recipe.yaml").write_text(recipe_yaml(asked), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"steps": 7, "base": {"name": str(base)}}))
    return folder


def evaluated(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "160"})
    if result.exit_code:
        raise result.exception
    evaluated.said = result.stderr
    return result.stdout


def test_run_adapter_and_merged_folder_answer_alike(run, base, tmp_path):
    recipe = run / "recipe.yaml"
    of_run = json.loads(evaluated(run, "--json", "--out", tmp_path / "out" / "report.json"))
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == of_run
    assert of_run["step"] == 7 and of_run["model"] == str(run)
    assert of_run["graded"] == {"passed": 0, "total": 1} and of_run["health"]["total"] == 2
    assert of_run["drift"]["kl"] > 0.001
    of_adapter = json.loads(evaluated(run / "adapter", "--recipe", recipe, "--json"))
    assert of_adapter["samples"] == of_run["samples"]
    assert of_adapter["drift"] == of_run["drift"]
    checkpoint = open_checkpoint(str(base))
    adapters = [WeightedAdapter(open_adapter(run, checkpoint))]
    merge(checkpoint, adapters, tmp_path / "merged", MergeOptions())
    of_merged = json.loads(
        evaluated(tmp_path / "merged", "--recipe", recipe, "--json", "evaluation.temperature=0")
    )
    assert [s["messages"] for s in of_merged["samples"]] == [
        s["messages"] for s in of_run["samples"]
    ]
    assert of_merged["drift"] is None
    shown = evaluated(run)
    for words in ("Capital of [bold]France[/]?", "wrong", "no end", "KL(base || tuned)", "lm_eval"):
        assert words in shown
    assert f"gptoss-tune merge {run} --format bf16" in shown
    with pytest.raises(RecipeError, match="nothing but the distance from a base"):
        evaluated(tmp_path / "merged", "--recipe", recipe, "evaluation.prompts=null",
                  "evaluation.max_new_tokens=512")  # fmt: skip


def test_prompts_are_put_at_the_runs_effort(run, base, tmp_path):
    def efforts(*arguments):
        report = json.loads(evaluated(run, "--json", "evaluation.max_new_tokens=1", *arguments))
        return {sample["effort"] for sample in report["samples"]}

    alone = tmp_path / "prompts.yaml"
    alone.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        f"data: {{train: {tmp_path / 'a.jsonl'}}}\n"
        f"evaluation: {{prompts: [{tmp_path / 'prompts.jsonl'}]}}\n"
        f"train: {{output_dir: {tmp_path / 'out'}, max_steps: 1}}\n"
    )
    record = json.loads((run / "run.json").read_text())
    record["recipe"] = {"data": {"reasoning_effort": "high"}}
    (run / "run.json").write_text(json.dumps(record))
    assert efforts("--recipe", alone) == {"high"}
    assert "reasoning effort high, as the run was trained" in evaluated.said
    assert "experts MXFP4, adapter" in evaluated.said and "of each of 8 prompts" in evaluated.said
    assert efforts("--recipe", alone, "--effort", "low") == {"low"}
    assert "as asked" in evaluated.said
    assert efforts("data.reasoning_effort=medium") == {"medium"}
    assert "as the recipe has it" in evaluated.said


def test_what_cannot_be_evaluated_says_what_to_do(run, base, tmp_path):
    with pytest.raises(RecipeError, match="--recipe FILE"):
        evaluated(run / "adapter")
    (tmp_path / "idle.yaml").write_text(
        f"model: {{name_or_path: {base}}}\ndata: {{train: a.jsonl}}\n"
        "train: {output_dir: runs/a, max_steps: 1}\n"
    )
    with pytest.raises(RecipeError, match="the evaluation section asks nothing"):
        evaluated(run, "--recipe", tmp_path / "idle.yaml")
    with pytest.raises(CheckpointError):
        evaluated(tmp_path / "nothing-here", "--recipe", run / "recipe.yaml")


def test_lm_evals_command_goes_through_the_chat_format():
    command = lm_eval_command("out/my model")
    assert "--model_args=pretrained=out/my model,dtype=bfloat16,think_end_token=200008'" in command
    for flag in ("--apply_chat_template", "--fewshot_as_multiturn", "max_gen_toks=4096"):
        assert flag in command
