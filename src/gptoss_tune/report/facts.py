"""The facts of one run in words and tables: headline, warnings, tokens, plan, run card."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptoss_tune.errors import GptossTuneError
from gptoss_tune.harmony.conversation import TEXT
from gptoss_tune.plan.disk import run_files
from gptoss_tune.plan.gpus import DEFAULT_GPU, GPUS, Gpu
from gptoss_tune.plan.gpus import card as gpu_card
from gptoss_tune.plan.plan import Plan, plan
from gptoss_tune.recipe.recipe import Recipe
from gptoss_tune.report.curves import CHANNELS
from gptoss_tune.report.parts.read import Run, listing, mapping
from gptoss_tune.report.parts.text import count, duration, figure, number, size, table, text
from gptoss_tune.run.checkpoints import published
from gptoss_tune.run.folder import ADAPTER, METRICS, RECORD
from gptoss_tune.run.method import reference_words

_MOST_WARNINGS = 50
_LAST_LINES = 20
_GOOD = {"finished"}
_BAD = {"stopped by the guard"}
_NO_GPU = "the run had no GPU"


def status(run: Run) -> str:
    """Return the run's status as a small badge."""
    word = _status(run)
    css = "good" if word in _GOOD else "bad" if word in _BAD else "soft"
    return f'<span class="status {css}">{text(word, 60)}</span>'


def _status(run: Run) -> str:
    return str(run.fact("status") or "unknown")


def tiles(run: Run) -> list[tuple[str, str, bool]]:
    """Return the headline facts: value and label as HTML, and whether it is bad news."""
    losses = [value for _, value in run.series("loss") if value is not None]
    steps = run.train[-1]["step"] if run.train else None
    planned = number(run.fact("recipe", "train", "max_steps"))
    rates = [value for _, value in run.series("tokens_per_second") if value]
    unit = run.method.loss_unit if run.method.preferences else "nats"
    found: list[tuple[str, str, bool]] = []
    if losses and not run.method.reinforcement:
        found.append(
            (f"{figure(losses[0], 3)} → {figure(losses[-1], 3)}", f"training loss, {unit}", False)
        )
    held_out = [v for _, v in run.series("eval_loss", held_out=True) if v is not None]
    if held_out:
        first = f"{figure(held_out[0], 3)} → " if len(held_out) > 1 else ""
        found.append((f"{first}{figure(held_out[-1], 3)}", f"held-out loss, {unit}", False))
    found += _won(run)
    found += _best(run)
    of = f" of {planned:,.0f}" if planned and steps and steps < planned else ""
    found.append((f"{count(steps)}{of}", "optimizer steps", False))
    found.append((count(trained_tokens(run)), "tokens trained", False))
    if rates:
        found.append((figure(statistics.median(rates), 3), "tokens/s, median", False))
    peak = number(run.fact("peak_memory_bytes"))
    if peak is None and run.last("memory_gib") is not None:
        peak = (run.last("memory_gib") or 0) * 2**30
    where = "peak GPU memory" if run.fact("environment", "gpus") else "peak memory of the process"
    found.append((size(peak), where, False))
    if number(run.fact("seconds")) is not None:
        found.append((duration(number(run.fact("seconds"))), "wall time, last start", False))
    warned = len(warnings(run))
    found.append((count(warned), "warnings of the guard", bool(warned)))
    return found


def _won(run: Run) -> list[tuple[str, str, bool]]:
    """Return what preferences or rewards came to: value and label, and no bad news."""
    wanted = [("reward_accuracy", "reward accuracy"), ("reward_margin", "reward margin")]
    if run.method.name == "kto":
        wanted = [("reward_chosen", "reward of good"), ("reward_rejected", "reward of bad")]
    if run.method.reinforcement:
        wanted = [("reward", "reward"), ("episode_tokens", "tokens of an episode")]
    found = []
    for metric, label in wanted:
        values, where = _held_out_or_last(run, metric)
        shares = metric == "reward_accuracy"
        shown = [f"{value:.1%}" if shares else figure(value, 3) for value in values]
        if shown:
            value = shown[0] if len(shown) == 1 else f"{shown[0]} → {shown[-1]}"
            found.append((value, f"{label}, {where}", False))
    return found


def _best(run: Run) -> list[tuple[str, str, bool]]:
    """Return which step's weights were published, of a run that chose them."""
    best = mapping(run.fact("best"))
    step, value = number(best.get("step")), number(best.get("value"))
    if step is None or value is None:
        return []
    metric = text(best.get("metric", ""), 80)
    return [(f"step {count(step)}", f"is the adapter: best {metric}, {figure(value)}", False)]


