"""The safety section of a run's report: the figures in short, and where the page to sign is."""

from __future__ import annotations

from gptoss_tune.report.parts.read import Run, listing, mapping
from gptoss_tune.report.parts.text import text
from gptoss_tune.report.safety.tables import agreement_line, figures_table, harm_table, need_line
from gptoss_tune.run.folder import SAFETY_PAGE


def safety_section(run: Run) -> str:
    """Return the newest safety evaluation of a run as HTML; empty without one."""
    found = [(step, mapping(one.get("safety"))) for step, one in run.evaluations]
    found = [(step, safety) for step, safety in found if safety]
    if not found:
        return ""
    step, safety = found[-1]
    told = "".join(f"<li>{text(line, 400)}</li>" for line in listing(safety.get("problems")))
    problems = f'<div class="box bad"><ul class="lines">{told}</ul></div>' if told else ""
    lines = [line for line in (agreement_line(safety), need_line(safety)) if line]
    return (
        f'<p class="note">At step {step:,}; the page with all answers, to be signed by a reviewer, '
        f'is <a href="{SAFETY_PAGE}">{SAFETY_PAGE}</a>.</p>{problems}{figures_table(safety)}'
        f"{harm_table(safety)}" + "".join(f"<p>{line}</p>" for line in lines)
    )
