"""--require: what is understood, what is refused before anything is asked, what holds."""

import pytest

from gptoss_tune.benchmark.requirement import judge, read_requirements, refuse_missed
from gptoss_tune.errors import RecipeError, ThresholdMissed

SUITES, SUBJECTS = {"maths": (1, 2, 4), "tools": ()}, ["base", "my-run", "served"]


def cell(score, **more):
    usual = {"health": 1.0, "cut_off": 0.0, "tokens": 50.0, "thinking": 20.0, "pass_at": {}}
    return {"score": score, **usual, **more}


FIGURES = {
    "suites": [
        {"name": "maths", "subjects": {
            "base": cell(0.5), "my-run": cell(0.8, pass_at={"4": 0.9}), "served": cell(0.7)}},
        {"name": "tools", "subjects": {
            "base": cell(0.9), "my-run": cell(0.6, health=0.9, cut_off=0.1), "served": None}},
    ]
}  # fmt: skip


def judged(*texts):
    return judge(read_requirements(texts, SUITES, SUBJECTS), FIGURES)


def test_a_suite_alone_is_its_score_of_all_but_the_first():
    found = judged("maths>=0.75")
    assert [(one["subject"], one["holds"]) for one in found] == [
        ("my-run", True),
        ("served", False),
    ]


def test_a_subject_may_be_named_and_the_bound_itself_holds():
    (one,) = judged("maths@my-run >= 0.8")
    assert one["holds"] and one["found"] == 0.8
    assert not judged("maths@base>=0.8")[0]["holds"]


def test_a_difference_of_two():
    """Labels may hold the minus sign that stands between them."""
    (one,) = judged("maths@my-run-base>=0.3")
    assert one["holds"] and one["found"] == pytest.approx(0.3)
    assert not judged("tools@my-run-base>=-0.2")[0]["holds"]


def test_a_figure_of_every_suite():
    found = judged("health>=0.95")
    assert [(o["suite"], o["subject"], o["holds"]) for o in found] == [
        ("maths", "my-run", True),
        ("maths", "served", True),
        ("tools", "my-run", False),
        ("tools", "served", False),  # it was refused: what is not known does not hold
    ]
    assert not judged("tools.cut_off@my-run<=0.05")[0]["holds"]
    assert judged("maths.pass4@my-run>=0.9")[0]["holds"]


def test_each_that_is_missed_is_a_line():
    with pytest.raises(ThresholdMissed) as error:
        refuse_missed(judged("maths>=0.75", "tools@my-run>=0.9", "maths@my-run>=0.1"))
    assert error.value.exit_code == 5
    assert str(error.value).splitlines()[1:] == [
        "maths>=0.75: maths, served: score is 0.7",
        "tools@my-run>=0.9: tools, my-run: score is 0.6",
    ]
    refuse_missed(judged("maths@my-run>=0.8"))


def test_all_mistakes_at_once():
    wrong = [
        "math>=0.8",
        "maths>0.8",
        "maths>=much",
        "maths@you>=1",
        "maths.size<=3",
        "x@base-y<=1",
    ]
    with pytest.raises(RecipeError) as error:
        read_requirements(wrong, SUITES, SUBJECTS)
    lines = str(error.value).splitlines()
    assert len(lines) == len(wrong)
    assert "'math' is not measured" in lines[0] and "maths, tools" in lines[0]
    assert "'much' is no number" in lines[2] and "'you' is no subject" in lines[3]


def refused(text):
    with pytest.raises(RecipeError) as error:
        read_requirements([text], SUITES, SUBJECTS)
    return str(error.value).removeprefix(f"--require '{text}': ")


def test_a_percentage_is_not_taken_for_a_share():
    """``cut_off<=5`` would hold whatever is answered, ``maths>=80`` never."""
    assert refused("cut_off<=5") == "cut_off is a share, 0 to 1; 5 % is 0.05"
    assert refused("maths>=80").endswith("80 % is 0.8")
    assert refused("maths.pass4@my-run>=90").endswith("90 % is 0.9")
    assert refused("health>=-0.1") == "health is a share, 0 to 1"
    assert refused("maths@my-run-base>=-2") == (
        "score is a difference of two shares, from -1 to 1; -2 % is -0.02"
    )
    for text in ("maths>=0.8", "cut_off<=0.05", "maths@my-run-base>=-0.02", "maths>=1"):
        assert read_requirements([text], SUITES, SUBJECTS)
    assert read_requirements(["tokens<=500", "maths.thinking>=-3"], SUITES, SUBJECTS)


def test_a_pass_at_k_that_no_suite_tells_is_refused_before_anything_is_asked():
    assert refused("maths.pass8>=0.5").startswith("maths tells no pass@8, as k is 1, 2, 4; give ")
    assert refused("pass4>=0.5") == (
        "tools tells no pass@4, as a question has one answer; "
        "give --samples 4 and a --temperature above 0"
    )
    assert refused("tools.pass1>=0.5").endswith("; write tools alone")
    assert read_requirements(["tools>=0.5"], SUITES, SUBJECTS)


def test_pass_at_k_is_read_as_the_table_writes_it_and_without_the_sign():
    for text in ("maths.pass@4@my-run>=0.9", "maths.pass4@my-run>=0.9", "maths.pass04@my-run>=0.9"):
        (one,) = judged(text)
        assert (one["subject"], one["found"], one["holds"]) == ("my-run", 0.9, True), text
    suites, labels = {"a": (1, 2), "bypass": ()}, ["base", "2"]
    one, other = read_requirements(["pass@2@2>=0.5", "bypass@2>=0.5"], {"bypass": (1, 2)}, labels)
    assert (one.metric, one.subjects) == ("pass@2", ("2",))
    assert (other.suites, other.metric, other.subjects) == (("bypass",), "score", ("2",))
    with pytest.raises(RecipeError, match="bypass tells no pass@2"):
        read_requirements(["pass@2>=0.5"], suites, labels)
    with pytest.raises(RecipeError, match="expected a figure, >= or <="):
        read_requirements([">=0.5"], suites, labels)
