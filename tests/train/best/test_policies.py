"""A figure of one policy chooses the best weights; one that no prompt gives is refused at once."""

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.train.best.policies import refuse_unknown_policies


def train(metric, setting="keep_best"):
    part = {"metric": metric} | ({"patience": 2} if setting == "early_stopping" else {})
    return TrainSection.model_validate({"output_dir": "run", "max_steps": 9, setting: part})


def graders(*policies):
    rows = [{"answer": "1", "grader": "policy", "policy": name} for name in policies]
    return [read_grader(row, "x:1") for row in [*rows, {"answer": "4"}]]


def test_a_policy_of_the_prompts_is_taken():
    for metric in ("eval_f1_spam", "eval_precision_off_topic", "eval_recall_macro", "eval_loss"):
        refuse_unknown_policies(train(metric), graders("Spam", "off topic"))


@pytest.mark.parametrize("setting", ["keep_best", "early_stopping"])
def test_another_is_refused_with_those_that_there_are(setting):
    with pytest.raises(RecipeError, match=rf"^train\.{setting}\.metric: got eval_f1_spma, .*_spam"):
        refuse_unknown_policies(train("eval_f1_spma", setting), graders("spam"))
    with pytest.raises(RecipeError, match="none, as no prompt has the grader policy"):
        refuse_unknown_policies(train("eval_f1_macro", setting), graders())