def _held_out_or_last(run: Run, metric: str) -> tuple[list[float], str]:
    """Return a metric's values on held-out rows, or the mean of the last ones of training."""
    held_out = [v for _, v in run.series(f"eval_{metric}", held_out=True) if v is not None]
    if held_out:
        return held_out, "held out"
    # A step has a few pairs, and one step's share of them says little.
    last = [v for _, v in run.series(metric) if v is not None][-_LAST_LINES:]
    return [statistics.fmean(last)] if last else [], f"training, last {len(last)} lines"


def trained_tokens(run: Run) -> float | None:
    """Return the tokens trained: the record's, or those of the last logged line."""
    found = number(run.fact("tokens", "trained"))
    return run.last("trained_tokens_total") if found is None else found


def warnings(run: Run) -> list[str]:
    """Return the guard's warnings."""
    return [str(line) for line in listing(run.fact("guard", "warnings"))]


def told(run: Run) -> str:
    """Return what went wrong or was warned of, and what could not be read."""
    parts = []
    reason = run.fact("reason")
    if _status(run) in _BAD and reason:
        parts.append(
            '<div class="box bad"><strong>The guard stopped this run.</strong>'
            f'<div class="words">{text(reason)}</div></div>'
        )
    stopping = mapping(run.fact("early_stopping"))
    if stopping.get("stopped") and stopping.get("reason"):
        parts.append(
            '<div class="box"><strong>Stopped early</strong>'
            f'<div class="words">{text(stopping["reason"], 600)}</div></div>'
        )
    found = warnings(run)
    if found:
        items = "".join(f"<li>{text(line, 600)}</li>" for line in found[:_MOST_WARNINGS])
        more = len(found) - _MOST_WARNINGS
        items += f"<li>and {more:,} more in {RECORD}</li>" if more > 0 else ""
        parts.append(
            f'<div class="box bad"><strong>Warnings of the guard</strong>'
            f'<ul class="lines">{items}</ul></div>'
        )
    if about := [str(line) for line in listing(run.fact("data_warnings"))]:
        items = "".join(f"<li>{text(line, 600)}</li>" for line in about[:_MOST_WARNINGS])
        parts.append(
            '<div class="box"><strong>Told of the data</strong>'
            f'<ul class="lines">{items}</ul></div>'
        )
    if odd := not_finite(run):
        items = "".join(f"<li>{text(line, 200)}</li>" for line in odd[:_MOST_WARNINGS])
        parts.append(
            f'<div class="box bad"><strong>Figures that are not finite</strong>'
            f'<ul class="lines">{items}</ul></div>'
        )
    if run.problems:
        items = "".join(f"<li>{text(line, 400)}</li>" for line in run.problems)
        parts.append(
            f'<div class="box bad"><strong>Files that could not be read whole</strong>'
            f'<ul class="lines">{items}</ul></div>'
        )
    return "".join(parts)


def not_finite(run: Run) -> list[str]:
    """Return what was not finite: held-out losses by step, and what the record names."""
    losses = run.series("eval_loss", held_out=True)
    lines = [f"the held-out loss at step {step:,}" for step, value in losses if value is None]
    named = mapping(run.fact("not_finite")).items()
    return lines + [f"{name}: {value}" for name, value in named]


def tokens(run: Run) -> str:
    """Return the account of tokens: by channel, by dataset."""
    account = mapping(run.fact("tokens"))
    if not account:
        return (
            f'<p class="note">The account is written when a run ends; until then {METRICS} has '
            f"the sums: {count(run.last('tokens'))} tokens read, {count(trained_tokens(run))} "
            "trained.</p>"
        )
    # A column of raw text where there is some.
    has_text = number(mapping(account.get("trained_by_channel")).get(TEXT))
    channels = [name for name in CHANNELS if name != TEXT or has_text]
    rows = [_tokens_row("all", account, channels)]
    for one in map(mapping, listing(account.get("by_dataset"))):
        weight = number(one.get("weight"))
        times = f' <span class="soft">x {figure(weight)}</span>' if weight not in (None, 1) else ""
        rows.append(_tokens_row(text(one.get("path", ""), 300) + times, one, channels))
    heads = ["dataset", "read", "trained", "share", *channels]
    return (
        '<p class="note">Tokens read, context included and padding not, and those with a loss '
        "weight, as often as they were used, on all ranks and since the first start. Steps that "
        "the guard left out were read and not trained.</p>" + table(heads, rows)
    )


