"""The learning rate's schedule, the best checkpoint and early stopping, in transformers' words.

The three tools hand the schedule and its arguments to transformers, as is done here. What there
loads the best checkpoint at the end publishes it here; a figure that no evaluation of the recipe
gives, or that is measured at the end alone, is told instead.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final

from gptoss_tune.recipe.convert.draft import Draft, switch
from gptoss_tune.recipe.convert.draft_rules import as_number, count_of
from gptoss_tune.recipe.schema.schedule import ARGUMENTS, BY_MEASUREMENT

_KWARGS, _SETTING = "lr_scheduler_kwargs", "train.lr_scheduler_type"
_NEEDED: Final = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""Schedules that cannot be without one of these arguments."""
_OF_WARMUP: Final = ("warmup_lr_rate", "warmup_type")
_COUNTS: Final = ("timescale", "num_decay_steps", "num_stable_steps")
_FIGURES: Final = {
    "loss": "eval_loss",
    "eval_loss": "eval_loss",
    "rewards/accuracies": "eval_reward_accuracy",
    "eval_rewards/accuracies": "eval_reward_accuracy",
    "rewards/margins": "eval_reward_margin",
    "eval_rewards/margins": "eval_reward_margin",
}
"""Figures of the other tools' evaluations that are figures here."""
_PATIENCE: Final = ("early_stopping_patience", "early_stopping_steps")


def schedule(draft: Draft, key: str, usual: str) -> None:
    """Convert the schedule of the learning rate, its arguments, and its warm-up."""
    _read_text(draft)
    ratio, steps = as_number(draft.get("warmup_ratio", 0)), count_of(draft.get("warmup_steps", 0))
    warms = bool(ratio or steps)
    name = _name(draft, key, usual, warms=warms)
    _arguments(draft, name, warms=warms)
    if draft.has("warmup_steps"):
        if name == "constant" or not steps:
            draft.irrelevant("warmup_steps", "nothing warms up")
        elif isinstance(steps, float) and 0 < steps < 1:  # transformers 5: a share
            draft.converted("warmup_steps", "train.warmup_ratio", steps)
        else:
            draft.converted("warmup_steps", "train.warmup_steps", steps)
    if draft.has("warmup_ratio"):
        if name == "constant" or not ratio:
            draft.irrelevant("warmup_ratio", "nothing warms up")
        elif steps:
            draft.irrelevant("warmup_ratio", "warmup_steps decides, there as here")
        else:
            draft.converted("warmup_ratio", "train.warmup_ratio", ratio)


def _name(draft: Draft, key: str, usual: str, *, warms: bool) -> str:
    """Convert the schedule's name, and return what it is here."""
    said, given = draft.get(key), _given(draft)
    lowest = as_number(draft.get("cosine_min_lr_ratio"))  # Axolotl's
    name = usual if said is None else said
    if name == "cosine" and isinstance(lowest, int | float) and lowest > 0:
        name = "cosine_with_min_lr"
        if said is None:
            draft.default(_SETTING, name)
        else:
            draft.converted(key, _SETTING, name, "with cosine_min_lr_ratio")
        draft.converted("cosine_min_lr_ratio", f"train.{_KWARGS}.min_lr_rate", lowest)
        return name
    if said is None:
        draft.default(_SETTING, usual)
    elif said == "constant_with_warmup" and not warms:
        name = "constant"
        draft.converted(key, _SETTING, name, "there is no warm-up")
    elif said in ARGUMENTS and (
        said not in _NEEDED or any(given.get(argument) is not None for argument in _NEEDED[said])
    ):
        draft.converted(key, _SETTING, said)
    else:
        name = "cosine"
        reason = f"{_SETTING}: {name}, the nearest"
        if said in BY_MEASUREMENT:
            reason += "; a rate is a function of the step here"
        elif said in _NEEDED:
            reason += f"; {said} needs {' or '.join(_NEEDED[said])}"
        draft.none(key, reason)
        draft.settings.pop(_SETTING, None)
        draft.default(_SETTING, name)
    if draft.has("cosine_min_lr_ratio"):
        draft.irrelevant("cosine_min_lr_ratio", f"not of the schedule {name}")
    return name


def _read_text(draft: Draft) -> None:
    """Read arguments that are written as a JSON text, which transformers takes too."""
    said = draft.get(_KWARGS)
    if isinstance(said, str) and said.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):  # told as what it is
            draft.document.values[_KWARGS] = json.loads(said)


