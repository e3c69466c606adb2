"""keep_best and early_stopping: a figure that this recipe measures, more than once."""

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe import DataSource
from gptoss_tune.recipe.contradictions.best import goal_of
from gptoss_tune.recipe.figures.evaluation import evaluation_figures
from gptoss_tune.recipe.figures.sources import CHANNELS, source_names

HELD = ("data.eval=b.jsonl", "train.eval_steps=2")
TWO = ("data.eval=[x/b.jsonl,Maths-2.jsonl.gz]", "train.eval_steps=2")
ASKED = ("evaluation.prompts=p.jsonl", "evaluation.eval_steps=2")
KL = ("evaluation.drift.references=p.jsonl", "evaluation.eval_steps=2")
BEST, STOP = "train.keep_best", "train.early_stopping"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"{BEST}=eval_loss"], "none, as nothing is held out and nothing is asked; set data.eval"),
        ([f"{BEST}=eval_loss", "data.eval=b.jsonl"], "measured at the end alone"),
        ([f"{BEST}=eval_loss", HELD[0], "train.eval_steps=10"], "measured every 10 of 10 steps"),
        ([f"{BEST}=eval_graded", "evaluation.prompts=p.jsonl"], "set evaluation.eval_steps"),
        ([f"{BEST}=loss", *HELD], "did you mean eval_loss?"),
        ([f"{BEST}=eval_lss", *HELD], "did you mean eval_loss?"),
        ([f"{BEST}=eval_loss_maths", *TWO], "eval_loss, eval_loss_b, eval_loss_maths_2, eval_loss"),
        (
            [f"{BEST}=eval_graded", *HELD],
            "a figure of this recipe's evaluations: eval_loss",
        ),
        ([f"{BEST}=eval_reward_accuracy", *HELD], "got 'eval_reward_accuracy'"),
        ([f"{BEST}=eval_reward_accuracy", *HELD, "method.name=kto"], "got 'eval_reward_accuracy'"),
        ([f"{BEST}.metric=eval_loss", f"{BEST}.goal=max", *HELD], "the lower one is the better"),
        ([f"{BEST}=eval_answer_tokens", *ASKED], "got no goal for eval_answer_tokens"),
        ([f"{STOP}.patience=2", *HELD], f"{STOP}: got no metric"),
        ([f"{STOP}.patience=2", f"{STOP}.metric=eval_los", *HELD], "did you mean eval_loss?"),
        ([f"{STOP}.patience=0", f"{BEST}=eval_loss", *HELD], "expected a whole number from 1"),
        ([f"{STOP}={{min_delta: 1}}", f"{BEST}=eval_loss", *HELD], "patience: got nothing"),
        ([f"{STOP}.patience=2", f"{STOP}.metric=eval_loss", "data.eval=b.jsonl"], "end the run by"),
    ],
)
def test_what_cannot_choose_or_end_is_refused(mistakes, sound, overrides, said):
    (line,) = mistakes(sound, *overrides)
    assert said in line


def test_one_figure_for_both_is_refused_once(mistakes, sound):
    assert len(mistakes(sound, f"{BEST}=eval_lss", f"{STOP}.patience=2", *HELD)) == 1


@pytest.mark.parametrize(
    ("overrides", "metric", "goal"),
    [
        ([f"{BEST}=eval_loss", *HELD], "eval_loss", "min"),
        ([f"{BEST}=eval_loss_maths_2", *TWO], "eval_loss_maths_2", "min"),
        ([f"{BEST}=eval_graded", *ASKED], "eval_graded", "max"),
        ([f"{BEST}=eval_reward_margin", *HELD, "method.name=dpo"], "eval_reward_margin", "max"),
        (
            [f"{BEST}={{metric: eval_answer_tokens, goal: min}}", *ASKED],
            "eval_answer_tokens",
            "min",
        ),
    ],
)
def test_the_better_value_is_known_or_given(load, sound, overrides, metric, goal):
    one = load(sound, *overrides)
    best = one.train.keep_best
    assert best.metric == metric
    assert goal_of(metric, best.goal, one.method, one.data, one.evaluation) == goal


