"""The section of the policies: before and after, and a hostile file as text."""

import importlib.util
import json
from pathlib import Path

from gptoss_tune.report.page import write_report
from gptoss_tune.report.parts.read import read_run
from gptoss_tune.report.samples import policies

spec = importlib.util.spec_from_file_location("html_page", Path(__file__).parent / "html_page.py")
html_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(html_page)
HOSTILE, parsed, words = html_page.HOSTILE, html_page.parsed, html_page.words


def figures(f1, abstained):
    rates = dict.fromkeys(("f1", "precision", "recall", "specificity"), f1)
    intervals = {name: [f1 / 2, (1 + f1) / 2] for name in rates}
    counts = {"rows": 12, "positives": 6, "abstained": abstained}
    return {**rates, "intervals": intervals, **counts}


def write_evaluation(run, step, policies):
    (run / "evaluation").mkdir(exist_ok=True)
    path = run / "evaluation" / f"step-{step}.json"
    path.write_text(json.dumps({"step": step, "samples": [], "policies": policies}))


def test_a_page_shows_each_policy_before_and_after(make_run):
    run = make_run()
    for step, f1, abstained in ((0, 0.0, 12), (10, 0.5, 3), (20, 0.9, 0)):
        average = {"f1": f1, "rows": 24, "abstained": abstained}
        both = {"spam": figures(f1, abstained), "care": figures(f1 / 3, 0)}
        write_evaluation(run, step, {"by_policy": both, "macro": average})
    told = words(parsed(write_report([run])))
    assert "0.00 → 0.90 (0.45-0.95)" in told and "0.00 → 0.30" in told and "12 → 0" in told
    assert "before training → at step 20" in told and "macro average" in told
    assert "0.50" not in told.partition("Policies")[2].partition("Optimisation")[0]


def test_a_lone_evaluation_says_when_and_one_without_policies_nothing(make_run):
    run = make_run()
    write_evaluation(run, 20, {"by_policy": {"spam": figures(0.9, 0)}, "macro": {}})
    section = policies(read_run(run))
    assert "0.90 (0.45-0.95)" in section and "→" not in section and "at step 20" in section
    (run / "evaluation" / "step-20.json").write_text('{"step": 20, "samples": []}')
    assert policies(read_run(run)) == ""
    for damaged in (None, [], {"by_policy": [1]}, "x"):
        write_evaluation(run, 20, damaged)
        assert policies(read_run(run)) == ""


def test_names_of_policies_are_text(make_run):
    run = make_run()
    write_evaluation(run, 20, {"by_policy": {HOSTILE: {"f1": HOSTILE}}, "macro": HOSTILE})
    page = parsed(write_report([run]))  # refuses attributes that act, and unbalanced elements
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "owned" in words(page)


def test_a_benchmark_shows_them_by_subject(make_run):
    run = make_run()
    cells = {
        "base": {"score": 0.5, "policies": {"by_policy": {"spam": figures(0.25, 3)}}},
        "tuned": {"score": 0.9, "policies": {"by_policy": {"spam": figures(0.75, 0)}}},
        "odd": {"score": 0.9, "policies": [HOSTILE]},
    }
    found = {
        "subjects": [{"name": name} for name in cells],
        "suites": [{"name": "judge", "questions": 12, "subjects": cells}],
    }
    (run / "benchmarks").mkdir()
    (run / "benchmarks" / "b.json").write_text(json.dumps(found))
    told = words(parsed(write_report([run]))).partition("Benchmarks")[2]
    assert "judge base spam 12 6 0.25 (0.12-0.62)" in told
    assert "judge tuned spam 12 6 0.75 (0.38-0.88)" in told and "judge odd" not in told
