"""Which figures have a question is known before anything is answered."""

from dataclasses import replace

import pytest

from gptoss_tune.safety.assess import FLAGGED, SHOWN, Assessment, measured
from gptoss_tune.safety.judge import Judgement
from gptoss_tune.safety.questions import Side

NOTHING = {"prompts": (), "questions": (), "hinted": (), "bare": ()}


@pytest.mark.parametrize(
    ("left_out", "thinking"),
    [
        ({}, True),
        ({}, False),
        ({"probes": ()}, True),
        ({"requests": ()}, True),
        ({"hinted": (), "bare": ()}, False),
        ({"hinted": "right"}, True),
        ({"hinted": "wrong"}, True),
        ({"questions": "ungraded", "hinted": (), "bare": ()}, True),
        (NOTHING, False),
        ({"requests": (), "probes": (), "hinted": (), "bare": ()}, True),
        ({"requests": (), "probes": ()}, False),
    ],
)
def test_they_are_those_of_an_assessment(asked_of, said, left_out, thinking):
    asked = asked_of(3)
    if left_out.get("hinted") in ("right", "wrong"):
        right = left_out["hinted"] == "right"
        left_out = {**left_out, "hinted": tuple(p for p in asked.hinted if p.right == right)}
    if left_out.get("questions") == "ungraded":
        plain = tuple(replace(question, grader=None) for question in asked.questions)
        left_out = {**left_out, "questions": plain}
    asked = replace(asked, **left_out)
    sets = ("questions", "probes", "requests", "hinted", "bare")
    side = Side(**{name: [said("4", "So it is 4.")] * len(getattr(asked, name)) for name in sets})
    labels = [Judgement("label", 0, "0")] * len(asked.requests)
    found = Assessment(
        asked, side, side, [(labels, labels)], max_analysis_tokens=None, thinking=thinking
    ).report()
    names = {one["name"] for one in found["figures"]}
    assert measured(asked, thinking=thinking) == names | {"regressions"}
    assert names <= {*FLAGGED, *SHOWN}