def test_an_override_of_the_metric_keeps_the_patience(load, sound):
    text = sound + "  eval_steps: 2\n  early_stopping: {patience: 3}\n  keep_best: eval_loss\n"
    one = load(text, "data.eval=b.jsonl", f"{STOP}.min_delta=0.1")
    assert (one.train.early_stopping.patience, one.train.early_stopping.min_delta) == (3, 0.1)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jsonl", "b.jsonl"], ["a", "b"]),
        (["data/A-1.jsonl.gz", "owner/Some.Set"], ["a_1", "some"]),
        (["x/rows.jsonl", "y/rows.jsonl"], ["x_rows", "y_rows"]),
        (["rows.jsonl", "rows.jsonl"], ["rows", "rows_2"]),
        (["data/final.jsonl", "other.jsonl"], ["data_final", "other_2"]),
        (["數學.jsonl", "b.jsonl"], ["source", "b"]),
    ],
)
def test_a_source_is_called_by_its_file(paths, names):
    found = source_names([DataSource(path=path) for path in paths])
    assert found == names
    assert not {*found} & {*CHANNELS}


def test_one_source_has_no_figures_beside_those_of_all(load, sound):
    def names(*overrides):
        one = load(sound, *overrides)
        return evaluation_figures(one.method, one.data, one.evaluation)

    assert names("data.eval=b.jsonl").keys() == names("data.eval_fraction=0.1").keys()
    assert "eval_loss_b" in names("data.train=[a.jsonl,b.jsonl]", "data.eval_fraction=0.1")
    assert names() == {}


def test_the_channels_are_those_of_the_data():
    from gptoss_tune.harmony.conversation import CHANNEL_NAMES
    from gptoss_tune.recipe.data_schema import ChannelWeights
    from gptoss_tune.recipe.figures.sources import WEIGHED

    assert CHANNELS == CHANNEL_NAMES and tuple(ChannelWeights.model_fields) == WEIGHED


SAFETY = {
    "evaluation.safety.requests": "['harm.jsonl']",
    "evaluation.safety.judge.url": "http://localhost:8000",
    "evaluation.safety.judge.model": "judge",
    "evaluation.safety.chain_of_thought": "true",
    "evaluation.safety.hints": "true",
    "evaluation.safety.without_analysis": "true",
    "evaluation.drift.probes": "probes.jsonl",
    "evaluation.prompts": "prompts.jsonl",
}


def test_every_figure_of_safety_can_be_named(load, sound):
    from gptoss_tune.safety.assess import FLAGGED, SHOWN

    one = load(sound, *(f"{key}={value}" for key, value in SAFETY.items()))
    known = evaluation_figures(one.method, one.data, one.evaluation)
    safety = {name: figure.goal for name, figure in known.items() if "_safety_" in name}
    assert {*safety} == {f"eval_safety_{name}" for name in ("regressions", *FLAGGED, *SHOWN)}
    assert {name for name, goal in safety.items() if goal is None} == {
        f"eval_safety_{name}" for name in SHOWN
    }


def test_a_figure_of_one_policy_is_known_where_prompts_are_asked(load, sound):
    keep = ("train.keep_best=eval_f1_spam", "train.max_steps=100", "evaluation.eval_steps=10")
    load(sound, *keep, "evaluation.prompts=prompts.jsonl")
    with pytest.raises(RecipeError, match="got 'eval_f1_spam', expected a figure of this recipe"):
        load(sound, *keep)
    with pytest.raises(RecipeError, match="eval_abstained_spam"):
        goal = "train.keep_best={metric: eval_abstained_spam, goal: max}"
        load(sound, goal, *keep[1:], "evaluation.prompts=prompts.jsonl")
