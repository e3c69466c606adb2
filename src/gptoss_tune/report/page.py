"""The page: one self-contained HTML file, read without a script, a server or a network.

A content security policy forbids scripts and connections as well, since texts of datasets and
models stand in it. A dashboard was the alternative: it needs a server that is still there when the
run is looked at again.
"""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path

from gptoss_tune import __version__
from gptoss_tune.errors import RecipeError
from gptoss_tune.files.atomic import disk_errors, write_text
from gptoss_tune.recipe import Recipe, resolved_lines
from gptoss_tune.report import compare, curves, facts, layered
from gptoss_tune.report.benchmarks import benchmarks
from gptoss_tune.report.parts.read import Run, read_run
from gptoss_tune.report.parts.style import html_page
from gptoss_tune.report.parts.text import text, tiles
from gptoss_tune.report.reinforcement.curves import rewards
from gptoss_tune.report.reinforcement.episodes import episodes
from gptoss_tune.report.safety.section import safety_section
from gptoss_tune.report.samples import pairs, policies, samples
from gptoss_tune.run.folder import RECORD, RunFolder

MOST_RUNS = 7
"""Runs that one page compares: as many as there are colours."""


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of a run, or of several compared, and return where it is.

    Args:
        folders: Of the runs.
        output: The file; ``None``: ``report.html`` in the folder of the only run.

    Raises:
        RecipeError: A folder holds no run, several are given without ``output``, or too many.
        MachineError: The file cannot be written.
    """
    if len(folders) > MOST_RUNS:
        raise RecipeError(f"got {len(folders)} runs, expected {MOST_RUNS} at most on one page")
    if output is None and len(folders) > 1:
        raise RecipeError("several runs are compared in a file of their own; name it by --out")
    path = output or RunFolder(folders[0]).report
    runs = [read_run(folder) for folder in folders]
    page = run_page(runs[0]) if len(runs) == 1 else compare_page(runs)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def open_in_browser(path: Path) -> bool:
    """Show the page in the user's browser; say whether there is one."""
    return webbrowser.open(path.resolve().as_uri())


def run_page(run: Run) -> str:
    """Return the page of one run."""
    base = text(run.fact("base", "name") or run.fact("recipe", "model", "name_or_path") or "", 300)
    sections = [
        ("rewards", "Rewards", _grid(rewards(run))),
        ("episodes", "Episodes to read", episodes(run)),
        ("loss", "Loss", _grid(curves.losses(run))),
        ("preferences", "Preferences", _grid(curves.preferences(run))),
        ("pairs", f"{_sample(run)}s before and after", pairs(run)),
        ("policies", "Policies", policies(run)),
        ("samples", "Samples before and after", samples(run)),
        ("benchmarks", "Benchmarks", benchmarks(run)),
        ("safety", "Safety against the base", safety_section(run)),
        ("optimisation", "Optimisation", _grid([*curves.optimisation(run),
                                                *layered.gradient_maps(run)])),
        ("experts", "Experts", _grid(layered.expert_maps(run))),
        ("tokens", "Tokens trained", facts.tokens(run)),
        ("machine", "Speed and memory", _grid(curves.machine(run))),
        ("plan", "Plan against measurement", facts.plan_section(run)),
        ("recipe", "Recipe", _recipe(run)),
        ("card", "Run card", facts.card(run)),
    ]  # fmt: skip
    sections = [section for section in sections if section[2]]
    head = (
        f"<h1>{text(run.name, 200)} {facts.status(run)}</h1>"
        f'<p class="note">{_what(run)} of {base}, as its own files tell it.</p>'
    )
    body = f"{head}{_contents(sections)}{tiles(facts.tiles(run))}{facts.told(run)}"
    return _page(run.name, body + _sections(sections))


def _what(run: Run) -> str:
    words = run.method.words if run.method.is_told else "fine-tuning"
    return f"{words[0].upper()}{words[1:]}"


def _sample(run: Run) -> str:
    return "Answer" if run.method.name == "kto" else "Pair"


def compare_page(runs: Sequence[Run]) -> str:
    """Return the page of several runs."""
    names = compare.names(runs)
    sections = [
        ("figures", "Figures side by side", compare.figures_table(runs)),
        ("differences", "What differs", compare.differences(runs)),
        ("curves", "Curves", _grid(compare.overlaid(runs))),
    ]
    problems = "".join(
        f'<div class="box bad"><strong>{text(name, 200)}</strong><ul class="lines">'
        + "".join(f"<li>{text(line, 400)}</li>" for line in run.problems)
        + "</ul></div>"
        for name, run in zip(names, runs, strict=True)
        if run.problems
    )
    head = f"<h1>{len(runs)} runs compared</h1>{_contents(sections)}{problems}"
    return _page(", ".join(names), head + _sections(sections))


def _page(title: str, body: str) -> str:
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return html_page(
        f"{text(title, 300)}: run report",
        f"{body}\n<footer>Written by gptoss-tune {text(__version__)} on {made}; this file "
        "needs nothing from elsewhere.</footer>",
    )


def _contents(sections: Iterable[tuple[str, str, str]]) -> str:
    links = "".join(f'<a href="#{name}">{title}</a> ' for name, title, _ in sections)
    return f"<nav>{links}</nav>"


def _sections(sections: Iterable[tuple[str, str, str]]) -> str:
    return "\n".join(f'<section><h2 id="{n}">{t}</h2>{body}</section>' for n, t, body in sections)


def _grid(figures: Iterable[str]) -> str:
    drawn = "".join(figures)
    return f'<div class="figures">{drawn}</div>' if drawn else ""


def _recipe(run: Run) -> str:
    """Return the settings that are not defaults, and the whole recipe folded away."""
    try:
        lines = list(resolved_lines(Recipe.model_validate(run.recipe)))
    except ValueError:
        return f'<p class="note">The recipe in {RECORD} is not one of this version.</p>'
    changed = "\n".join(
        f"{line.setting}:{line.text.partition(':')[2]}" for line in lines if line.kind == "changed"
    )
    whole = "\n".join(line.text for line in lines)
    return (
        f'<div class="box"><div class="words">{text(changed, 20_000)}</div></div>'
        "<details><summary>the whole recipe with its defaults</summary>"
        f'<div class="words">{text(whole, 50_000)}</div></details>'
    )
