"""The learning rate of every step is transformers' own, also of a run that was continued."""

import json
import math
from typing import get_args

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from gptoss_tune.recipe.schema.schedule import (
    ARGUMENTS,
    ScheduleArguments,
    ScheduleName,
    schedule_arguments,
)
from gptoss_tune.train.run import train

STEPS, WARMUP, RATE = 7, 2, 4e-3
CASES = {
    "linear": {},
    "cosine": {"num_cycles": 1.25},
    "cosine_with_min_lr": {"min_lr_rate": 0.25},
    "cosine_with_restarts": {"num_cycles": 2.0},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-3, "warmup_lr_rate": 0.5},
    "polynomial": {"lr_end": 1e-3, "power": 2.0},
    "inverse_sqrt": {"timescale": 3},
    "warmup_stable_decay": {
        **{"num_decay_steps": 3, "min_lr_ratio": 0.1},
        **{"decay_type": "1-sqrt", "warmup_type": "cosine"},
    },
    "constant": {},
    "constant_with_warmup": {},
}


def transformers_rates(name, arguments, warmup):
    """Return the rate of each step by the library alone."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=STEPS,
        scheduler_specific_kwargs=dict(arguments),
    )
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def logged(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["learning_rate"] for row in rows if "learning_rate" in row]


def overrides(name, folder):
    arguments = [f"train.lr_scheduler_kwargs.{key}={v}" for key, v in CASES[name].items()]
    warms = [] if name == "constant" else [f"train.warmup_steps={WARMUP}"]
    return [
        *(f"train.output_dir={folder}", f"train.learning_rate={RATE}", f"train.max_steps={STEPS}"),
        *(f"train.lr_scheduler_type={name}", *arguments, *warms),
    ]


def test_every_schedule_that_is_a_function_of_the_step_can_be_asked_for():
    from transformers.trainer_utils import SchedulerType

    by_measurement = {"reduce_lr_on_plateau", "greedy"}
    assert {one.value for one in SchedulerType} - by_measurement == {*get_args(ScheduleName)}
    assert {*CASES} == {*ARGUMENTS} == {*get_args(ScheduleName)}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_are_those_that_transformers_takes(name):
    import inspect

    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    function = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    own = {"optimizer", "last_epoch", "num_warmup_steps", "num_training_steps"}
    assert {*inspect.signature(function).parameters} - own == {*ARGUMENTS[name]}
    assert {*ARGUMENTS[name]} <= {*ScheduleArguments.model_fields}


def test_the_cases_are_curves_of_their_own():
    curves = {
        name: tuple(transformers_rates(name, arguments, 0 if name == "constant" else WARMUP))
        for name, arguments in CASES.items()
    }
    assert len({*curves.values()}) == len(curves)
    assert all(math.isfinite(rate) for curve in curves.values() for rate in curve)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "warmup_stable_decay" else pytest.mark.slow) for n in CASES],
)
def test_each_step_has_transformers_rate_and_a_continued_run_too(name, recipe, tmp_path):
    expected = transformers_rates(name, CASES[name], 0 if name == "constant" else WARMUP)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(*overrides(name, whole)))
    assert logged(whole) == pytest.approx(expected, rel=1e-12, abs=0)

    class Killed(BaseException):
        """Stands for a process that dies between two steps."""

    from gptoss_tune.train import sft

    original = sft.WeightedSftTrainer.log

    def dies_after_step_4(self, logs, start_time=None):
        original(self, logs, start_time)
        if self.state.global_step == 4:
            raise Killed

    saving = [*overrides(name, parts), "train.save_steps=3"]
    sft.WeightedSftTrainer.log = dies_after_step_4
    try:
        with pytest.raises(Killed):
            train(recipe(*saving))
    finally:
        sft.WeightedSftTrainer.log = original
    train(recipe(*saving))
    assert logged(parts) == logged(whole)


def test_the_trainer_is_given_the_arguments_alone_that_the_recipe_gives():
    given = ScheduleArguments(min_lr_rate=0.1)
    assert schedule_arguments(given) == {"min_lr_rate": 0.1}
    assert schedule_arguments(None) == {}
    assert TrainingArguments(output_dir="x", use_cpu=True, lr_scheduler_kwargs={})
