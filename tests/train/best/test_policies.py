"""A figure of one policy chooses the best weights; one that no prompt gives is refused at once."""

from types import SimpleNamespace

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.recipe import DataSection
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.train.best.measured import refuse_unmeasured


def train(metric, setting="keep_best"):
    part = {"metric": metric} | ({"patience": 2} if setting == "early_stopping" else {})
    return TrainSection.model_validate({"output_dir": "run", "max_steps": 9, setting: part})


def asks(*policies, answer="1"):
    rows = [{"answer": answer, "grader": "policy", "policy": name} for name in policies]
    graders = [read_grader(row, "x:1") for row in [*rows, {"answer": "4"}]]
    questions = [SimpleNamespace(grader=grader, effort="low") for grader in graders]
    return SimpleNamespace(questions=questions, compared=frozenset())


def refuse(section, asked):
    refuse_unmeasured(section, DataSection(train="a.jsonl"), asked, None)


def test_a_policy_of_the_prompts_is_taken():
    for metric in ("eval_f1_spam", "eval_precision_off_topic", "eval_recall_macro", "eval_loss"):
        refuse(train(metric), asks("Spam", "off topic"))


@pytest.mark.parametrize("setting", ["keep_best", "early_stopping"])
def test_another_is_refused_with_those_that_there_are(setting):
    with pytest.raises(RecipeError, match=rf"^train\.{setting}\.metric: got eval_f1_spma, .*_spam"):
        refuse(train("eval_f1_spma", setting), asks("spam"))
    with pytest.raises(RecipeError, match="none, as no prompt has the grader policy"):
        refuse(train("eval_f1_macro", setting), asks())


def test_a_rate_of_rows_that_a_policy_has_none_of_is_refused():
    refuse(train("eval_recall_spam"), asks("spam"))
    refuse(train("eval_specificity_spam"), asks("spam", answer="0"))
    # A violation that is wrongly seen makes it a number.
    refuse(train("eval_f1_spam"), asks("spam", answer="0"))
    for rate, answer, what in (
        ("recall", "0", "a violation"),
        ("specificity", "1", "no violation"),
    ):
        for name in ("spam", "macro"):
            with pytest.raises(RecipeError, match=f"none, as no row of a policy expects {what}"):
                refuse(train(f"eval_{rate}_{name}"), asks("spam", answer=answer))