def _tokens_row(name: str, account: dict[str, Any], channels: Sequence[str]) -> list[str]:
    read, trained = number(account.get("read")), number(account.get("trained"))
    by_channel = mapping(account.get("trained_by_channel"))
    share = f"{trained / read:.1%}" if read and trained is not None else "–"
    counts = (count(number(by_channel.get(channel))) for channel in channels)
    return [name, count(read), count(trained), share, *counts]


def card(run: Run) -> str:
    """Return what was run, on what, with which versions."""
    environment = mapping(run.fact("environment"))
    gpus = [str(name) for name in listing(environment.get("gpus"))]
    base = mapping(run.fact("base"))
    rows = [
        ("base", text(base.get("name", "–"), 300)),
        ("base fingerprint", text(base.get("fingerprint", "–"), 100)),
        ("base revision", text(run.fact("recipe", "model", "revision") or "–", 100)),
        ("method", text(run.method.words or "–")),
        *([("reference", text(words))] if (words := reference_words(run.record)) else []),
        ("started", text(run.fact("started") or "–", 40)),
        ("last written", text(run.fact("updated") or "–", 40)),
        ("seed", text(run.fact("recipe", "train", "seed"), 20)),
        ("processes", _processes(run, environment)),
        ("GPUs", text(", ".join(gpus), 400) if gpus else "none"),
        ("platform", text(environment.get("platform", "–"), 200)),
        ("Python", text(environment.get("python", "–"), 40)),
        ("gptoss-tune", text(environment.get("gptoss_tune", "–"), 40)),
        ("commit", text(environment.get("git_commit") or "–", 80)),
    ]
    rows += [
        (text(name, 40), text(version or "not installed", 40))
        for name, version in mapping(environment.get("libraries")).items()
    ]
    held = run.footprint
    rows += [
        (
            f"{text(row.get('kind', ''), 40)} in {text(row.get('precision', ''), 20)}",
            f"{count(number(row.get('parameters')))} weights, {size(number(row.get('nbytes')))}",
        )
        for row in held
    ]
    return table(["fact", ""], rows, css="card")


def _processes(run: Run, environment: Mapping[str, Any]) -> str:
    """Return how many processes there were, and how many of them shared each row."""
    shared = number(run.fact("recipe", "distributed", "context_parallel")) or 1
    told = count(number(environment.get("processes")))
    return f"{told}, {count(shared)} to a row" if shared > 1 else told


def plan_section(run: Run) -> str:
    """Return the table of plan and measurement, or the reason why there is none.

    Planned again from the recipe when the page is made. What cannot be compared is not compared: on
    a CPU there is neither a card's memory nor its rate.
    """
    gpus = listing(run.fact("environment", "gpus"))
    known = _card_of(str(gpus[0])) if gpus else None
    try:
        recipe = Recipe.model_validate(run.recipe)
        processes = number(run.fact("environment", "processes")) or 1
        made = plan(recipe, known or gpu_card(DEFAULT_GPU), gpus=int(processes))
    except (GptossTuneError, ValueError) as error:
        return f'<p class="note">No plan can be made of this run here: {text(error, 400)}</p>'
    rows = [
        _compared("base and adapters, resident", size, made.memory.resident, _held_bytes(run)),
        _compared("parameters trained", count, made.trained, _trained_parameters(run)),
        _compared("adapter file", size, made.disk.adapter, _bytes(run, f"{ADAPTER}/*.safetensors")),
        _compared(
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
    rows = [_compared("peak memory of a GPU", size, made.memory.peak, peak)]
    if known is None:
        reason = f"not comparable: no rate is known of {text(gpu, 80)}"
        return [*rows, ["tokens per second", "–", figure(rate), reason]]
    name = f"tokens per second ({text(known.name)}; {assumed})"
    return [*rows, _compared(name, figure, made.work.tokens_per_second, rate)]


def _compared(
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
    # "h200" is in "gh200", and "h100" in "h100nvl": the longest name is the card's.
    longest = max((len(known.name.split("-")[0]) for known in found), default=0)
    found = [known for known in found if len(known.name.split("-")[0]) == longest]
    by_memory = [known for known in found if known.name.split("-")[1] in plain]
    return (by_memory or found or [None])[0]


def _held_bytes(run: Run) -> float | None:
    sizes = [number(row.get("nbytes")) for row in run.footprint]
    return sum(size for size in sizes if size is not None) if sizes else None


def _trained_parameters(run: Run) -> float | None:
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
