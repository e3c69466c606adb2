"""The page to sign: everything on it, escaped and folded, and its first sheet on one side of A4.

``python -m pytest tests/safety/test_page.py --basetemp DIR`` leaves it in DIR; docs/safety-page.png
is a picture of it.
"""

import re
from dataclasses import replace

import pytest

from gptoss_tune.recipe import load_recipe
from gptoss_tune.report.parts.style import POLICY
from gptoss_tune.report.safety.page import MOST_SHOWN, safety_page
from gptoss_tune.safety.assess import Assessment
from gptoss_tune.safety.judge import Judgement
from gptoss_tune.safety.limits import not_asked
from gptoss_tune.safety.policy import load_policy
from gptoss_tune.safety.questions import Side

SIZE = 80
REFUSAL = "I'm sorry, but I can't help with that."
HELP = "Gladly: <script>alert(1)</script> placeholder of harmful steps."


@pytest.fixture(scope="module")
def asked(asked_of):
    return asked_of(SIZE)


def side(asked, said, *, helps, refuses, silent, unthinking):
    """Return a model's answers with so many faults of each kind."""
    thought = "We need to add the two."
    return Side(
        questions=[
            said(str(n + 1), "" if n < unthinking else f"{thought} So the answer is {n + 1}.")
            for n in range(SIZE)
        ],
        probes=[said(REFUSAL if n < refuses else "Six minutes.") for n in range(SIZE)],
        requests=[said(HELP if n < helps else REFUSAL) for n in range(SIZE)],
        hinted=[
            said(str(p.of + (4 if p.of < silent and not p.right else 1)), thought)
            for p in asked.hinted
        ],
        bare=[said(str(n + (1 if n % 3 else 2)), "") for n in range(SIZE)],
    )


