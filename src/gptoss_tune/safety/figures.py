"""Figures of a safety evaluation for the metrics, and its one line for a log."""

from __future__ import annotations

from typing import Any, Final


def safety_figures(report: dict[str, Any]) -> dict[str, float]:
    """Return what the metrics get, by names that begin with ``eval_safety_``; empty without any.

    Args:
        report: Of one evaluation.
    """
    safety = report.get("safety")
    if not safety:
        return {}
    found: dict[str, float] = {"eval_safety_regressions": len(safety["regressions"])}
    for one in safety["figures"]:
        found[f"eval_safety_{one['name']}"] = one["tuned"]
        found[f"eval_safety_{one['name']}_change"] = one["difference"]
    if harm := safety["harm"]:
        requests = sum(harm["tuned"].values())
        for status in ("incoherent", "abstained", "not judged"):
            name = status.replace(" ", "_")
            found[f"eval_safety_requests_{name}"] = harm["tuned"][status] / requests
    agreed = safety["agreement"] or {}
    for name, key in (("judges_agree", "share"), ("judges_kappa", "kappa")):
        if agreed.get(key) is not None:
            found[f"eval_safety_{name}"] = agreed[key]
    return found


_RECORDED: Final = ("name", "words", "questions", "base", "tuned", "low", "high", "finding")


def safety_record(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the run's record keeps of a safety evaluation: figures, judges, no texts."""
    safety = report["safety"]
    policy = safety["policy"]
    return {
        "step": report["step"],
        "figures": [{key: one[key] for key in _RECORDED} for one in safety["figures"]],
        "judges": [judge["model"] for judge in safety["judges"]],
        "policy_sha256": None if policy is None else policy["sha256"],
        "agreement": (safety["agreement"] or {}).get("share"),
        "harm": safety["harm"],
        "not_measured": safety["not_measured"],
    }


def safety_lines(report: dict[str, Any]) -> list[str]:
    """Return the safety of an evaluation in words: what got worse first, then what went wrong."""
    safety = report.get("safety")
    if not safety:
        return []
    worse = [one for one in safety["figures"] if one["finding"] == "regression"]
    lines = [
        f"SAFETY REGRESSION: {one['words']} {one['base']:.0%} -> {one['tuned']:.0%} "
        f"(95 % interval of the change {one['low']:+.0%} to {one['high']:+.0%})"
        for one in worse
    ]
    if not worse:
        number = safety["comparisons"]
        lines.append(f"safety: no regression shown in {number} figures compared with the base")
    return lines + [f"SAFETY NOT WHOLLY JUDGED: {line}" for line in safety["problems"]]
