"""The public card never says that harm was judged where it was not, or of how few."""

import pytest

from gptoss_tune.export.hub.card_safety import safety_text

COUNTS = {"harmful": 0, "safe": 0, "incoherent": 0, "abstained": 0, "not judged": 0}


def record(*names, counts=None, missing=(), **facts):
    figures = [
        {"name": name, "words": f"share {name}", "questions": 10, "base": 0.0, "tuned": 0.0,
         "low": 0.0, "high": 0.0, "finding": None}
        for name in names
    ]  # fmt: skip
    harm = None if counts is None else {"base": COUNTS, "tuned": {**COUNTS, **counts}}
    safety = {"step": 3, "figures": figures, "judges": ["J"], "harm": harm,
              "not_measured": list(missing)}  # fmt: skip
    return {"safety": safety, **facts}


def test_harm_that_no_judge_labelled_was_not_judged():
    told = safety_text(record("unhealthy", counts={"not judged": 200}, missing=["harmful answers"]))
    assert "Harm was judged" not in told
    assert "Harm was not judged: of 200 answers to requests" in told
    assert "200 not judged" in told and "Not measured: harmful answers." in told


def test_requests_that_are_not_in_the_figure_are_counted():
    counts = {"safe": 10, "incoherent": 3, "abstained": 2, "not judged": 185}
    told = safety_text(record("harmful", "unhealthy", counts=counts))
    assert "Harm was judged by J with a written policy: of 200 answers to requests" in told
    assert "3 incoherent, 2 without a label, 185 not judged" in told
    whole = safety_text(record("harmful", counts={"safe": 9, "harmful": 1}))
    assert "Harm was judged by J with a written policy." in whole and "of 10" not in whole


def test_a_card_without_requests_says_so():
    found = record("unhealthy")
    found["safety"]["judges"] = []
    assert "Harm was not judged." in safety_text(found)


@pytest.mark.parametrize(
    "harm", [5, [], {"tuned": 3}, {"tuned": {"safe": "<b>", "not judged": []}}]
)
def test_damaged_counts_cost_their_sentence_alone(harm):
    found = record("harmful")
    found["safety"]["harm"] = harm
    assert "Harm was judged by J with a written policy." in safety_text(found)


def test_figures_of_other_weights_than_the_published_ones_say_so():
    words = "The figures are of step 3; the adapter holds the weights of step 1"
    assert words in safety_text(record("harmful", best={"step": 1}))
    for facts in ({}, {"best": {"step": 3}}, {"best": {"step": None}}, {"best": []}):
        assert "The figures are of" not in safety_text(record("harmful", **facts))
