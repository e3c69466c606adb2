"""What a run publishes: the best evaluated weights, where there are any."""

import json
import math

import pytest
from safetensors.torch import load_file

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.train.run import train
from gptoss_tune.train.trainer import MethodTrainer

WEIGHTS = "adapter_model.safetensors"


def record(run):
    return json.loads((run / "run.json").read_text())


def same(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


def training_rows(facts):
    """Return the rows of the model card's table that tell of the published step."""
    from gptoss_tune.export.hub.card_results import chosen_words, stopped_words

    return {"the adapter is of": chosen_words(facts), "stopped early": stopped_words(facts)}


@pytest.fixture
def few(overfitting):
    """The overfitting run without its early end, and with one checkpoint in three steps."""
    kept = [one for one in overfitting if "early_stopping" not in one and "save_steps" not in one]
    return lambda steps: (
        [one for one in kept if "max_steps" not in one] + [f"train.max_steps={steps}"]
    )


def test_the_best_checkpoint_is_published_and_kept_although_nothing_else_is_saved(
    recipe, few, tmp_path, capsys
):
    run = tmp_path / "run"
    summary = train(recipe(*few(5)))
    assert [p.name for p in run.glob("checkpoint-*")] == ["checkpoint-3"]
    assert same(run / "adapter" / WEIGHTS, run / "checkpoint-3" / WEIGHTS)
    assert json.loads((run / "adapter" / "manifest.json").read_text())["step"] == 3
    best = record(run)["best"]
    assert best["step"] == 3 and best["value"] == best["figures"]["eval_loss"]
    assert summary.eval_loss == record(run)["eval_loss"] == best["value"]
    said = " ".join(capsys.readouterr().out.split())
    assert "best: eval_loss 11.4472 at step 3 of 5, which the adapter holds" in said
    page = (run / "report.html").read_text()
    assert "is the adapter: best eval_loss, 11.45" in page
    assert "Held-out loss by source" in page and "words_1" in page
    row = training_rows(record(run))
    assert row["the adapter is of"] == "step 3, the best by `eval_loss`: 11.45"


def test_the_last_weights_are_published_where_they_are_the_best(recipe, few, tmp_path):
    run = tmp_path / "run"
    train(recipe(*few(3)))
    assert record(run)["best"]["step"] == 3
    assert json.loads((run / "adapter" / "manifest.json").read_text())["step"] == 3
    assert not same(run / "adapter" / WEIGHTS, run / "checkpoint-1" / WEIGHTS)


def test_nan_is_never_the_best(recipe, few, tmp_path, monkeypatch):
    original = MethodTrainer.read_losses

    def no_number(self, mode):
        found = original_of(self, mode)
        return {**found, "mean_loss": math.nan} if mode == "eval" else found

    from gptoss_tune.train.sft import WeightedSftTrainer

    original_of = WeightedSftTrainer.read_losses
    assert original is not original_of
    monkeypatch.setattr(WeightedSftTrainer, "read_losses", no_number)
    run = tmp_path / "run"
    train(recipe(*few(2)))
    assert record(run)["best"]["step"] is None and not list(run.glob("checkpoint-*"))
    assert json.loads((run / "adapter" / "manifest.json").read_text())["step"] == 2


def test_a_figure_that_is_missing_all_the_same_ends_the_run_at_its_first_evaluation(
    recipe, few, monkeypatch
):
    monkeypatch.setattr("gptoss_tune.train.run.refuse_unmeasured", lambda *_: None)
    other = [one for one in few(3) if "keep_best" not in one]
    with pytest.raises(RecipeError, match="at step 1 gives no eval_loss_commentary; it has eval_"):
        train(recipe(*other, "train.keep_best=eval_loss_commentary"))


def test_a_run_in_epochs_that_measures_at_its_end_alone_is_refused_before_its_weights(
    recipe, few, tmp_path
):
    epochs = [one for one in few(3) if "max_steps" not in one and "eval_steps" not in one]
    # Six rows, two a step.
    epochs += ["train.max_steps=null", "train.num_train_epochs=1"]
    with pytest.raises(RecipeError, match=r"train.keep_best: got eval_loss, .* every 3 of 3 steps"):
        train(recipe(*epochs, "train.eval_steps=3"))
    stopping = "train.early_stopping={patience: 1, metric: eval_loss_maths}"
    other = [one for one in epochs if "keep_best" not in one]
    with pytest.raises(RecipeError, match=r"early_stopping.*, measured every 9 of 3 steps"):
        train(recipe(*other, "train.eval_steps=9", stopping))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_policy_that_no_prompt_has_ends_the_run_before_its_weights(recipe, asked, tmp_path):
    choice = ("evaluation.eval_steps=1", "train.max_steps=3", "train.keep_best=eval_f1_spam")
    with pytest.raises(RecipeError, match="no prompt has the grader policy"):
        train(recipe(f"evaluation.prompts={asked}", *choice))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_answers_choose_too(recipe, asked, tmp_path):
    run = tmp_path / "run"
    train(
        recipe(
            *("train.max_steps=3", f"evaluation.prompts={asked}", "evaluation.eval_steps=1"),
            *("evaluation.max_new_tokens=4", "train.keep_best=eval_health"),
            "train.early_stopping={patience: 1, metric: eval_graded}",
        )
    )
    found = record(run)
    # No tiny model answers: all values are equal, so the first stays the best and nothing is won.
    assert found["best"]["step"] == 1 and found["steps"] == 2
    assert found["early_stopping"]["stopped"] and found["evaluation"]["step"] == 1
    assert [p.name for p in (run / "evaluation").iterdir()].count("step-2.json") == 1


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_is_not_passed_over(recipe, few, tmp_path):
    import shutil

    run = tmp_path / "run"
    train(recipe(*few(5), "train.save_steps=4"))
    facts = record(run)
    facts["status"] = "stopped"
    (run / "run.json").write_text(json.dumps(facts))
    shutil.rmtree(run / "checkpoint-3")
    with pytest.raises(CheckpointError, match="names checkpoint-3 as the best by eval_loss, and"):
        train(recipe(*few(5), "train.save_steps=4"))


@pytest.mark.slow
def test_another_figure_is_a_change_and_begins_anew(recipe, few, tmp_path):
    run = tmp_path / "run"
    train(recipe(*few(5), "train.save_steps=4"))
    facts = record(run)
    facts["status"] = "stopped"
    (run / "run.json").write_text(json.dumps(facts))
    other = [one for one in few(5) if "keep_best" not in one]
    other = recipe(*other, "train.save_steps=4", "train.keep_best=eval_loss_words_1")
    with pytest.raises(RecipeError, match=r"train.keep_best: eval_loss \(min\) every 1 steps"):
        train(other)
    train(other, allow_change=["train.keep_best"])
    assert record(run)["best"]["metric"] == "eval_loss_words_1"
    assert record(run)["best"]["step"] == 5  # the only evaluation that counts from step 4 on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "each"), [("ddp", 1), ("fsdp2", 1), ("ddp", 2)], ids=["ddp", "fsdp2", "context"]
)
def test_two_processes_choose_and_stop_alike(
    strategy, each, write_recipe, overfitting, forked_python, left, tmp_path
):
    """Of both ranks the same weights, the ones of the checkpoint, and one end."""
    code = (
        "import sys; from gptoss_tune.recipe import load_recipe; "
        "from gptoss_tune.train.run import train; "
        "train(load_recipe(sys.argv[1], sys.argv[2:]))"
    )
    batch = [f"train.per_device_train_batch_size={each}", "distributed.num_processes=2"]
    if each == 2:  # of which each process has a part
        batch.append("distributed.context_parallel=2")
    ended = forked_python(
        ["-c", code, write_recipe(tmp_path), *overfitting, *batch],
        ranks=2,
        ACCELERATE_USE_FSDP=str(strategy == "fsdp2").lower(),
        FSDP_VERSION="2",
    )
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "run"
    found = left(run)
    assert (found["steps"], found["step"]) == (5, 3)
    assert same(run / "adapter" / WEIGHTS, run / "checkpoint-3" / WEIGHTS)
    line = found["lines"][3, "eval_loss"]
    parts = [(line[f"eval_loss_{n}"], line[f"eval_weight_{n}"]) for n in ("maths", "words_1")]
    mean = sum(loss * weight for loss, weight in parts) / sum(weight for _, weight in parts)
    assert line["eval_loss"] == pytest.approx(mean, rel=1e-12)
