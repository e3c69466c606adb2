"""The section of the benchmarks: figures side by side, and a hostile file as text."""

import importlib.util
import json
from pathlib import Path

from gptoss_tune.report.benchmarks import benchmarks
from gptoss_tune.report.page import write_report
from gptoss_tune.report.parts.read import read_run

spec = importlib.util.spec_from_file_location("html_page", Path(__file__).parent / "html_page.py")
html_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(html_page)
HOSTILE, parsed, words = html_page.HOSTILE, html_page.parsed, html_page.words


def cell(score, value=None, *, noise=True):
    against = None
    if value is not None:
        against = {"value": value, "interval": [value - 0.1, value + 0.1], "within_noise": noise}
    return {
        "score": score, "interval": [score - 0.1, score + 0.1], "pass_at": {"4": 0.95},
        "tokens": 120.4, "thinking": 80.2, "cut_off": 0.05, "health": 0.99,
        "difference": against,
    }  # fmt: skip


FOUND = {
    "reference": "base",
    "created": "2026-11-28T11:00:00Z",
    "subjects": [
        {"name": "base", "protocol": "in process, token ids", "refused": None},
        {"name": "tuned", "protocol": "in process, token ids", "refused": None},
        {"name": "glued", "protocol": "chat completions", "refused": "does not parse harmony"},
    ],
    "suites": [
        {"name": "maths", "questions": 40, "contamination": {"share": 0.025}, "subjects": {
            "base": cell(0.3), "tuned": cell(0.8, 0.5, noise=False), "glued": None}},
        {"name": "tools", "questions": 12, "contamination": None, "subjects": {
            "base": cell(0.6), "tuned": cell(0.5, -0.1), "glued": None}},
    ],
    "required": [{"said": "maths>=0.9: maths, tuned: score is 0.8", "holds": False}],
    "notes": ["glued takes no seed"],
    "answers": [{"prompt": "a" * 1000}],
}  # fmt: skip


def write(run, found, name="benchmark"):
    (run / "benchmarks").mkdir(exist_ok=True)
    (run / "benchmarks" / f"{name}.json").write_text(json.dumps(found))


def test_a_page_shows_subjects_side_by_side(make_run):
    run = make_run()
    write(run, FOUND)
    told = words(parsed(write_report([run]))).partition("Benchmarks")[2]
    for text in ("maths", "40 questions", "80.0% [70, 90]", "+50.0 [+40, +60]", "better",
                 "-10.0 [-20, +0]", "within noise", "4: 95.0%", "120", "5.0%", "99.0%", "2.5%",
                 "not graded", "glued: does not parse harmony", "glued takes no seed",
                 "missed maths>=0.9: maths, tuned: score is 0.8"):  # fmt: skip
        assert text in told, text
    assert "a" * 50 not in told and read_run(run).benchmarks[0][1].get("answers") is None


def test_damaged_files_cost_their_part_alone(make_run):
    run = make_run()
    assert benchmarks(read_run(run)) == ""
    for damaged in (None, [], {"suites": 5}, {"suites": [3], "subjects": [3]}, {"suites": [{}]}):
        write(run, damaged)
        assert "Traceback" not in benchmarks(read_run(run))
    (run / "benchmarks" / "torn.json").write_text('{"suites": [')
    assert any("torn.json" in problem for problem in read_run(run).problems)


def test_names_are_text(make_run):
    run = make_run()
    subjects = [{"name": HOSTILE, "protocol": HOSTILE, "refused": None}]
    suite = {"name": HOSTILE, "questions": HOSTILE, "subjects": {HOSTILE: {"score": HOSTILE}}}
    suite["subjects"][HOSTILE]["pass_at"] = {HOSTILE: 1}
    hostile = {"reference": HOSTILE, "subjects": subjects, "suites": [suite], "notes": [HOSTILE]}
    write(run, hostile | {"required": [{"said": HOSTILE}], "created": HOSTILE})
    page = parsed(write_report([run]))  # refuses attributes that act, and unbalanced elements
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "owned" in words(page)
