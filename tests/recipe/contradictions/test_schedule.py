"""Schedules of the learning rate: their arguments are checked before torch is imported."""

import pytest

from gptoss_tune.preflight.unusual import unusual_settings
from gptoss_tune.recipe.contradictions.schedule import stage_rules

TYPE, KWARGS = "train.lr_scheduler_type", "train.lr_scheduler_kwargs"
WSD = f"{TYPE}=warmup_stable_decay"
FLOOR = f"{TYPE}=cosine_with_min_lr"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"{TYPE}=cosine_with_min"], "did you mean cosine_with_min_lr?"),
        ([f"{TYPE}=reduce_lr_on_plateau"], "expected a schedule whose rate is a function of the"),
        ([f"{TYPE}=greedy"], "greedy follows a measured loss"),
        ([FLOOR], "got cosine_with_min_lr without min_lr and min_lr_rate"),
        ([f"{TYPE}=cosine_warmup_with_min_lr"], "without min_lr and min_lr_rate"),
        ([FLOOR, f"{KWARGS}.min_lr=1e-5", f"{KWARGS}.min_lr_rate=0.1"], "beside min_lr_rate 0.1"),
        ([FLOOR, f"{KWARGS}.min_lr=0.1"], "got 0.1 with learning_rate 0.0002"),
        ([FLOOR, f"{KWARGS}.min_lr_rate=2"], "expected a number from 0 to 1"),
        ([FLOOR, f"{KWARGS}.min_lr_rat=0.1"], f"did you mean {KWARGS}.min_lr_rate?"),
        ([f"{KWARGS}.power=2"], "got 2.0 with lr_scheduler_type cosine, expected one of its"),
        ([f"{KWARGS}.power=2"], f"remove it, or set {TYPE} to polynomial"),
        ([f"{TYPE}=linear", f"{KWARGS}.power=2"], "expected no arguments for it"),
        ([f"{TYPE}=polynomial", f"{KWARGS}.lr_end=0.1"], "got 0.1 with learning_rate 0.0002"),
        ([f"{TYPE}=polynomial", "train.learning_rate=1e-8"], "got 1e-07 with learning_rate 1e-08"),
        ([f"{TYPE}=cosine_with_restarts", f"{KWARGS}.num_cycles=1.5"], "a whole number of cosines"),
        ([WSD], "got warmup_stable_decay without num_decay_steps"),
        ([WSD, f"{KWARGS}.num_decay_steps=11"], "11 of a run of 10, expected stages that fit"),
        ([WSD, f"{KWARGS}.num_decay_steps=8", "train.warmup_ratio=0.25"], "8 steps after 3 of"),
        (
            [WSD, f"{KWARGS}.num_decay_steps=3", f"{KWARGS}.num_stable_steps=3"],
            "no step at rate 0, which trains nothing",
        ),
        ([WSD, f"{KWARGS}.num_decay_steps=3", f"{KWARGS}.warmup_type=linear"], "without a warm-up"),
        (
            [
                *(WSD, f"{KWARGS}.num_decay_steps=3"),
                *(f"{KWARGS}.decay_type=linear", f"{KWARGS}.num_cycles=1"),
            ],
            "got 1 with decay_type linear",
        ),
        ([f"{TYPE}=constant", "train.warmup_steps=1"], "a schedule that warms up"),
    ],
)
def test_what_a_schedule_cannot_take_is_refused(mistakes, sound, overrides, said):
    (line,) = mistakes(sound, *overrides)
    assert said in line


@pytest.mark.parametrize(
    "overrides",
    [
        [FLOOR, f"{KWARGS}.min_lr=0.0002"],
        [FLOOR, f"{KWARGS}.min_lr_rate=0"],
        [WSD, f"{KWARGS}.num_decay_steps=10"],
        [WSD, f"{KWARGS}.num_decay_steps=3", f"{KWARGS}.num_stable_steps=7"],
        [
            *(WSD, f"{KWARGS}.num_decay_steps=3", f"{KWARGS}.num_stable_steps=3"),
            f"{KWARGS}.min_lr_ratio=0.1",
        ],
        [f"{TYPE}=inverse_sqrt", f"{KWARGS}.timescale=5"],
        [f"{TYPE}=cosine_with_restarts", f"{KWARGS}.num_cycles=3"],
    ],
)
def test_what_it_can_take_is_kept(load, sound, overrides):
    train = load(sound, *overrides).train
    given = train.lr_scheduler_kwargs.model_dump(exclude_none=True)
    assert given and train.lr_scheduler_type in overrides[0]


def test_a_run_in_epochs_is_asked_when_its_steps_are_known(load, sound):
    text = sound.replace("max_steps: 10", "num_train_epochs: 1")
    train = load(text, WSD, f"{KWARGS}.num_decay_steps=11").train
    assert not list(stage_rules(train, 11))
    (found,) = stage_rules(train, 10)
    assert "raise train.num_train_epochs" in str(found)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([f"{TYPE}=constant"], True),
        ([f"{TYPE}=constant_with_warmup", "train.warmup_steps=1"], True),
        ([f"{KWARGS}.num_cycles=1"], True),
        ([FLOOR, f"{KWARGS}.min_lr_rate=1"], True),
        ([FLOOR, f"{KWARGS}.min_lr=2e-4"], True),
        ([WSD, f"{KWARGS}.num_decay_steps=3", f"{KWARGS}.min_lr_ratio=1"], True),
        ([WSD, f"{KWARGS}.num_decay_steps=3", f"{KWARGS}.num_cycles=1"], True),
        ([WSD, f"{KWARGS}.num_decay_steps=3", f"{KWARGS}.num_cycles=1.5"], False),
        ([f"{TYPE}=cosine_with_restarts", f"{KWARGS}.num_cycles=2"], False),
        ([FLOOR, f"{KWARGS}.min_lr_rate=0.1"], False),
        ([f"{TYPE}=inverse_sqrt"], False),
        ([], False),
    ],
)
def test_a_schedule_that_never_decays_is_told(load, sound, overrides, told):
    one = load(sound, *overrides)
    found = unusual_settings(one.model, one.lora, one.method, one.data, one.train)
    assert any(line.startswith(f"{TYPE} is") for line in found) == told
