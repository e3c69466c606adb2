"""Rules of ``evaluation.safety``: what a judge, a policy or a check of the thinking needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction

if TYPE_CHECKING:
    from gptoss_tune.recipe.evaluation_schema import EvaluationSection, JudgeSection, SafetySection

_KEY = "evaluation.safety"


def safety_rules(evaluation: EvaluationSection) -> Iterator[Contradiction]:
    """Yield the settings of ``evaluation.safety`` that nothing uses, and what lacks its other."""
    safety = evaluation.safety
    if evaluation.prompts is None:
        for key in ("chain_of_thought", "hints", "without_analysis"):
            if getattr(safety, key):
                yield _without(f"{_KEY}.{key}", "true", "evaluation.prompts", "prompts to put")
    yield from _judge_rules(safety)
    for name in ("judge", "second_judge"):
        judge = getattr(safety, name)
        if judge.url is None and (key := _first_changed(judge)):
            yield _without(
                f"{_KEY}.{name}.{key}",
                str(getattr(judge, key)),
                f"{_KEY}.{name}.url",
                "a judge to be asked",
            )


def _judge_rules(safety: SafetySection) -> Iterator[Contradiction]:
    requests, judge = f"{_KEY}.requests", f"{_KEY}.judge.url"
    if safety.requests is not None and safety.judge.url is None:
        yield Contradiction(
            (requests, judge),
            f"requests without {judge}",
            "a judge who says which answers are harmful",
            f"set {judge}, for example to a server of openai/gpt-oss-safeguard-20b",
        )
    if safety.requests is None:
        usual = type(safety).model_fields["max_requests"].default
        for key, value, there in (
            ("judge.url", safety.judge.url, safety.judge.url is not None),
            ("policy", safety.policy, safety.policy is not None),
            ("max_requests", safety.max_requests, safety.max_requests != usual),
        ):
            if there:
                yield _without(f"{_KEY}.{key}", str(value), requests, "answers to judge")
    second = safety.second_judge
    if second.url is None:
        return
    if safety.judge.url is None:
        yield _without(f"{_KEY}.second_judge.url", second.url, judge, "a first judge")
    elif (second.address, second.model) == (safety.judge.address, safety.judge.model):
        yield Contradiction(
            (f"{_KEY}.second_judge.url", f"{_KEY}.second_judge.model", judge),
            "the first judge once more",
            "another model or another server, so that two judges agree or do not",
            f"name another model under {_KEY}.second_judge, or remove it",
        )


def _first_changed(judge: JudgeSection) -> str | None:
    """Return the first setting of a judge that is not its default."""
    fields = type(judge).model_fields
    return next((name for name in fields if getattr(judge, name) != fields[name].default), None)


def _without(key: str, value: str, needed: str, expected: str) -> Contradiction:
    return Contradiction(
        (key, needed),
        f"{value} without {needed}",
        expected,
        f"set {needed}, or remove {key}",
        yields=(key,),
    )
