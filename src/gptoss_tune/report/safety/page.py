"""The page that a reviewer signs: what was asked, who judged it, base against tuned, what was not.

Its first sheet is one side of A4 with lines for a name, a date and a decision. The policy, every
disagreement and the answers follow on further sheets. Answers may be harmful and hostile: they are
escaped, and stand folded, so that nobody reads one without opening it; a printout leaves closed
ones out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gptoss_tune import __version__
from gptoss_tune.files.atomic import write_text
from gptoss_tune.report.parts.read import Run, listing, mapping
from gptoss_tune.report.parts.style import html_page
from gptoss_tune.report.parts.text import count, number, table, text
from gptoss_tune.report.safety.tables import (
    agreement_line,
    figures_of,
    figures_table,
    harm_table,
    need_line,
    other_weights,
    percent,
)
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import read_record

MOST_SHOWN: Final = 200
"""Answers to requests that the page holds; all of them are in the evaluation's file."""

CSS: Final = """
.sheet h2 { margin: 1.1rem 0 .2rem; font-size: 1.05rem; }
.sheet table { font-size: .84rem; margin-bottom: .4rem; }
.sheet ul.lines { columns: 2; column-gap: 2rem; font-size: .82rem; margin: .1rem 0; }
.sheet ul.lines li { break-inside: avoid; }
.hash { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.sign { display: grid; grid-template-columns: 2fr 1fr 2fr; gap: 1.2rem; margin-top: 1.4rem; }
.sign div { border-top: 1px solid var(--ink); padding-top: .2rem; font-size: .8rem;
  color: var(--soft); margin-top: 2.2rem; }
.verdict { font-size: 1.05rem; }
table.safety td { white-space: nowrap; } table.safety b { overflow-wrap: normal; }
@media print { @page { size: A4; margin: 10mm 12mm; }
  body { font-size: 8pt; line-height: 1.3; } h1 { font-size: 13pt; } p { margin: .1rem 0 .2rem; }
  p, .verdict { max-width: none; } .verdict { font-size: 9pt; } .status { font-size: 8pt; }
  .sheet { break-after: page; } .sheet h2 { margin: .45rem 0 .05rem; font-size: 9.5pt; }
  .sheet table, .sheet ul.lines { font-size: 7pt; } .hash { font-size: 6pt; }
  .sheet th, .sheet td { padding: .05rem .3rem; } .sign { margin-top: .4rem; }
  .sign div { margin-top: 1.5rem; font-size: 7.4pt; } .scroll { overflow: visible; }
  .sheet .soft, p.note { font-size: 7pt; } .box { padding: .2rem .5rem; margin: .2rem 0; }
  summary { display: block; } footer { margin-top: .4rem; } }
"""


def write_safety_page(
    folder: Path, report: Mapping[str, Any], *, published: int | None = None
) -> Path:
    """Write ``RUN/safety.html`` of one evaluation of the run.

    Args:
        folder: Of the run.
        report: The evaluation, with its ``safety``: of the step whose weights are signed for, which
            need not be the newest one in the folder.
        published: Step whose weights the adapter holds; ``None``: that of the evaluation.

    Returns:
        Where it is.

    Raises:
        CheckpointError: The run's record is no record.
    """
    run = Run(folder, record=read_record(folder))
    base = str(run.fact("base", "name") or run.fact("recipe", "model", "name_or_path") or "")
    path = RunFolder(folder).safety_page
    write_text(path, safety_page(report, name=run.name, base=base, published=published))
    return path


def safety_page(
    report: Mapping[str, Any], *, name: str, base: str, published: int | None = None
) -> str:
    """Return the page of one evaluation.

    Args:
        report: With its ``safety``.
        name: Of the tuned model.
        base: Of what it is compared with.
        published: Step whose weights the adapter holds; ``None``: that of the evaluation.
    """
    safety = mapping(report.get("safety"))
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    sheet = "".join(
        (
            f"<h1>Safety of {text(name, 120)}</h1>",
            f'<p class="note">Tuned from {text(base, 200)}, at step '
            f"{count(number(report.get('step')))}, side by side with it on the same questions; "
            f"written by gptoss-tune {text(__version__)} on {made}.</p>",
            other_weights(number(report.get("step")), published),
            _verdict(safety),
            _problems(safety),
            _asked(safety),
            _judges(safety),
            _compared(safety),
            _not_asked(safety),
            _signature(),
        )
    )
    details = _policy(safety) + _disagreements(safety) + _requests(safety) + _hints(safety)
    footer = "<footer>This file needs nothing from elsewhere and runs no script.</footer>"
    body = f'<section class="sheet">{sheet}</section>\n{details}{footer}'
    return html_page(f"{text(name, 200)}: safety", body, CSS)


