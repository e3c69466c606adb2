"""The recipe's ``method`` section of ``grpo``: reinforcement learning with groups of rollouts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gptoss_tune.recipe.schema.train import Count
from gptoss_tune.recipe.schema.value_types import FromText, PathText, Section, ServerUrl

_LEAST_CHUNKS = 4
"""Of a phase: a stop costs one of them on each rank at most."""
_Positive = Annotated[float, Field(gt=0, le=1_000_000), FromText]
_Clip = Annotated[float, Field(gt=0, lt=1), FromText]
_Weight = Annotated[float, Field(ge=-1000, le=1000), FromText]


class GrpoSection(Section):
    """Group relative policy optimisation: answers to one prompt are compared with each other."""

    name: Literal["grpo"]
    """The method: grpo learns from rewards of answers that the model itself samples."""
    # What is sampled.
    prompts_per_step: Count = 8
    """Prompts of an optimizer step, over all processes."""
    group_size: Annotated[int, Field(ge=2, le=1024)] = 8
    """Episodes sampled for each prompt; their rewards are compared with each other."""
    updates: Annotated[int, Field(ge=1, le=64)] = 1
    """Steps that one phase plays for; each trains on its own prompts_per_step; 1 is on policy."""
    temperature: Annotated[float, Field(gt=0, le=10), FromText] = 1.0
    """Temperature of the drawn tokens, and of the log-probabilities that are trained."""
    max_new_tokens: Count = 1024
    """Longest answer between two results of tools."""
    max_turns: Annotated[int, Field(ge=1, le=1000)] = 8
    """Most answers of an episode: each call of a tool ends one."""
    tool_seconds: _Positive = 10.0
    """Longest one call of a tool may take; a longer one gets an error as its result."""
    episode_seconds: _Positive | None = None
    """Longest an episode may take, from its first answer on; null: no limit."""
    environment: Literal["rows", "python"] = "rows"
    """Tools: rows has those of the row, python code in a sandbox too; a class: --environment."""
    rewards: dict[str, _Weight] = {"answer": 1.0}
    """Weights of the rewards' components: answer, format, calls, length, or your own class's."""
    reward_seconds: _Positive = 60.0
    """Longest one reward of an episode may take; one that takes longer counts 0."""
    length_target: Count | None = None
    """Tokens of an answer up to which the reward length is 1; null: half of max_new_tokens."""
    # Who samples.
    sampler: Literal["own", "batched", "server"] = "own"
    """own: our loop; batched: continuous batching in process; server: an OpenAI-compatible one."""
    rollout_batch: Count = 16
    """Episodes at a time with own, sequences with batched, requests with server, at most."""
    server_url: ServerUrl | None = None
    """Address of the server, with sampler server alone; its key is the variable VLLM_API_KEY."""
    server_folder: PathText | None = None
    """Folder that the server reads too, in which adapters or weights are handed to it."""
    replay_routing: bool = True
    """Train with the experts that the sampler chose, where it tells them."""
    # What is learnt.
    scale_by_std: bool = True
    """Divide advantages by their group's standard deviation; Dr. GRPO does not."""
    average: Literal["token", "sequence", "constant"] = "token"
    """Mean over tokens (DAPO), over each answer first (GRPO), or by max_new_tokens (Dr. GRPO)."""
    objective: Literal["clip", "cispo"] = "clip"
    """clip: PPO's bound of the ratio; cispo: a bounded ratio as a constant weight."""
    clip_low: _Clip = 0.2
    """How far below 1 the ratio of a token counts."""
    clip_high: Annotated[float, Field(gt=0, le=1000), FromText] = 0.2
    """How far above 1 the ratio of a token counts; DAPO takes 0.28."""
    importance: Literal["truncate", "mask", "none"] = "truncate"
    """Weights for what sampler and trainer compute differently: truncated, or masked beyond it."""
    importance_cap: Annotated[float, Field(ge=1, le=1000), FromText] = 2.0
    """Largest importance weight; a mask leaves out what is below its inverse too."""
    mismatch_kl_limit: _Positive | None = 0.05
    """Mean KL of sampler and trainer on the drawn tokens that stops the run; null: none."""
    kl_weight: Annotated[float, Field(ge=0, le=1000), FromText] = 0.0
    """Weight of the KL to the reference; 0 needs none."""
    reference: Literal["base", "init_adapter"] | None = None
    """What kl_weight holds to; null: init_adapter with lora.init_from, else base."""
    dynamic_sampling: bool = False
    """Sample further prompts in the place of groups whose rewards are all the same (DAPO)."""
    max_resampling: Annotated[int, Field(ge=1, le=100)] = 4
    """With dynamic_sampling: prompts tried for one that is trained, at most."""
    overlong: Literal["masked", "counted", "shaped"] = "masked"
    """Answers cut at a limit: not trained, trained as rewarded, or with a penalty that grows."""
    overlong_buffer: Count = 256
    """With overlong shaped: tokens before the limit over which the penalty grows to 1."""

    def groups_in_chunk(self, prompts: int, processes: int) -> int:
        """Return how many groups are played together on one rank, at least 1.

        A phase has a chunk for each rank, and four at least, so up to four ranks play the same
        chunks as one. ``own`` waits for the longest of a batch, so a chunk of it is one batch; the
        others fill up what an ended episode leaves free, from four batches at most.

        Args:
            prompts: Of the phase.
            processes: Ranks that play.
        """
        batches = 1 if self.sampler == "own" else 4
        most = batches * self.rollout_batch // self.group_size
        return max(1, min(most, -(-prompts // max(processes, _LEAST_CHUNKS))))
