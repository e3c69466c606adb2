"""The page to sign and the report's section are of the step whose weights are published."""

import json
from types import SimpleNamespace

import pytest

from gptoss_tune.report.parts.read import read_run
from gptoss_tune.report.safety.page import write_safety_page
from gptoss_tune.report.safety.section import safety_section


@pytest.fixture
def judged_run(make_run):
    """Return a function that writes a run with a record that a training run can read."""

    def make(name="run", **changes):
        run = make_run(name, run_id="r", **changes)
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        record["base"] = {"name": "openai/gpt-oss-20b"}
        (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
        return run

    return make


def evaluation(step, *regressions):
    """Return an evaluation whose figure of harm has a regression, or has none."""
    words = "harmful answers to requests that ought to be refused"
    one = {"name": "harmful", "words": words, "questions": 9, "base": 0.0, "tuned": 0.5,
           "difference": 0.5, "low": 0.1, "high": 0.9,
           "finding": "regression" if regressions else "no difference shown"}  # fmt: skip
    safety = {"figures": [one], "regressions": list(regressions), "comparisons": 1, "judges": [],
              "policy": None, "agreement": None, "harm": None, "not_measured": [],
              "problems": []}  # fmt: skip
    empty = {"total": 0, "passed": 0, "valid": 0}
    return {"step": step, "graded": empty, "health": empty, "samples": [], "drift": None,
            "safety": safety}  # fmt: skip


def write(run, *reports):
    (run / "evaluation").mkdir(exist_ok=True)
    for report in reports:
        path = run / "evaluation" / f"step-{report['step']}.json"
        path.write_text(json.dumps(report), encoding="utf-8")


def test_the_page_is_of_the_evaluation_in_hand_and_not_of_the_newest(judged_run):
    run = judged_run()
    bad = evaluation(2, "harmful")
    write(run, bad, evaluation(4))
    page = write_safety_page(run, bad).read_text(encoding="utf-8")
    assert "at step 2," in page and "REGRESSION</span> in 1 of 1" in page
    assert "Safety of run" in page and "Tuned from openai/gpt-oss-20b" in page


def test_an_earlier_step_that_is_published_is_what_is_signed_and_shown(judged_run):
    from gptoss_tune.train.evaluation import Evaluation

    run = judged_run()
    write(run, evaluation(2, "harmful"), evaluation(4))
    recipe = SimpleNamespace(evaluation=None, lora=SimpleNamespace(init_from=None))
    context = SimpleNamespace(recipe=recipe, run=run, console=None, stop=None, watch=None)
    trainer = SimpleNamespace(state=SimpleNamespace(is_world_process_zero=True))
    Evaluation(None, context, trainer, None).tell_again(2)
    assert json.loads((run / "run.json").read_text())["safety"]["step"] == 2
    page = (run / "safety.html").read_text(encoding="utf-8")
    assert "at step 2," in page and "REGRESSION</span>" in page
    section = safety_section(read_run(run))
    assert "At step 2;" in section and "REGRESSION" in section


def test_the_section_never_shows_another_step_than_the_record_names(judged_run):
    run = judged_run(safety={"step": 6})
    write(run, evaluation(2, "harmful"), evaluation(4))
    section = safety_section(read_run(run))
    assert "evaluation of step 6" in section and "cannot be shown" in section
    assert "<table" not in section and "At step" not in section


def test_without_a_step_in_the_record_the_section_is_of_the_newest(judged_run):
    for record in ({}, {"safety": {"step": "2"}}, {"safety": []}):
        run = judged_run(f"run{len(str(record))}", **record)
        write(run, evaluation(2, "harmful"), evaluation(4))
        assert "At step 4;" in safety_section(read_run(run))


def test_weights_that_were_not_evaluated_are_told_on_the_page_and_in_the_section(judged_run):
    from gptoss_tune.train.evaluation import Evaluation

    run = judged_run(safety={"step": 4}, best={"step": 3})
    write(run, evaluation(4))
    recipe = SimpleNamespace(evaluation=None, lora=SimpleNamespace(init_from=None))
    context = SimpleNamespace(recipe=recipe, run=run, console=None, stop=None, watch=None)
    trainer = SimpleNamespace(state=SimpleNamespace(is_world_process_zero=True))
    callback = Evaluation(None, context, trainer, None)
    callback._evaluated = 4
    callback.tell_again(3)
    words = "holds those of step 3, whose safety was not evaluated; all below is of step 4"
    assert words in (run / "safety.html").read_text(encoding="utf-8")
    assert words in safety_section(read_run(run))
    write_safety_page(run, evaluation(4))
    assert words not in (run / "safety.html").read_text(encoding="utf-8")
