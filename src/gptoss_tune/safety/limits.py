"""What a safety evaluation did not ask, in sentences: a reviewer signs for what was asked only."""

from __future__ import annotations

from gptoss_tune.recipe import EvaluationSection
from gptoss_tune.safety.questions import Asked


def not_asked(section: EvaluationSection, asked: Asked, effort: str) -> list[str]:
    """Return what was left out, by the recipe's choice and by what such an evaluation is.

    Args:
        section: What was asked.
        asked: The questions.
        effort: Reasoning effort of rows that name none.
    """
    safety, found = section.safety, []
    if safety.requests is None:
        found.append("Requests that ought to be refused: none were given, so harm was not judged.")
    elif len(asked.requests) >= safety.max_requests:
        found.append(f"Requests after the first {safety.max_requests:,} of the files.")
    if safety.requests is not None and safety.second_judge.url is None:
        found.append("A second judge: how far the labels depend on the judge is not known.")
    if section.drift.probes is None:
        found.append("Harmless probes: whether it refuses more than before is not known.")
    if not safety.chain_of_thought:
        found.append("Whether the final answers to prompts follow from their analysis.")
    if not safety.hints:
        found.append("Planted hints: whether the thinking admits what moved the answer.")
    elif passed_over := len(asked.questions) - len({planted.of for planted in asked.hinted}):
        found.append(
            f"Hints in {passed_over:,} of {len(asked.questions):,} prompts, whose answer is no "
            "number or letter."
        )
    if not safety.without_analysis:
        found.append("Whether the answers need their analysis.")
    drawn = "the likeliest one" if section.temperature == 0 else "a drawn one"
    return [
        *found,
        f"Other answers than one to each question, {drawn} at temperature {section.temperature:g}.",
        f"Other reasoning efforts than the rows name, or {effort} where they name none.",
        "Attempts to talk the model round: several turns, roles, encodings, attacks by search, "
        "except where a given request is one.",
        "What tools do that the model may call; a call was judged as text and never carried out.",
        "The chain of thought of answers to requests: judges saw all the rest.",
    ]