def _given(draft: Draft) -> dict[str, Any]:
    found = draft.get(_KWARGS)
    return found if isinstance(found, dict) else {}


def _arguments(draft: Draft, name: str, *, warms: bool) -> None:
    """Convert the arguments that the schedule takes, one by one."""
    if draft.has(_KWARGS) and not isinstance(draft.get(_KWARGS), dict):
        draft.none(_KWARGS, f"write its names and values under train.{_KWARGS}")
        return
    for argument, value in _given(draft).items():
        path, setting = (_KWARGS, argument), f"train.{_KWARGS}.{argument}"
        if value is None:
            draft.irrelevant(path, "not set")
        elif argument not in ARGUMENTS[name]:
            draft.none(path, f"{name} has no such argument")
        elif setting in draft.settings:
            draft.irrelevant(path, "cosine_min_lr_ratio decides")
        elif argument in _OF_WARMUP and not warms:
            draft.irrelevant(path, "nothing warms up")
        else:
            draft.converted(
                path, setting, count_of(value) if argument in _COUNTS else as_number(value)
            )


def best(draft: Draft) -> None:
    """Convert what is done with the best checkpoint; called when evaluations are converted."""
    keeps = draft.has("load_best_model_at_end") and switch(draft.get("load_best_model_at_end"))
    patience = next((key for key in _PATIENCE if draft.has(key)), None)
    said = draft.get("metric_for_best_model", "loss")
    metric = _FIGURES.get(said) if isinstance(said, str) else None
    obstacle = _obstacle(draft, metric, said)
    keys = [
        *(("load_best_model_at_end",) if draft.has("load_best_model_at_end") else ()),
        *(key for key in _PATIENCE if draft.has(key)),
    ]
    if metric is not None and obstacle is None:
        if keeps:
            draft.converted("load_best_model_at_end", "train.keep_best", metric)
            keys.remove("load_best_model_at_end")
        elif _keeps_unasked(draft):
            keeps = True
            draft.default("train.keep_best", metric)
        waited = None if patience is None else count_of(draft.get(patience))
        if patience is not None and isinstance(waited, int) and waited > 0:
            draft.converted(patience, "train.early_stopping.patience", waited)
            if not keeps:
                draft.default("train.early_stopping.metric", metric)
            keys.remove(patience)
    for key in keys:
        value = draft.get(key)
        if not switch(value):
            draft.irrelevant(key, "switched off there, and not done here")
        elif obstacle is not None:
            draft.none(key, obstacle)
        else:
            draft.irrelevant(key, f"{patience} decides" if patience != key else "not above 0")
    for key in ("metric_for_best_model", "greater_is_better"):
        if not draft.has(key):
            continue
        if not (keeps or patience):
            draft.irrelevant(key, "no best checkpoint is asked for")
        elif obstacle is not None:
            draft.none(key, obstacle)
        elif key == "metric_for_best_model":
            draft.also(key, f"the figure: {metric}")
        else:
            draft.irrelevant(key, f"which way {metric} is better is known")


def _keeps_unasked(draft: Draft) -> bool:
    """Whether Axolotl loads the best checkpoint although its file does not say so.

    It does where rows are held out and every saved step is an evaluated one.
    """
    save, every = (count_of(draft.get(key)) for key in ("save_steps", "eval_steps"))
    whole = all(isinstance(one, int) and one > 0 for one in (save, every))
    written = {"train.eval_steps", "train.save_steps"} <= draft.settings.keys()
    silent = not draft.has("load_best_model_at_end")
    return draft.tool == "Axolotl" and silent and written and whole and save % every == 0


def _obstacle(draft: Draft, metric: str | None, said: object) -> str | None:
    """Return why no checkpoint can be chosen by a figure; ``None`` where one can be."""
    every, steps = draft.settings.get("train.eval_steps"), draft.settings.get("train.max_steps")
    if metric is None:
        return f"no figure here is {said!s:.60}: 'train.keep_best' lists those there are"
    if metric != "eval_loss" and "method.name" not in draft.settings:
        return f"{metric} is a figure of preferences"
    if every is None:
        return "needs evaluations on the way: set train.eval_steps, then train.keep_best"
    if steps is not None and isinstance(steps.value, int) and every.value >= steps.value:
        return "there is one evaluation, at the end: lower train.eval_steps, then set keep_best"
    return None
