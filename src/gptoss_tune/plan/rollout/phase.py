"""Memory of a GPU while episodes are played: the cache of keys and values, and a layer at work.

Episodes are played between two steps, when nothing is kept for a backward pass: a run's peak is the
larger one of both, and not their sum. An episode is trained in one row, so it has
``data.max_length`` tokens at most, and a sampler is counted with all of its sequences that long.
"""

# Legend: H hidden, I intermediate, K experts per token, V vocabulary.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptoss_tune.plan.experts.at_work import scratch

if TYPE_CHECKING:
    from gptoss_tune.plan.architecture import Architecture
    from gptoss_tune.plan.training_setup import TrainingSetup

PAGE_TOKENS, SPARE_PAGES = 128, 4
"""Of the ``batched`` sampler's cache: tokens of a page, and pages beside those of its sequences."""
_FP32_BYTES, _INDEX_BYTES, _LONG_INDEX_BYTES = 4, 4, 8


@dataclass(frozen=True)
class Phase:
    """Episodes that one GPU plays with the same weights.

    Attributes:
        episodes: Of the GPU that plays most, in whole chunks.
        chunks: That it plays, one after the other.
        at_a_time: Of a chunk, those that are sampled together.
        most_at_a_time: The same, or of held-out prompts, which are no chunks of groups.
        longest: Tokens of one, at most.
        answer: Tokens of one answer, at most.
    """

    episodes: int
    chunks: int
    at_a_time: int
    most_at_a_time: int
    longest: int
    answer: int

    @property
    def prompt(self) -> int:
        """Tokens read before an answer of full length, at most."""
        return max(1, self.longest - self.answer)


def phase_of(setup: TrainingSetup) -> Phase | None:
    """Return what a GPU plays at a time; ``None`` for a method that samples nothing."""
    method = setup.method
    if method.name != "grpo":
        return None
    prompts, data = method.updates * method.prompts_per_step, setup.data
    size = method.groups_in_chunk(prompts, setup.num_processes)
    chunks = math.ceil(prompts / (size * setup.num_processes))
    at_a_time, longest = min(method.rollout_batch, size * method.group_size), data.max_length
    held_out = data.eval is not None or data.eval_fraction is not None
    return Phase(
        min(prompts, chunks * size) * method.group_size,
        chunks,
        at_a_time,
        method.rollout_batch if held_out else at_a_time,
        longest,
        min(method.max_new_tokens, longest),
    )


def cache_bytes(architecture: Architecture, value_bytes: int, tokens: int, rows: int) -> int:
    """Return what the cache of ``own`` holds after ``tokens`` tokens of each of ``rows`` sequences.

    A windowed layer keeps the keys before the last token that it still sees, as a view into the
    tensor of all that it saw: one window.

    Args:
        architecture: Sizes of the base.
        value_bytes: Of one value in the compute dtype.
        tokens: Of each sequence, the last ones drawn one by one.
        rows: Sequences, padded to the longest.
    """
    kept = sum(
        tokens if kind == "full_attention" else min(tokens, architecture.window)
        for kind in architecture.layer_types
    )
    return 2 * rows * kept * architecture.key_size * value_bytes


def cache_after_reading(
    architecture: Architecture, value_bytes: int, tokens: int, rows: int
) -> int:
    """Return what the cache of ``own`` holds once prompts are read and no token is drawn yet.

    Windowed layers let go of what lies before their window with the first drawn token.
    """
    return 2 * rows * tokens * architecture.layers * architecture.key_size * value_bytes


def paged_cache_bytes(architecture: Architecture, value_bytes: int, tokens: int, rows: int) -> int:
    """Return what the paged cache of ``batched`` takes for as many sequences, in whole pages.

    Its pages are of all layers and taken at once, so windowed layers save nothing.
    """
    pages = rows * -(-tokens // PAGE_TOKENS) + SPARE_PAGES
    a = architecture
    return 2 * pages * PAGE_TOKENS * a.layers * a.key_size * value_bytes


def attention_bytes(
    architecture: Architecture, value_bytes: int, tokens: int, rows: int, *, pages: bool
) -> int:
    """Return what the attention of a full layer holds while each of ``rows`` draws a token.

    Its keys, or afterwards its values, in fp32, with the scores and their softmax; ``own`` has let
    go of the keys before the last token by then, which are no larger. With ``pages``, beside them,
    keys and values of all requests as read from the pages, and laid out by request.
    """
    a = architecture
    each = (a.key_size + 2 * a.heads) * _FP32_BYTES
    if pages:
        each += 2 * 2 * a.key_size * value_bytes
    return rows * tokens * each


def playing_bytes(setup: TrainingSetup) -> dict[str, int]:
    """Return by kind what a GPU holds beside its weights in the largest moment of a phase.

    Empty where nothing is played, or where a server plays: its memory is not this GPU's.
    """
    phase = phase_of(setup)
    if phase is None or setup.method.name != "grpo" or setup.method.sampler == "server":
        return {}
    a, value, rows = setup.architecture, setup.value_bytes, phase.most_at_a_time
    logits = 2 * rows * a.vocabulary * _FP32_BYTES
    pages = setup.method.sampler == "batched"
    attention = attention_bytes(a, value, phase.longest, rows, pages=pages)
    if pages:
        paged = paged_cache_bytes(a, value, phase.longest, rows)
        reading = (paged, _layer_at_work(setup, phase.prompt))
        decoding = (paged, attention + logits)
    else:
        reading = (
            cache_after_reading(a, value, phase.prompt, rows),
            _layer_at_work(setup, rows * phase.prompt) + logits,
        )
        decoding = (cache_bytes(a, value, phase.longest, rows), attention + logits)
    cache, working = max(reading, decoding, key=sum)
    return {
        "KV cache": cache,
        "layer at work": working,
        "expert scratch": scratch(setup, backward=False),
    }


def _layer_at_work(setup: TrainingSetup, tokens: int) -> int:
    """Return the bytes that a layer works on while it reads ``tokens`` tokens without gradients.

    Its input, its norm and its sum; then what the heads read and wrote, or the experts' input,
    their outputs and sums, the sorted rows, and gate_up, its activation and output of a tile.
    """
    a, value, tile = setup.architecture, setup.value_bytes, setup.train.expert_tile
    through = min(tokens, tile) if isinstance(tile, int) else tokens
    ranks = sum(f.rank for f in setup.factors_of(setup.lowest_layer) if f.on_experts)
    attention = tokens * (2 * a.hidden + 4 * a.query_size + 3 * a.key_size) * value
    row = (max(3 * a.intermediate, a.intermediate + a.hidden) + ranks + 1) * value
    experts = tokens * 4 * a.hidden * value + through * a.experts_per_token * row
    experts += tokens * a.experts_per_token * (3 * _INDEX_BYTES + _LONG_INDEX_BYTES)
    return max(attention, experts) + tokens * a.head_dim * value