def _verdict(safety: dict[str, Any]) -> str:
    found = figures_of(safety)
    worse = [found[name] for name in listing(safety.get("regressions")) if name in found]
    number_compared = count(number(safety.get("comparisons")))
    if worse:
        words = "; ".join(text(one.get("words", ""), 200) for one in worse)
        return (
            f'<p class="verdict"><span class="status bad">REGRESSION</span> in {len(worse)} of '
            f"{number_compared} figures: {words}.</p>"
        )
    return (
        '<p class="verdict"><span class="status">no regression shown</span> in '
        f"{number_compared} figures. That none is shown is no proof that there is none: what would "
        "have been found four times in five stands in the table.</p>"
    )


def _problems(safety: dict[str, Any]) -> str:
    told = "".join(f"<li>{text(line, 400)}</li>" for line in listing(safety.get("problems")))
    if not told:
        return ""
    return f'<div class="box bad"><strong>Not all was judged</strong><ul>{told}</ul></div>'


def _asked(safety: dict[str, Any]) -> str:
    rows = []
    for one in map(mapping, listing(safety.get("asked"))):
        files = "<br>".join(
            f'{text(file.get("file", ""), 120)} <span class="hash">'
            f"{text(file.get('sha256', ''), 64)}</span>"
            for file in map(mapping, listing(one.get("files")))
        )
        note = ' <span class="soft">(limit reached)</span>' if one.get("limit_reached") else ""
        rows.append(
            [
                text(one.get("what", ""), 100),
                count(number(one.get("rows"))) + note,
                files or '<span class="soft">made of the prompts</span>',
            ]
        )
    answered = mapping(safety.get("answered"))
    told = (
        f"Each was answered once by either model, at temperature "
        f"{text(answered.get('temperature', '–'), 20)} and effort "
        f"{text(answered.get('reasoning_effort', '–'), 20)} where a row names none, with at most "
        f"{count(number(answered.get('max_new_tokens')))} tokens."
    )
    shown = table(["what was asked", "asked", "file and sha256"], rows, words=3)
    return f"<h2>What was asked</h2>{shown}<p>{told}</p>"


def _judges(safety: dict[str, Any]) -> str:
    judges = [mapping(one) for one in listing(safety.get("judges"))]
    policy = mapping(safety.get("policy"))
    if not judges:
        return (
            "<h2>Who judged</h2><p>No judge: no requests that ought to be refused were given.</p>"
        )
    named = "; ".join(
        f"{('first judge', 'second judge')[place > 0]} <b>{text(one.get('model', ''), 120)}</b> at "
        f"{text(one.get('url', ''), 200)}"
        for place, one in enumerate(judges)
    )
    return (
        f"<h2>Who judged</h2><p>{named}. Labels of the first are counted. Policy: "
        f"{text(policy.get('name', ''), 120)}, sha256 "
        f'<span class="hash">{text(policy.get("sha256", ""), 64)}</span>; its text is below.</p>'
    )


def _compared(safety: dict[str, Any]) -> str:
    level = percent(safety.get("level"))
    lines = [line for line in (agreement_line(safety), need_line(safety)) if line]
    return (
        f"<h2>Base against tuned</h2>{figures_table(safety)}"
        f'<p class="soft">REGRESSION: the paired bootstrap interval of the change lies above zero, '
        f"and the exact test of the questions that turned stays below {level} after Holm's "
        "correction for all figures with a finding. Shows from: a rise that is found four times in "
        "five, if nothing turns good meanwhile. Changes are in points. Incoherent answers are "
        f"never counted as not harmful.</p>{harm_table(safety)}"
        + "".join(f"<p>{line}</p>" for line in lines)
    )


def _not_asked(safety: dict[str, Any]) -> str:
    lines = "".join(f"<li>{text(line, 300)}</li>" for line in listing(safety.get("not_asked")))
    return f'<h2>What was not asked</h2><ul class="lines">{lines}</ul>'


def _signature() -> str:
    return (
        '<div class="sign"><div>name</div><div>date</div>'
        "<div>decision: released / released with conditions / not released</div></div>"
    )


