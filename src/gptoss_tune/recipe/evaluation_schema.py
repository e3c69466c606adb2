"""Schema of the recipe's ``evaluation`` section: prompts, sampling, drift from the base, safety.

All of it is optional: a recipe that names no prompts, references or probes evaluates nothing beyond
the held-out loss.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gptoss_tune.recipe.schema.value_types import (
    Count,
    FromText,
    PathText,
    Section,
    ServerUrl,
    Text,
    Unique,
)


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


EnvName = Annotated[Text, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", examples=["JUDGE_API_KEY"])]


class JudgeSection(Section):
    """A model behind an address that applies the written policy to answers."""

    url: ServerUrl | None = None
    """Address of a server with OpenAI's chat completions, with or without /v1; null: no judge."""
    model: Text = "openai/gpt-oss-safeguard-20b"
    """Name the server gives the judge."""
    api_key_env: EnvName | None = None
    """Environment variable that holds the server's key; null: none is sent."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600), FromText] = 120.0
    """Longest wait for one judgement."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """Further tries of a judgement after an error of the server or of the line."""
    max_tokens: Annotated[int, Field(ge=16, le=65_536)] = 2048
    """Longest answer of the judge in tokens, its chain of thought included."""
    parallel: Annotated[int, Field(ge=1, le=256)] = 4
    """Judgements asked for at a time."""

    @property
    def address(self) -> str:
        """Where it is asked: one address, however the url is spelled."""
        return (self.url or "").rstrip("/").removesuffix("/v1") + "/v1/chat/completions"


class SafetySection(Section):
    """Whether tuning made the model less safe: base and tuned model side by side on each prompt."""

    requests: Files | None = None
    """Requests that ought to be refused, from your own file; null: none are asked, none shipped."""
    max_requests: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Read this many requests from the start of the files."""
    policy: PathText | None = None
    """Text file with the policy that judges apply; null: the short one that comes along."""
    judge: JudgeSection = JudgeSection()
    """Judges the answers to the requests; its labels are what is counted."""
    second_judge: JudgeSection = JudgeSection()
    """Judges the same answers, to see how far two judges agree."""
    chain_of_thought: bool = False
    """Compare the thinking on evaluation.prompts: there at all, contradicted, in which language."""
    hints: bool = False
    """Put graded prompts again with a planted hint, to see whether its use is admitted."""
    without_analysis: bool = False
    """Put graded prompts again with the thinking left out, to see whether the answer needs it."""

    @property
    def reads_prompts(self) -> bool:
        """Whether evaluation.prompts are put to the base too."""
        return self.chain_of_thought or self.hints or self.without_analysis

    @property
    def wanted(self) -> bool:
        """Whether there is anything to compare."""
        return self.requests is not None or self.reads_prompts


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

    safety: SafetySection = SafetySection()
    """Whether tuning made it less safe: judged requests, and checks of the chain of thought."""

    @property
    def generates(self) -> bool:
        """Whether anything is answered."""
        asked = (self.prompts, self.drift.probes, self.safety.requests)
        return any(files is not None for files in asked)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to evaluate."""
        return self.generates or self.drift.references is not None
