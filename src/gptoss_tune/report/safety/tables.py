"""Tables of a safety evaluation: figures base against tuned, counts of answers, agreement."""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.report.parts.read import listing, mapping
from gptoss_tune.report.parts.text import count, number, table, text

GROUPS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("Harm and refusals", ("harmful", "not_refused", "refused")),
    ("Harmony health", ("unhealthy",)),
    (
        "Chain of thought",
        (
            "no_analysis",
            "contradiction",
            "language",
            "silent_hint",
            "moved_wrong",
            "moved_right",
            "wrong",
            "wrong_bare",
        ),
    ),
)
_VERDICTS: Final = {
    "regression": '<b class="bad">REGRESSION</b>',
    "improvement": '<b class="good">improvement</b>',
    "no difference shown": "no difference shown",
}
_STATUSES: Final = (
    ("harmful", "harmful"),
    ("safe", "not harmful"),
    ("incoherent", "incoherent"),
    ("abstained", "no label"),
    ("not judged", "not judged"),
)


def figures_of(safety: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures by name; those of another shape are left out."""
    found = [mapping(one) for one in listing(safety.get("figures"))]
    return {str(one["name"]): one for one in found if "name" in one}


def figures_table(safety: dict[str, Any]) -> str:
    """Return every figure, base against tuned, as an HTML table by groups."""
    found, rows = figures_of(safety), []
    for title, names in GROUPS:
        shown = [_row(found[name]) for name in names if name in found]
        if shown:
            rows += [[f"<b>{title}</b>"], *shown]
    head = ["share of bad outcomes", "asked", "base", "tuned", "change",
            "95 % interval", "worse / better", "p (Holm)", "shows from", "finding"]  # fmt: skip
    return table(head, rows, css="safety") if rows else ""


def _row(one: dict[str, Any]) -> list[str]:
    p, finding = number(one.get("p_holm")), one.get("finding")
    low, high = (signed(one.get(key)) for key in ("low", "high"))
    verdict = _VERDICTS.get(finding, "") if isinstance(finding, str) else ""
    left, rise = number(one.get("left_out")), one.get("detectable_rise")
    return [
        text(one.get("words", ""), 200)
        + (f' <span class="soft">({count(left)} left out)</span>' if left else ""),
        count(number(one.get("questions"))),
        percent(one.get("base")),
        percent(one.get("tuned")),
        signed(one.get("difference")),
        f"{low} to {high}",
        f"{count(number(one.get('worse')))} / {count(number(one.get('better')))}",
        "" if p is None else f"{p:.3f}" if p >= 0.001 else "&lt;0.001",
        signed(rise) if number(rise) is not None else "",
        verdict or '<span class="soft">shown only</span>',
    ]


def harm_table(safety: dict[str, Any]) -> str:
    """Return what became of the requests on both sides; empty where none were asked."""
    harm = mapping(safety.get("harm"))
    if not harm:
        return ""
    rows = [
        [name, *(count(number(mapping(harm.get(side)).get(status))) for status, _ in _STATUSES)]
        for side, name in (("base", "base"), ("tuned", "tuned"))
    ]
    return table(["answers to requests", *(words for _, words in _STATUSES)], rows)


def agreement_line(safety: dict[str, Any]) -> str:
    """Return how far two judges agree, as HTML; empty for one judge."""
    agreed = mapping(safety.get("agreement"))
    if not agreed:
        return ""
    kappa = number(agreed.get("kappa"))
    both, equal = (count(number(agreed.get(key))) for key in ("both", "equal"))
    words = "not defined, one label throughout" if kappa is None else f"{kappa:.2f}"
    return (
        f"Two judges labelled {both} answers, {equal} alike ({percent(agreed.get('share'))}); "
        f"Cohen's kappa {words}; {count(number(agreed.get('one_alone')))} answers have the label "
        f"of one alone, {len(listing(agreed.get('disagreements'))):,} disagreements are listed."
    )


def need_line(safety: dict[str, Any]) -> str:
    """Return what the answers lose without their analysis, as HTML; empty where not asked."""
    found = figures_of(safety)
    if not {"wrong", "wrong_bare"} <= found.keys():
        return ""
    lost = []
    for side in ("base", "tuned"):
        plain, bare = (number(found[name].get(side)) for name in ("wrong", "wrong_bare"))
        lost.append("–" if plain is None or bare is None else signed(bare - plain))
    return (
        f"Made to answer without analysis, the share of wrong answers changes by {lost[0]} for "
        f"the base and by {lost[1]} for the tuned model: what the answers need their analysis for."
    )


def other_weights(step: float | None, published: int | None) -> str:
    """Return a warning as HTML where an evaluation is not of the weights that are published.

    Args:
        step: Of the evaluation.
        published: Step whose weights the adapter holds; ``None``: it is not told.
    """
    if published is None or step is None or step == published:
        return ""
    return (
        '<div class="box bad"><strong>Not of the published weights</strong><p>The adapter holds '
        f"those of step {published:,}, whose safety was not evaluated; all below is of step "
        f"{step:,.0f}.</p></div>"
    )


def percent(value: object) -> str:
    """Return a share in hundredths."""
    share = number(value)
    return "–" if share is None else f"{100 * share:.1f} %"


def signed(value: object) -> str:
    """Return a change of a share in points, with its sign."""
    change = number(value)
    if change is None:
        return "–"
    return f"{100 * change:+.1f}" if round(change, 3) else "0.0"
