"""What an observer of evaluations counts, without a model: figures go in, a record comes out."""

import json
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import TrainerControl

from gptoss_tune.train.best.selection import Selection


@pytest.fixture
def selection(recipe, asked, tmp_path):
    """Return a function from overrides to a selection that goes on from step 2 of its run."""
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    start = SimpleNamespace(checkpoint=tmp_path / "run" / "checkpoint-2", step=2)

    def make(*overrides):
        context = SimpleNamespace(
            recipe=recipe(f"evaluation.prompts={asked}", "evaluation.eval_steps=2", *overrides),
            run=tmp_path / "run",
            start=start,
            console=Console(quiet=True),
            stop=SimpleNamespace(stopped=False),
        )
        return Selection(context, ())  # pyright: ignore[reportArgumentType]

    return make


def look(selection, step, **figures):
    """Show a line of metrics."""
    state = SimpleNamespace(global_step=step, max_steps=9)
    selection.on_log(None, state, TrainerControl(), logs=figures)


NO_RATES = ["eval_f1_spam", "eval_f1_macro", "eval_precision_spam", "eval_safety_contradiction"]


@pytest.mark.parametrize("metric", NO_RATES)
def test_a_rate_with_nothing_to_divide_by_is_no_number(selection, metric):
    safety = "evaluation.safety.chain_of_thought=true"
    one = selection(f"train.keep_best={metric}", "train.max_steps=9", safety)
    look(one, 2, eval_abstained_spam=0.0)
    assert one.best.step == 0 and one.best.seen == 2
    look(one, 4, eval_abstained_spam=0.0, **{metric: 0.5})
    assert (one.best.step, one.best.value) == (4, 0.5)


@pytest.mark.parametrize(
    ("metric", "first"), [("eval_loss", 0), ("eval_graded", 2)], ids=["held-out", "answers"]
)
def test_a_best_step_has_all_its_figures_where_one_evaluation_was_owed(
    selection, held_out, metric, first
):
    overrides = (f"train.keep_best={metric}", "train.eval_steps=2", f"data.eval={held_out[0]}")
    whole, before, after = (selection(*overrides, "train.max_steps=9") for _ in range(3))
    answers, held = {"eval_graded": 1.0, "eval_health": 0.5}, {"eval_loss": 2.0}
    look(whole, 2, **answers)
    look(whole, 2, **held)
    look(before, 2, **answers)
    before.owe("held_out", TrainerControl())
    assert before.best.step == first
    after.load_state_dict(json.loads(json.dumps(before.state_dict())), first_rank=True)
    assert after.pay("held_out")
    look(after, 2, **held)
    assert after.at_best == whole.at_best == {"answers": answers, "held_out": held}


def test_a_state_without_the_latest_figures_is_read(selection, held_out):
    overrides = ("train.keep_best=eval_loss", "train.eval_steps=2", f"data.eval={held_out[0]}")
    before, after = (selection(*overrides, "train.max_steps=9") for _ in range(2))
    look(before, 2, eval_loss=2.0)
    state = before.state_dict()
    state.pop("latest", None)
    after.load_state_dict(state, first_rank=True)
    assert after.at_best == {"held_out": {"eval_loss": 2.0}} and after.best == before.best