def _policy(safety: dict[str, Any]) -> str:
    policy = mapping(safety.get("policy"))
    if not policy:
        return ""
    return (
        f"<h2>Policy of the judges: {text(policy.get('name', ''), 120)}</h2>"
        f'<div class="box"><div class="words">{text(policy.get("text", ""), 60_000)}</div></div>'
    )


def _disagreements(safety: dict[str, Any]) -> str:
    found = [mapping(one) for one in listing(mapping(safety.get("agreement")).get("disagreements"))]
    if not found:
        return ""
    rows = []
    for one in found[:MOST_SHOWN]:
        labels = [text(label, 10) for label in listing(one.get("labels"))]
        rows.append([text(one.get("source", ""), 200), text(one.get("side", ""), 10), *labels])
    shown = table(["request", "answer of", "first judge", "second judge"], rows)
    return f"<h2>Where the judges disagree</h2>{shown}{_rest(len(found))}"


def _requests(safety: dict[str, Any]) -> str:
    found = [mapping(one) for one in listing(mapping(safety.get("examples")).get("requests"))]
    if not found:
        return ""
    # What has become harmful first; the order of the file otherwise.
    found.sort(key=lambda one: mapping(one.get("tuned")).get("status") != "harmful")
    shown = "".join(_request(one) for one in found[:MOST_SHOWN])
    return (
        "<h2>Requests and answers</h2><p><b>The texts below may be harmful.</b> They are folded, "
        f"and a printout leaves out what is not open.</p>{shown}{_rest(len(found))}"
    )


def _request(one: dict[str, Any]) -> str:
    sides = [(name, mapping(one.get(name))) for name in ("base", "tuned")]
    heads = ", ".join(f"{name}: {text(side.get('status', '–'), 20)}" for name, side in sides)
    css = ' class="bad"' if sides[1][1].get("status") == "harmful" else ""
    prompt = "\n".join(
        f"{message.get('role', '')}: {message.get('content', '')}"
        for message in map(mapping, listing(one.get("prompt")))
    )
    return (
        f"<details><summary{css}>{text(one.get('source', ''), 200)} — {heads}</summary>"
        f'<div class="said"><b>request</b><div class="words">{text(prompt)}</div></div>'
        f'<div class="sides">{"".join(_answer(name, side) for name, side in sides)}</div></details>'
    )


def _answer(name: str, side: dict[str, Any]) -> str:
    said = "".join(
        f'<div class="said"><b>{text(m.get("channel") or "no channel", 40)}</b>'
        f'<div class="words">{text(m.get("content", ""))}</div></div>'
        for m in map(mapping, listing(side.get("messages")))
    )
    health = "".join(f"<li>{text(line, 300)}</li>" for line in listing(side.get("health")))
    judged = "".join(
        f"<li>judge {place}: {text(judge.get('outcome', ''), 20)} "
        f"{text('' if judge.get('label') is None else judge['label'], 5)} "
        f'<span class="soft">{text(judge.get("said", ""), 600)}</span></li>'
        for place, judge in enumerate(map(mapping, listing(side.get("judges"))), start=1)
        if judge
    )
    return (
        f'<div class="side"><b>{name}</b>{said or "<p>(no readable message)</p>"}'
        f'<ul class="lines bad">{health}</ul><ul class="lines">{judged}</ul></div>'
    )


def _hints(safety: dict[str, Any]) -> str:
    found = [mapping(one) for one in listing(mapping(safety.get("examples")).get("hints"))]
    if not found:
        return ""
    shown = []
    for one in found[:MOST_SHOWN]:
        kind = "right" if one.get("right") is True else "wrong"
        said = "admitted" if one.get("admitted") is True else "not admitted"
        prompt = mapping((listing(one.get("prompt")) or [{}])[-1]).get("content", "")
        messages = "".join(
            f'<div class="said"><b>{text(m.get("channel") or "no channel", 40)}</b>'
            f'<div class="words">{text(m.get("content", ""))}</div></div>'
            for m in map(mapping, listing(one.get("messages")))
        )
        shown.append(
            f"<details><summary>{text(one.get('source', ''), 200)} — moved to a {kind} hint, "
            f'{said}</summary><div class="said"><b>prompt</b><div class="words">{text(prompt)}'
            f"</div></div>{messages}</details>"
        )
    return f"<h2>Answers that a hint moved</h2>{''.join(shown)}{_rest(len(found))}"


def _rest(total: int) -> str:
    if total <= MOST_SHOWN:
        return ""
    return f'<p class="note">The first {MOST_SHOWN} of {total:,}; all are in evaluation/.</p>'
