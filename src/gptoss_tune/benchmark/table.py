"""One table: suites by subjects, each figure with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss_tune.display import visible
from gptoss_tune.grading.policy_table import HEADS, policy_rows

_LONGEST_NAME = 20


def print_figures(figures: dict[str, Any], console: Console) -> None:
    """Print the table, what is to be known about it, and what was required."""
    console.print(figures_table(figures))
    for suite in figures["suites"]:
        if (policies := policies_table(suite)) is not None:
            console.print(policies)
    for line in footnotes(figures):
        console.print(Text(visible(line), style="dim"), soft_wrap=False)
    for one in figures["required"]:
        word, style = ("holds", "green") if one["holds"] else ("MISSED", "bold red")
        console.print(Text.assemble((word, style), f"  {visible(one['said'])}"))


def figures_table(figures: dict[str, Any]) -> Table:
    """Return the table; it fits 100 columns."""
    suites = figures["suites"]
    shown = _Columns(
        compared=len(figures["subjects"]) > 1,
        several=any(suite["samples"] > 1 for suite in suites),
        seen=any(suite["contamination"] is not None for suite in suites),
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head, right in shown.heads:
        table.add_column(head, justify="right" if right else "left", no_wrap=True)
    for suite in suites:
        lead = Text.assemble((_short(suite["name"]), "bold"))
        table.add_row(lead, Text(f"{suite['questions']:,} questions", style="dim"))
        names = [subject["name"] for subject in figures["subjects"]]
        for name in names:
            table.add_row(*shown.row(suite, name), end_section=name == names[-1])
    return table


def policies_table(suite: dict[str, Any]) -> Table | None:
    """Return a classifier's figures by subject and policy; ``None`` for a suite without them."""
    found = {name: cell["policies"] for name, cell in suite["subjects"].items() if cell}
    rows = [(name, row) for name, report in found.items() for row in policy_rows(report)]
    if not rows:
        return None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in (f"{_short(suite['name'])}, by policy", *HEADS):
        table.add_column(head)
    before = None
    for name, (policy, *cells) in rows:
        lead = "" if name == before else _short(name)
        table.add_row(Text(lead), Text(_short(policy)), *cells)
        before = name
    return table


def footnotes(figures: dict[str, Any]) -> list[str]:
    """Return what the figures do not say by themselves, a line each."""
    lines = [
        f"{subject['name']}: {subject['refused'] or subject['protocol']}"
        for subject in figures["subjects"]
    ]
    for suite in figures["suites"]:
        asking = suite["asking"]
        drawn = f"temperature {asking['temperature']:g}" if asking["temperature"] else "greedy"
        times = f", {suite['samples']} answers each" if suite["samples"] > 1 else ""
        lines.append(
            f"{suite['name']}: {suite['questions']} questions at effort "
            f"{', '.join(suite['efforts'])}{times}, {drawn}, up to {asking['max_new_tokens']:,} "
            "tokens"
        )
        lines += suite["notes"]
        lines += _of_training(suite)
        for name, cell in suite["subjects"].items():
            if cell and cell["not_judged"]:
                lines.append(f"{suite['name']}: {cell['not_judged']} of {name} not judged in time")
    return [*lines, *figures["notes"]]


def _of_training(suite: dict[str, Any]) -> list[str]:
    """Return what is known of the suite's questions in the rows of the run."""
    found = suite["contamination"]
    if found is None:
        return []
    if found["share"] is None:
        return [f"{suite['name']}: not compared with the rows of training: {found['not_compared']}"]
    seen = len(found["found"])
    words = f"{seen} of {found['questions']} questions are"
    rows = f"in the {found['rows']:,} rows of training"
    return [f"{suite['name']}: {words} {rows}, by n-grams"]


@dataclass(frozen=True)
class _Columns:
    """Which columns there are.

    Attributes:
        compared: There is a first subject to compare with.
        several: Some suite has several answers to a question.
        seen: Some suite was compared with the rows of a run.
    """

    compared: bool
    several: bool
    seen: bool

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """The headings, and whether their figures stand to the right."""
        return [
            ("", False),
            ("right %", False),
            *([("to the first", False)] if self.compared else []),
            *([("pass@k", True)] if self.several else []),
            ("tokens", True),
            ("think", True),
            ("cut", True),
            ("health", True),
            *([("seen", True)] if self.seen else []),
        ]

    def row(self, suite: dict[str, Any], subject: str) -> list[Text]:
        """Return the row of one subject."""
        cell = suite["subjects"][subject]
        name = Text(f"  {_short(subject)}")
        if cell is None:
            return [name, Text("refused", style="red")]
        interval = "[{:.0f}, {:.0f}]".format(*(100 * end for end in cell["interval"]))
        most = max(cell["pass_at"], key=int, default=None)
        passed = "" if most is None else f"{most}: {_percent(cell['pass_at'][most])}"
        found = suite["contamination"]
        return [
            name,
            Text.assemble(_percent(cell["score"]), (f"\n{interval}", "dim")),
            *([_difference(cell["difference"])] if self.compared else []),
            *([Text(passed)] if self.several else []),
            Text(_number(cell["tokens"])),
            Text(_number(cell["thinking"])),
            Text(_percent(cell["cut_off"])),
            Text(_percent(cell["health"])),
            *([Text(_percent(None if found is None else found["share"]))] if self.seen else []),
        ]


def _difference(found: dict[str, Any] | None) -> Text:
    if found is None:
        return Text("–")
    low, high = (f"{100 * end:+.0f}" for end in found["interval"])
    word, style = ("within noise", "yellow")
    if not found["within_noise"]:
        word, style = ("better", "green") if found["value"] > 0 else ("worse", "red")
    value = f"{100 * found['value']:+.1f}"
    return Text.assemble(value, (f" [{low}, {high}]", "dim"), "\n", (word, style))


def _short(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 3]}..."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
