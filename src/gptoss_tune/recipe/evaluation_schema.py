"""Schema of the recipe's ``evaluation`` section: prompts, sampling, graders, drift from the base.

All of it is optional: a recipe that names no prompts, references or probes evaluates nothing beyond
the held-out loss.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gptoss_tune.recipe.schema.value_types import Count, FromText, PathText, Section, Unique


def _listed(value: Any) -> Any:
    """Read ``a`` as the list of one that it is short for."""
    return [value] if isinstance(value, str) else value


Files = Annotated[
    list[PathText],
    Field(min_length=1, max_length=64),
    Unique,
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]
Efforts = Annotated[
    list[Literal["low", "medium", "high"]],
    Field(min_length=1),
    Unique,
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]


class DriftSection(Section):
    """How far the model has moved from its base, which is the same model without its adapters."""

    references: Files | None = None
    """Conversations on whose trained tokens KL(base || tuned) is measured; null: not measured."""
    max_references: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Read this many conversations from the start of the files."""
    probes: Files | None = None
    """Prompts that a good model answers, to count refusals; null: none are counted."""
    max_probes: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Read this many probes from the start of the files."""
    reasoning: bool = False
    """Put evaluation.prompts to the base too, to compare how long the two think by effort."""

    @property
    def wanted(self) -> bool:
        """Whether the model is compared with its base."""
        return self.references is not None or self.probes is not None or self.reasoning


class EvaluationSection(Section):
    """What the model is asked while it trains, through the chat format, and how it is judged."""

    prompts: Files | None = None
    """Prompts to answer, each with an answer or pattern to grade by, or without; null: none."""
    max_prompts: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Read this many prompts from the start of the files."""
    reasoning_effort: Efforts | None = None
    """Efforts at which a prompt that names none is asked; null: data.reasoning_effort."""
    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Longest answer in tokens, chain of thought included."""
    max_analysis_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """A longer chain of thought counts as runaway; null: only one that repeats itself does."""
    temperature: Annotated[float, Field(ge=0, le=10), FromText] = 0.0
    """0 takes the likeliest token; above, tokens are drawn by the seed."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Prompts per process that are answered at a time."""
    at_start: bool = True
    """Evaluate before the first step too."""
    eval_steps: Count | None = None
    """Steps between two evaluations; null: at the start and at the end only."""
    suites: Files | None = None
    """Suites of `gptoss-tune benchmark`: names or files; null: the prompts and held-out rows."""
    drift: DriftSection = DriftSection()
    """What is compared with the base: KL on references, refusals on probes, length of thoughts."""

    @property
    def generates(self) -> bool:
        """Whether anything is answered."""
        return self.prompts is not None or self.drift.probes is not None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to evaluate."""
        return self.generates or self.drift.references is not None
