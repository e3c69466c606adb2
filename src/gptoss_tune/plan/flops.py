"""FLOPs of a token, and from them the training time of a run.

Two operations per weight and token forward, two more for the gradient that passes through a frozen
weight; a LoRA factor costs four backward. Attention is counted at the full length of a row (half of
its square, or the window). What checkpointing computes again is counted, since it takes time.
"""

# Legend: S tokens of a row, H hidden, K experts per token, V vocabulary, R rank.

from __future__ import annotations

from dataclasses import asdict, dataclass

from gptoss_tune.plan.architecture import Architecture, AttentionKind
from gptoss_tune.plan.data_tokens import prompt_tokens, prompts_in_files, tokens_in_files
from gptoss_tune.plan.rollout.phase import phase_of
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.plan.weights import Factors

DEFAULT_EFFICIENCY = 0.35
"""Share of the data sheet's rate that a plan assumes. An assumption: it has not been measured."""


@dataclass(frozen=True)
class Flops:
    """Operations of one trained token, in FLOP.

    Attributes:
        forward: Forward pass.
        backward: Backward pass.
        recomputed: What checkpointing computes a second time.
        added: Further forward passes, and walks through the head, which the method asks for.
    """

    forward: float
    backward: float
    recomputed: float
    added: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.forward + self.backward + self.recomputed + self.added

    def as_json(self) -> dict[str, float]:
        """Return the parts and their total; without ``added`` where nothing is."""
        parts = {name: value for name, value in asdict(self).items() if name != "added" or value}
        return {**parts, "total": self.total}


def flops_per_token(setup: TrainingSetup) -> Flops:
    """Return the operations of a token in a full row, every token of which is trained."""
    a, length = setup.architecture, setup.data.max_length
    mode = setup.train.activation_checkpointing
    head = 2.0 * a.hidden * a.vocabulary
    forward, backward, recomputed = head, head, 0.0
    for layer, kind in enumerate(a.layer_types):
        base, scores = 2.0 * _layer_weights(a), _attention_flops(a, kind, length)
        low_rank = 2.0 * sum(_active_parameters(a, own) for own in setup.factors_of(layer))
        forward += base + scores + low_rank
        if layer < setup.lowest_layer:
            continue  # nothing below asks for a gradient, and nothing of it is run again
        backward += base + 2.5 * scores + 2 * low_rank
        if mode == "selective":
            recomputed += 2.0 * a.experts_per_token * a.hidden * 2 * a.intermediate
        elif mode != "none":
            kept = setup.keeps_attention and kind == "full_attention"
            # Nothing of the layer reads what down_proj returns, so it is not multiplied again.
            down = 2.0 * a.experts_per_token * a.intermediate * a.hidden
            recomputed += base - down + low_rank + (0.0 if kept else scores)
    added = setup.added.forward_passes * forward + setup.added.head_passes * head
    return Flops(forward, backward, recomputed, added)


def _layer_weights(architecture: Architecture) -> int:
    """Return the weights of a layer that one token meets."""
    a = architecture
    attention = sum(inner * out for inner, out in a.attention_shapes.values())
    experts = sum(inner * out for inner, out in a.expert_shapes.values())
    return attention + a.experts_per_token * experts + a.hidden * a.experts


def _attention_flops(architecture: Architecture, kind: AttentionKind, length: int) -> float:
    """Return the operations of one token's scores and values, averaged over a row."""
    keys = length / 2
    if kind == "sliding_attention":
        keys = min(keys, architecture.window)
    return 4.0 * architecture.query_size * keys


def _active_parameters(architecture: Architecture, factor: Factors) -> float:
    """Return the values of the factors that one token meets."""
    if not factor.on_experts:
        return factor.parameters
    return factor.parameters * architecture.experts_per_token / architecture.experts


@dataclass(frozen=True)
class Work:
    """What a run has to compute, and how long that takes.

    Attributes:
        flops: Operations of a token.
        tokens: Tokens of the whole run; ``None`` where nothing tells.
        tokens_from: Where that number comes from, in words.
        steps: Optimizer steps; ``None`` where the tokens are not known.
        tokens_per_second: Of all GPUs together, at the stated efficiency.
        efficiency: Share of the data sheet's rate that was assumed.
    """

    flops: Flops
    tokens: int | None
    tokens_from: str
    steps: int | None
    tokens_per_second: float
    efficiency: float

    @property
    def hours(self) -> float | None:
        """Hours of training; evaluation, loading and saving come on top."""
        return None if self.tokens is None else self.tokens / self.tokens_per_second / 3600


def work(
    setup: TrainingSetup,
    tflops: float,
    *,
    efficiency: float = DEFAULT_EFFICIENCY,
    epoch_tokens: int | None = None,
) -> Work:
    """Return how much a training computes, and at which rate.

    Args:
        setup: What is trained, and how.
        tflops: Of one card.
        efficiency: Share of it that is reached.
        epoch_tokens: Tokens of the training data; ``None``: estimated from the files' sizes.
    """
    train, data = setup.train, setup.data
    flops = flops_per_token(setup)
    rate = setup.num_processes * tflops * 1e12 * efficiency / flops.total
    if setup.method.name == "grpo":
        return _of_episodes(setup, flops, rate, efficiency)
    origin = "rows of data.max_length, which shorter rows do not fill"
    if train.max_steps is not None:
        tokens, steps = train.max_steps * setup.step_tokens, train.max_steps
        if data.packing:
            origin = "packed rows of data.max_length"
        return Work(flops, tokens, origin, steps, rate, efficiency)
    assert train.num_train_epochs is not None  # the recipe's rules demand one of both
    origin = "the given tokens of an epoch"
    if epoch_tokens is None:
        found = tokens_in_files(data.train, branches=setup.added.branches)
        if found is not None:
            epoch_tokens = int(found.count * (1 - (data.eval_fraction or 0)))
            origin = found.origin
    if epoch_tokens is None:
        return Work(flops, None, "not known before the data is read", None, rate, efficiency)
    tokens = int(epoch_tokens * train.num_train_epochs)
    steps = max(1, round(tokens / setup.step_tokens)) if data.packing else None
    return Work(flops, tokens, origin, steps, rate, efficiency)


def _of_episodes(setup: TrainingSetup, flops: Flops, rate: float, efficiency: float) -> Work:
    """Return the work of a training on episodes, each with one answer of full length."""
    train, data, method, phase = setup.train, setup.data, setup.method, phase_of(setup)
    assert phase is not None and method.name == "grpo"
    steps = train.max_steps
    if steps is None:
        assert train.num_train_epochs is not None  # the recipe's rules demand one of both
        rows = prompts_in_files(data.train)
        if rows is None:
            return Work(flops, None, "not known before the data is read", None, rate, efficiency)
        rows = int(rows * (1 - (data.eval_fraction or 0)))
        steps = max(1, -(-int(rows * train.num_train_epochs) // method.prompts_per_step))
    episode = min(prompt_tokens(data, phase.prompt)[0] + phase.answer, phase.longest)
    tokens = steps * method.prompts_per_step * method.group_size * episode
    origin = f"episodes of {episode:,} at most"
    return Work(flops, tokens, origin, steps, rate, efficiency)
