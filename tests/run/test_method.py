"""The method of a run in words, by what its record says was trained."""

import pytest

from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.run.method import method_of

PAIRS = "direct preference optimisation (DPO)"


@pytest.mark.parametrize(
    ("name", "trained", "words", "told"),
    [
        ("sft", {"final": 3, "other": 0}, "supervised fine-tuning", False),
        ("sft", {"other": 0, "final": 0, "text": 9}, "continued pretraining on raw text", True),
        (
            "sft",
            {"final": 3, "text": 9},
            "supervised fine-tuning and continued pretraining on raw text",
            True,
        ),
        ("sft", {"text": "9"}, "supervised fine-tuning", False),
        ("sft", None, "supervised fine-tuning", False),
        ("dpo", {"text": 9}, PAIRS, True),
        ("grpo", None, "group relative policy optimisation (GRPO)", True),
    ],
)
def test_raw_text_is_named_where_it_was_trained(name, trained, words, told):
    record = {"recipe": {"method": {"name": name}}, "tokens": {"trained_by_channel": trained}}
    method = method_of(record)
    assert (method.words, method.is_told) == (words, told)


def test_every_method_has_words_and_rewards_are_no_preferences():
    """A report draws margins of preferences, and rewards of what was sampled: never both."""
    found = {name: method_of({"recipe": {"method": {"name": name}}}) for name in METHODS}
    assert all(method.words for method in found.values())
    assert [name for name, method in found.items() if method.reinforcement] == ["grpo"]
    told = {name for name, method in found.items() if method.preferences}
    assert told == set(METHODS) - {"sft", "grpo"}
    assert found["grpo"].sample == "prompt" and "pair" not in found["grpo"].loss_unit
    assert not method_of({"recipe": {"method": {"name": "unknown"}}}).is_told
