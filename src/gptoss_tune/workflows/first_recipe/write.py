"""Answers to a few questions -> a short recipe whose plan fits, as text; nothing is written here.

A recipe holds what differs from the defaults, each line with its reason. The same answers and the
same data give the same text.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.plan.architecture import RELEASED, architecture_of
from gptoss_tune.plan.plan import Plan
from gptoss_tune.recipe.dump import Noted, short_yaml
from gptoss_tune.workflows.first_recipe.fit import Fitted, Machine, fit
from gptoss_tune.workflows.first_recipe.goals import settings_for
from gptoss_tune.workflows.first_recipe.sizes import held_out_share

if TYPE_CHECKING:
    from gptoss_tune.harmony.vocabulary import Vocabulary
    from gptoss_tune.workflows.first_recipe.look import DataLook

MODELS = {name.removeprefix("openai/gpt-oss-"): name for name in RELEASED}
"""The released models by their short names: ``20b``, ``120b``, ``safeguard-20b`` ..."""
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out data: the settings that say so, and the share of the training rows that it takes."""

    settings: dict[str, Noted]
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What a person says of a run.

    Attributes:
        model: One of ``MODELS``, a name on the Hub or a checkpoint's folder.
        machine: The cards.
        look: The data, read.
        goal: One of ``goals.GOALS``.
        held_out: What is held out of the data, or beside them.
        name: Of the run: its folder below ``runs/``.
    """

    model: str
    machine: Machine
    look: DataLook
    goal: str
    held_out: HeldOut
    name: str = "first"


@dataclass(frozen=True, slots=True)
class FirstRecipe:
    """A recipe's text, and what it rests on.

    Attributes:
        text: YAML.
        plan: Of the recipe in the text.
        output_dir: Where its run will be.
        dropped_over: Tokens over which samples are left out; ``None``: none are.
    """

    text: str
    plan: Plan
    output_dir: str
    dropped_over: int | None


def model_of(text: str) -> str:
    """Return the base that a short name, a name or a folder means.

    Raises:
        RecipeError: It is none that is known here.
        CheckpointError: The folder is no gpt-oss checkpoint.
    """
    name = MODELS.get(text.strip().lower().removeprefix("gpt-oss-"), text.strip())
    try:
        architecture_of(name)
    except RecipeError:
        raise RecipeError(
            f"--model: got {text!r}; expected {', '.join(MODELS)}, or a folder with the checkpoint "
            "of a gpt-oss model"
        ) from None
    return name


def first_recipe(answers: Answers) -> FirstRecipe:
    """Return the recipe of some answers.

    Raises:
        DataError: The data cannot serve the goal.
        MachineError: Nothing fits the cards.
    """
    look, base = answers.look, model_of(answers.model)
    output_dir = free_run(answers.name)
    known = {
        "model.name_or_path": Noted(base),
        "data.train": Noted([look.source], _about_columns(look)),
        **answers.held_out.settings,
        **settings_for(answers.goal, look),
        "train.output_dir": Noted(output_dir),
    }
    fitted = fit(known, look, answers.machine, answers.held_out.share)
    text = short_yaml(known | fitted.settings, [_heading(answers, base, fitted)])
    return FirstRecipe(text, fitted.plan, output_dir, fitted.dropped_over)


def run_name(data: str) -> str:
    """Return a name for a run by its data's: letters, digits, and what stands between them."""
    name = re.split(r"[/\\]", data.rstrip("/\\"))[-1].split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_").lower() or "first"


def free_run(name: str) -> str:
    """Return a folder for a run that holds none: ``runs/NAME``, else with a number behind it."""
    for number in range(1, 1000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists() or (folder.is_dir() and not os.listdir(folder)):
            return folder.as_posix()
    raise RecipeError(f"runs/{name} and its next 998 names are taken; give another --out")


def held_out_of(text: str, look: DataLook, vocabulary: Vocabulary) -> HeldOut:
    """Return what ``auto``, ``none``, a share such as ``0.05`` or a file holds out.

    Raises:
        RecipeError: The share is none.
        DataError: The file cannot be read, or its rows are of another kind.
    """
    from gptoss_tune.workflows.first_recipe.look import look_at

    said = text.strip()
    share = held_out_share(look) if said == "auto" else _share(said)
    if share is not None:
        rows = max(1, round(share * look.count))
        why = f"about {rows:,} rows are held out, drawn by the seed; the file stays as it is"
        return HeldOut({"data.eval_fraction": Noted(share, why)}, share)
    if said in ("auto", "none"):
        return HeldOut({})
    said = os.path.expanduser(said)
    if os.path.exists(said) and os.path.exists(look.path) and os.path.samefile(said, look.path):
        raise DataError(
            f"{said}: is what is trained on, of which nothing is then held out; give another file, "
            "or a share such as 0.05"
        )
    held = look_at(said, vocabulary)
    if held.rows != look.rows:
        raise DataError(
            f"{said}: its rows are of another kind ({held.format}) than those of {look.path} "
            f"({look.format}); give held-out rows in the same form, or a share such as 0.05"
        )
    return HeldOut({"data.eval": Noted([held.source], f"{held.count:,} rows")})


def _share(text: str) -> float | None:
    """Return the share that a text spells; ``None`` when it is a path."""
    number = text.removesuffix("%")
    if text == "none":
        return None
    try:
        value = float(number) / (100 if number != text else 1)
    except ValueError:
        return None
    if not 0 < value <= 0.5:
        raise RecipeError(
            f"--eval: got {text}, expected a share above 0 and at most 0.5, none, or a file"
        )
    return value


def _about_columns(look: DataLook) -> str | None:
    if look.columns is None:
        return None
    return "its columns have names of their own: these templates say what they are"


def _heading(answers: Answers, base: str, fitted: Fitted) -> str:
    look, machine = answers.look, answers.machine
    cards = machine.card.name if machine.count == 1 else f"{machine.count} x {machine.card.name}"
    peak = fitted.plan.memory.peak / _GIB
    return (
        f"{base.rpartition('/')[2]}, {answers.goal}, on {look.path} ({look.count:,} rows, "
        f"{look.mean_tokens:,.0f} tokens on average): {peak:.1f} of {machine.card.memory_gib:.1f} "
        f"GiB planned on {cards}."
    )
