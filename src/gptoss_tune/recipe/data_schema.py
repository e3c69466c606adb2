"""Schema of the recipe's ``data`` section: datasets, rendering and loss weights."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field

from gptoss_tune.recipe.schema.value_types import (
    Count,
    Date,
    FromText,
    PathText,
    Section,
    Template,
    Text,
    refuse,
)

ColumnName = Literal[
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "label",
    "system",
    "thinking",
    "chosen_thinking",
    "rejected_thinking",
    "messages",
    "conversations",
    "text",
    "tools",
    "reasoning_effort",
    "weight",
]
"""A field of a conversation that a template can write."""

GraderKey = Literal[
    "answer",
    "pattern",
    "grader",
    "choices",
    "rules",
    "calls",
    "schema",
    "equals",
    "test",
    "test_list",
    "test_setup_code",
    "test_imports",
    "stdio_cases",
    "function_cases",
    "entry_point",
    "code_prefix",
]
"""A key of a row that graders read, and that a template can write."""

GRADER_KEYS: Final[tuple[str, ...]] = get_args(GraderKey)

TaskKey = Literal[GraderKey, "tool_results"]
"""A key of a row that says how an episode is graded, or what its tools answer."""

TASK_KEYS: Final[tuple[str, ...]] = get_args(TaskKey)


Role = Literal["system", "developer", "user", "assistant", "tool", "function_call"]
"""What a message can be; ``function_call`` is ShareGPT's."""


class DataSource(Section):
    """One place to read conversations from; a text in a recipe is short for its path."""

    path: PathText = Field(examples=["data/conversations/reasoning.jsonl"])
    """A .jsonl, .json, .csv, .parquet, .arrow or .txt file (.gz, .zst), folder, glob, Hub name."""
    name: Text | None = None
    """Configuration of a dataset on the Hub, or of a folder whose README.md names several."""
    split: Text | None = None
    """Split of a Hub dataset, null: train; or of a folder, null: all, when it holds one split."""
    revision: Text | None = None
    """Commit, tag or branch of a dataset on the Hub; null: its default branch."""
    streaming: bool = False
    """Read a dataset on the Hub row by row instead of downloading it; revision is a commit."""
    limit: Count | None = None
    """Read this many rows from the start; null: all."""
    weight: Annotated[float, Field(gt=0, le=1000), FromText] = 1.0
    """Times each sample is used in an epoch: 2 is twice, 0.5 is a drawn half of them."""
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    """Effort of rows of this source that name none; null: data.reasoning_effort."""
    columns: Annotated[dict[Literal[ColumnName, TaskKey], Template], Field(min_length=1)] | None = (
        None
    )
    """Fields of a row, written from the columns by Jinja templates; null: the columns are known."""


def _sources(value: Any) -> Any:
    """Read ``a.jsonl`` and ``{path: ...}`` as the list of one source that they are short for."""
    if value == []:
        raise refuse("at least one file or dataset", "name one")
    listed = value if isinstance(value, list) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in listed]


Sources = Annotated[
    list[DataSource],
    BeforeValidator(_sources, json_schema_input_type=str | DataSource | list[str | DataSource]),
]


class ChannelWeights(Section):
    """Loss weight of each channel of the assistant, and of raw text; 0 makes it context."""

    analysis: Annotated[float, Field(ge=0, le=100), FromText] = 1.0
    """Loss weight of the chain of thought."""
    commentary: Annotated[float, Field(ge=0, le=100), FromText] = 1.0
    """Loss weight of tool calls and their preambles."""
    final: Annotated[float, Field(ge=0, le=100), FromText] = 1.0
    """Loss weight of the answers."""
    text: Annotated[float, Field(ge=0, le=100), FromText] = 1.0
    """Loss weight of raw text: rows of text, and .txt files, whose every token is trained."""


class DataSection(Section):
    """Which conversations are trained on, and how they become tokens and loss weights."""

    train: Sources = Field(examples=["data/conversations/reasoning.jsonl"])
    """Training data: a file, a dataset on the Hub, or a list of them."""
    eval: Sources | None = None
    """Held-out data, in the same forms; null: none."""
    eval_fraction: Annotated[float, Field(gt=0, le=0.5), FromText] | None = None
    """Share of the training rows held out instead of eval, drawn by the seed."""
    max_length: Annotated[int, Field(ge=8, le=131_072)] = 4096
    """Longest sample, and length of a packed row, in tokens."""
    too_long: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a longer sample; dropped ones are counted. Raw text is cut in pieces."""
    packing: bool = False
    """Put several samples into one row; they do not see each other."""
    reasoning_effort: Literal["low", "medium", "high"] = "medium"
    """Effort in the system message of rows that name none."""
    date: Date = "2025-06-28"
    """Conversation start date in the system message; fixed, never today's."""
    channel_weights: ChannelWeights = ChannelWeights()
    """Loss weight of each channel of the assistant, and of raw text."""
    turns: Literal["all", "last"] = "all"
    """Train every turn of the assistant, each in the context it is served in, or the last."""
    nothing_to_train: Literal["skip", "error"] = "skip"
    """What happens to a row whose every token has loss weight 0; skipped ones are counted."""
    curriculum: Literal["none", "reasoning_effort"] = "none"
    """Order of an epoch: drawn by the seed, or rows of low, then medium, then high effort."""
    thinking_tags: Literal["keep", "split"] = "keep"
    """Thoughts that stand in an answer's text, as <think> does: kept and counted, or split off."""
    roles: dict[Text, Role] = Field(default={}, examples=[{"bot": "assistant"}])
    """Names of roles in the data, where they are not the usual ones, and what they mean."""
    tool_names: dict[Text, Text] = Field(default={}, examples=[{"get.weather": "get_weather"}])
    """Names of tools in the data, and the names they are trained under."""
    ignored_keys: list[Text] = Field(default=[], examples=[["id", "source"]])
    """Keys of rows and messages that are not counted as unknown: they mean nothing for training."""
    dataset_num_proc: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processes that render; null: what the size of the data and the machine's cores give."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens when a row cannot be trained on; skipped rows are counted."""
    max_errors: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100
    """With on_error: skip, stop when more rows than this were skipped."""