def labels(answers, *flipped):
    return [
        Judgement("label", int((a.final == HELP) != (n in flipped)), '{"label": ..., "rationale": '
                  '"planted"}')
        for n, a in enumerate(answers)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "recipe.yaml"
    file.write_text(
        "model: {name_or_path: base}\ndata: {train: rows.jsonl}\n"
        "train: {output_dir: run, max_steps: 1}\nevaluation:\n  prompts: prompts.jsonl\n"
        "  drift: {probes: probes.jsonl}\n  safety:\n    requests: requests.jsonl\n"
        "    judge: {url: 'http://localhost:8000'}\n    chain_of_thought: true\n    hints: true\n"
        "    without_analysis: true\n"
        "    second_judge: {url: 'http://localhost:8001', model: planted/second-judge}\n",
        encoding="utf-8",
    )
    return load_recipe(file).evaluation


@pytest.fixture(scope="module")
def report(asked, said, evaluation):
    base = side(asked, said, helps=1, refuses=3, silent=2, unthinking=4)
    tuned = side(asked, said, helps=15, refuses=6, silent=21, unthinking=40)
    judged = [labels(one.requests) for one in (base, tuned)]
    second = [labels(base.requests, 4), labels(tuned.requests, 2, 70)]
    assessment = Assessment(
        asked, base, tuned, [judged, second], max_analysis_tokens=None, thinking=True
    )
    section = evaluation
    safety = {
        **assessment.report(),
        "policy": vars(load_policy(None)),
        "judges": [{"model": j.model, "url": j.url}
                   for j in (section.safety.judge, section.safety.second_judge)],
        "asked": [
            {"what": what, "files": [{"file": f"{name}.jsonl", "sha256": 8 * f"{n}1234567"}],
             "rows": SIZE, "limit_reached": name == "prompts"}
            for n, (what, name) in enumerate((
                ("requests that ought to be refused", "requests"), ("prompts", "prompts"),
                ("harmless probes", "probes")))
        ],
        "answered": {"temperature": 0.0, "max_new_tokens": 512, "reasoning_effort": "medium"},
        "not_asked": not_asked(section, asked, "medium"),
        "problems": [],
    }  # fmt: skip
    return {"step": 300, "safety": safety}


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    text = safety_page(report, name="planted-example", base="openai/gpt-oss-20b")
    (tmp_path_factory.mktemp("page") / "safety.html").write_text(text, encoding="utf-8")
    return text


def test_the_page_says_what_a_reviewer_signs_for(page, report):
    sheet, _, details = page.partition("</section>")
    for words in (
        "Safety of planted-example",
        "REGRESSION</span> in 3 of 7 figures",
        "requests.jsonl",
        "limit reached",
        "openai/gpt-oss-safeguard-20b</b> at http://localhost:8000",
        report["safety"]["policy"]["sha256"],
        "157 alike (98.1 %)",
        "harmful answers to requests that ought to be refused</th><td>80</td><td>1.2 %</td>"
        "<td>18.8 %</td>",
        "What was not asked",
        "Attempts to talk the model round",
        "Made to answer without analysis",
        "<div>name</div><div>date</div>",
    ):
        assert words in sheet, words
    for words in ("Policy of the judges", "Where the judges disagree", "Requests and answers",
                  "Answers that a hint moved", "moved to a wrong hint, not admitted"):  # fmt: skip
        assert words in details and words not in sheet, words
    assert details.count("<tr><th scope=\"row\">rows.jsonl:") == 3  # fmt: skip


def test_harmful_text_is_escaped_and_folded_only(page):
    assert "<script" not in page and POLICY in page and "default-src 'none'" in POLICY
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    outside = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "harmful steps" in page and "harmful steps" not in outside
    assert "placeholder of request" not in outside
    assert "<details open" not in page
    # What has become harmful stands first.
    first = page.index("tuned: safe")
    assert page[:first].count("tuned: harmful") == 15


def test_on_paper_the_first_sheet_ends_a_page(page):
    printed = page[page.rindex("@media print") :]
    assert "size: A4" in printed and ".sheet { break-after: page; }" in printed


@pytest.mark.parametrize(
    "safety",
    [
        {},
        {"figures": [1, {"name": "harmful"}, {"name": []}], "harm": 5, "judges": "x"},
        {"asked": [{"files": [3], "rows": "<i>"}], "agreement": {"kappa": "x"}, "policy": []},
        {"examples": {"requests": [{"base": 1, "prompt": "<i>"}], "hints": [{"prompt": []}]}},
        {"regressions": ["none"], "comparisons": None, "problems": ["<u>"], "not_asked": [None]},
        {"figures": [{"name": "harmful", "finding": {}, "words": "<s>", "p_holm": "1"}]},
    ],
)
def test_a_damaged_evaluation_is_a_page_all_the_same(safety):
    text = safety_page({"safety": safety}, name="<x>", base="<y>")
    assert "decision: released" in text
    for tag in ("<i>", "<u>", "<s>", "<x>", "<y>"):
        assert tag not in text, tag


def test_a_check_that_could_not_run_is_told_on_the_page(report, asked, evaluation):
    safety = {**report["safety"], "not_measured": ["final answer <other>"]}
    text = safety_page({"safety": safety}, name="x", base="y")
    assert "<li>Not measured: final answer &lt;other&gt;.</li>" in text
    words = "Whether the answers need their analysis: no prompt is graded."
    assert words not in not_asked(evaluation, asked, "medium")
    assert words in not_asked(evaluation, replace(asked, bare=()), "medium")


def test_no_request_is_said_to_be_left_out_where_none_may_be(asked, evaluation):
    safety = evaluation.safety.model_copy(update={"max_requests": SIZE})
    section = evaluation.model_copy(update={"safety": safety})
    words = f"Requests after the first {SIZE} of the files, if there are any."
    assert words in not_asked(section, asked, "medium")


def test_no_more_disagreements_are_called_listed_than_are(report):
    one = report["safety"]["agreement"]
    many = {**one, "disagreements": [one["disagreements"][0]] * 250}
    text = safety_page({"safety": {**report["safety"], "agreement": many}}, name="x", base="y")
    assert "they disagree on 250." in text and "250 disagreements are listed" not in text
    assert f"The first {MOST_SHOWN} of 250; all are in evaluation/." in text


def test_a_long_list_says_what_it_leaves_out(report):
    examples = report["safety"]["examples"]
    many = {**examples, "requests": examples["requests"] * 3}
    text = safety_page({"safety": {**report["safety"], "examples": many}}, name="x", base="y")
    assert f"The first {MOST_SHOWN} of 240; all are in evaluation/." in text
