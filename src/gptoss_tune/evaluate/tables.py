"""An evaluation in words: one line for a log, tables for a terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss_tune.grading.policy_metrics import MACRO
from gptoss_tune.grading.policy_table import HEADS, policy_rows

_MOST_SHOWN = 8
_LONGEST_CELL = 48


def one_line(report: dict[str, Any]) -> str:
    """Return an evaluation's figures as one plain line."""
    graded, health, drift = report["graded"], report["health"], report["drift"] or {}
    parts = []
    if graded["total"]:
        parts.append(f"{graded['passed']} of {graded['total']} answers right")
    if "policies" in report:
        parts.append(_policies_line(report["policies"]))
    if health["total"]:
        parts.append(f"{health['valid']} of {health['total']} healthy harmony")
    if "kl" in drift:
        parts.append(f"KL from the base {_nats(drift['kl'], 4)}")
    if "refusal_rate" in drift:
        rate = drift["refusal_rate"]
        parts.append(f"refuses {rate['tuned']:.0%} of the probes (base {rate['base']:.0%})")
    return ", ".join(parts)


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print the samples and the figures of an evaluation as tables."""
    samples = report["samples"]
    if samples:
        console.print(_sample_table(samples))
    if len(samples) > _MOST_SHOWN:
        console.print(f"... and {len(samples) - _MOST_SHOWN} more samples; --json shows all")
    console.print(_figure_table(report))
    if "policies" in report:
        console.print(_policy_table(report["policies"]))


def _sample_table(samples: list[dict[str, Any]]) -> Table:
    table = Table("prompt", "effort", "final", "expected", "grade", "tokens", "problems")
    for sample in samples[:_MOST_SHOWN]:
        finals = [m["content"] for m in sample["messages"] if m["channel"] == "final"]
        calls = [m for m in sample["messages"] if m["recipient"] is not None]
        said = finals[-1] if finals else f"(calls {calls[-1]['recipient']})" if calls else "(none)"
        grade = sample["grade"]
        word = "" if grade is None else "right" if grade["passed"] else "wrong"
        table.add_row(
            # What a model or a data file says is shown, never read as markup.
            _cell(sample["prompt"][-1]["content"]),
            sample["effort"],
            _cell(said),
            _cell("" if grade is None else grade["expected"]),
            Text(word, style="green" if word == "right" else "red"),
            str(sample["tokens"]),
            _cell("; ".join(sample["health"])),
        )
    return table


def _figure_table(report: dict[str, Any]) -> Table:
    table = Table("figure", "base", "tuned")
    graded, health, drift = report["graded"], report["health"], report["drift"] or {}
    if graded["total"]:
        table.add_row("answers right", "", _share(graded["passed"], graded["total"]))
    if health["total"]:
        table.add_row("healthy harmony", "", _share(health["valid"], health["total"]))
        rules = Counter(line.split(":")[0] for s in report["samples"] for line in s["health"])
        for rule, count in rules.most_common(_MOST_SHOWN):
            table.add_row(_cell(f"  {rule}"), "", str(count))
    if "kl" in drift:
        table.add_row("KL(base || tuned), nats per token", "0", _nats(drift["kl"]))
        for channel, kl in drift["kl_by_channel"].items():
            table.add_row(f"  {channel}", "0", _nats(kl))
    for key, name in (("refusal_rate", "probes refused"), ("unanswered_rate", "unanswered")):
        if key in drift:
            table.add_row(name, f"{drift[key]['base']:.1%}", f"{drift[key]['tuned']:.1%}")
    for effort, tokens in drift.get("reasoning_tokens_by_effort", {}).items():
        table.add_row(
            f"tokens of thinking, {effort}", f"{tokens['base']:.1f}", f"{tokens['tuned']:.1f}"
        )
    return table


def _policies_line(policies: dict[str, Any]) -> str:
    average, named = policies[MACRO], len(policies["by_policy"])
    f1 = "undefined" if average["f1"] is None else f"{average['f1']:.3f}"
    of = "" if named == 1 else f" (macro, {named} policies)"
    return f"F1 {f1}{of}, {average['abstained']} of {average['rows']} abstained"


def _policy_table(policies: dict[str, Any]) -> Table:
    """Return the figures by policy, each with its 95 % interval."""
    table = Table(*HEADS)
    for name, *cells in policy_rows(policies):
        table.add_row(_cell(name), *cells)
    return table


def _nats(kl: float | None, digits: int = 5) -> str:
    return "not finite" if kl is None else f"{kl:.{digits}f}"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def _cell(text: str) -> Text:
    flat = "".join(c if c.isprintable() else " " for c in text)
    return Text(flat if len(flat) <= _LONGEST_CELL else flat[: _LONGEST_CELL - 3] + "...")
