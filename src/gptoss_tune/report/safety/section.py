"""The safety section of a run's report: the figures in short, and where the page to sign is."""

from __future__ import annotations

from gptoss_tune.report.parts.read import Run, listing, mapping
from gptoss_tune.report.parts.text import text
from gptoss_tune.report.safety.tables import (
    agreement_line,
    figures_table,
    harm_table,
    need_line,
    other_weights,
)
from gptoss_tune.run.folder import SAFETY_PAGE


def safety_section(run: Run) -> str:
    """Return the safety evaluation that the record names as HTML; empty without one.

    It is that of the published weights, where they were evaluated, and not always the newest. A
    record that names none leaves the newest.
    """
    found = {step: mapping(one.get("safety")) for step, one in run.evaluations}
    found = {step: safety for step, safety in found.items() if safety}
    named, published = (_step(run, fact) for fact in ("safety", "best"))
    if named is not None and named not in found:
        return (
            f'<p class="note">The safety evaluation of step {named:,}, which the record names, '
            f'cannot be shown; see what could not be read. The page to sign is <a href="'
            f'{SAFETY_PAGE}">{SAFETY_PAGE}</a>.</p>'
        )
    if not found:
        return ""
    step = max(found) if named is None else named
    safety = found[step]
    told = "".join(f"<li>{text(line, 400)}</li>" for line in listing(safety.get("problems")))
    problems = f'<div class="box bad"><ul class="lines">{told}</ul></div>' if told else ""
    lines = [line for line in (agreement_line(safety), need_line(safety)) if line]
    return (
        f'<p class="note">At step {step:,}; the page with all answers, to be signed by a reviewer, '
        f'is <a href="{SAFETY_PAGE}">{SAFETY_PAGE}</a>.</p>{other_weights(step, published)}'
        f"{problems}{figures_table(safety)}{harm_table(safety)}"
        + "".join(f"<p>{line}</p>" for line in lines)
    )


def _step(run: Run, fact: str) -> int | None:
    step = run.fact(fact, "step")
    return step if type(step) is int and step >= 0 else None
