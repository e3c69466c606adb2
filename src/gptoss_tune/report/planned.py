"""The plan against the measurement: what ``gptoss-tune plan`` says of the recipe, and what was.

Calculated again from the recipe when the page is made. What cannot be compared is not compared: on
a CPU there is neither a card's memory nor its rate.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

from gptoss_tune.errors import GptossTuneError
from gptoss_tune.plan.disk import run_files
from gptoss_tune.plan.gpus import DEFAULT_GPU, GPUS, Gpu, card
from gptoss_tune.plan.plan import Plan, plan
from gptoss_tune.recipe.recipe import Recipe
from gptoss_tune.report.read import Run, listing
from gptoss_tune.report.text import count, figure, number, size, table, text
from gptoss_tune.run.checkpoints import published
from gptoss_tune.run.folder import ADAPTER

_NO_GPU = "the run had no GPU"


def plan_section(run: Run) -> str:
    """Return the table of plan and measurement, or the reason why there is none."""
    gpus = listing(run.fact("environment", "gpus"))
    known = _card_of(str(gpus[0])) if gpus else None
    try:
        recipe = Recipe.model_validate(run.recipe)
        processes = number(run.fact("environment", "processes")) or 1
        made = plan(recipe, known or card(DEFAULT_GPU), gpus=int(processes))
    except (GptossTuneError, ValueError) as error:
        return f'<p class="note">No plan can be made of this run here: {text(error, 400)}</p>'
    rows = [
        _row("base and adapters, resident", size, made.memory.resident, _held(run)),
        _row("parameters trained", count, made.trained, _trained(run)),
        _row("adapter file", size, made.disk.adapter, _bytes(run, f"{ADAPTER}/*.safetensors")),
        _row(
            "one checkpoint",
            size,
            run_files(made.architecture, recipe.lora, recipe.train).checkpoint,
            _one_checkpoint(run),
            missing="none was kept",
        ),
        *_on_a_card(run, made, known, str(gpus[0]) if gpus else None),
    ]
    return table(["", "planned", "measured", "measured / planned"], rows)


def _on_a_card(run: Run, made: Plan, known: Gpu | None, gpu: str | None) -> list[list[str]]:
    peak = number(run.fact("peak_memory_bytes"))
    rates = [value for _, value in run.series("tokens_per_second") if value]
    rate = statistics.median(rates) if rates else None
    if gpu is None:
        reason = f"not comparable: {_NO_GPU}"
        return [
            ["peak memory", "–", f"{size(peak)} of process memory", reason],
            ["tokens per second", "–", figure(rate), reason],
        ]
    assumed = f"{made.work.efficiency:.0%} of the card's rate assumed"
    rows = [_row("peak memory of a GPU", size, made.memory.peak, peak)]
    if known is None:
        reason = f"not comparable: no rate is known of {text(gpu, 80)}"
        return [*rows, ["tokens per second", "–", figure(rate), reason]]
    name = f"tokens per second ({text(known.name)}; {assumed})"
    return [*rows, _row(name, figure, made.work.tokens_per_second, rate)]


def _row(
    name: str,
    form: Callable[[float], str],
    planned: float,
    measured: float | None,
    missing: str = "",
) -> list[str]:
    if measured is None:
        return [name, form(planned), "–", missing]
    return [name, form(planned), form(measured), f"{measured / planned:.3f}" if planned else "–"]


def _card_of(gpu: str) -> Gpu | None:
    """Return the known card that a driver's name means, by model and, of several, by memory."""
    plain = re.sub(r"[^a-z0-9]", "", gpu.lower())
    found = [known for known in GPUS if known.name.split("-")[0] in plain]
    by_memory = [known for known in found if known.name.split("-")[1] in plain]
    return (by_memory or found or [None])[0]


def _held(run: Run) -> float | None:
    sizes = [number(row.get("nbytes")) for row in run.footprint]
    return sum(size for size in sizes if size is not None) if sizes else None


def _trained(run: Run) -> float | None:
    found = [
        number(row.get("parameters")) for row in run.footprint if row.get("kind") == "adapters"
    ]
    return sum(one for one in found if one is not None) if found else None


def _bytes(run: Run, pattern: str) -> float | None:
    sizes = [path.stat().st_size for path in run.folder.glob(pattern) if path.is_file()]
    return float(sum(sizes)) if sizes else None


def _one_checkpoint(run: Run) -> float | None:
    for folder in published(run.folder):
        return _bytes(run, f"{folder.name}/**/*")
    return None
