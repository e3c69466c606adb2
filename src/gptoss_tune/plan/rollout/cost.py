"""Time and disk of the episodes of a run: estimated, since nobody knows how long a model answers.

Every answer is taken to be ``max_new_tokens`` long and an episode to be one answer; each further
one, after the result of a tool, takes as long again. A token of an answer reads every weight
through the memory of the GPU, whatever the number of sequences that are sampled together, and the
cache of each of them: the memory's rate bounds it, as in ``evaluation_time``. Reading the prompts
is bounded by operations.

``batched`` gives the place of a sequence that has ended to the next one, ``own`` waits for the
longest of a batch. With every answer at its longest both take as long, so a plan tells no gain of
one over the other; the benchmark of samplers measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss_tune.plan.rollout.phase import Phase, cache_bytes, phase_of

if TYPE_CHECKING:
    from gptoss_tune.plan.flops import Work
    from gptoss_tune.plan.gpus import Gpu
    from gptoss_tune.plan.training_setup import TrainingSetup

_TEXT_BYTES = 4.0
"""Of a token as text in ``rollouts/``: the rule of thumb that data is counted by."""
_LINE_BYTES = 600
"""Of an episode's line beside its texts: names, rewards, figures; some 300 with one message."""
_TOKEN_BYTES = 4 + 4 + 1 + 1
"""Of a token kept until it is trained: id, log-probability, whether drawn, channel."""


@dataclass(frozen=True)
class Rollouts:
    """What the episodes of a run cost.

    Attributes:
        sampler: As in the recipe.
        phase: What one GPU plays between two changes of the weights.
        episodes: Of a phase, on all GPUs.
        updates: Optimizer steps of a phase.
        prompt_tokens: Of a prompt; estimated from the files, else the most that there is room for.
        prompt_from: Where that number comes from, in words.
        seconds: Of a phase at most, one answer an episode; ``None``: a server's, whose machine is
            not known.
        hours: Of all phases; ``None`` where their number is not known either.
        choice_bytes: Of the experts' choices of one token that are replayed; 0 without replay.
        waiting: Bytes of a phase's tokens that wait in host memory, and on disk for a resumed run.
        text: Bytes of ``rollouts/`` at the end, at most; ``None`` where the steps are not known.
        peak: Bytes of one GPU while it plays; ``None`` with a server.
        training_peak: Bytes of one GPU in a training step.
    """

    sampler: str
    phase: Phase
    episodes: int
    updates: int
    prompt_tokens: int
    prompt_from: str
    seconds: float | None
    hours: float | None
    choice_bytes: int
    waiting: int
    text: int | None
    peak: int | None
    training_peak: int

    @property
    def per_second(self) -> float | None:
        """Episodes a second, on all GPUs."""
        return self.episodes / self.seconds if self.seconds else None

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine: bytes, counts and seconds."""
        return {
            "sampler": self.sampler,
            "episodes": self.episodes,
            "episodes_at_a_time": self.phase.at_a_time,
            "longest_episode": self.phase.longest,
            "prompt_tokens_estimated": self.prompt_tokens,
            "seconds_estimated": self.seconds,
            "episodes_per_second_estimated": self.per_second,
            "peak": self.peak,
            "training_peak": self.training_peak,
            "choice_bytes_per_token": self.choice_bytes,
            "waiting_bytes": self.waiting,
            "text_bytes": self.text,
        }


def playing_seconds(
    setup: TrainingSetup,
    card: Gpu,
    work: Work,
    read_bytes: int,
    *,
    episodes: int,
    prompt_tokens: int,
    chunks: int = 1,
) -> float:
    """Return the seconds of playing ``episodes`` on one GPU, one answer each, at most.

    Args:
        setup: What is trained, and how it samples.
        card: The GPU.
        work: Of the training, whose efficiency is assumed here too.
        read_bytes: Bytes of weights that a token of an answer moves.
        episodes: To be played.
        prompt_tokens: Of each.
        chunks: Equal parts of them, played one after the other.
    """
    phase = phase_of(setup)
    assert phase is not None and setup.method.name == "grpo"
    of_chunk = -(-episodes // chunks)
    at_a_time = min(setup.method.rollout_batch, of_chunk)
    # The cache grows from the prompt's to the whole episode's; half of the answer on average.
    halfway = min(prompt_tokens + phase.answer // 2, phase.longest)
    cached = cache_bytes(setup.architecture, setup.value_bytes, halfway, at_a_time)
    rate = card.memory_tb_per_s * 1e12 * work.efficiency
    drawn = chunks * -(-of_chunk // max(1, at_a_time)) * phase.answer
    reading = episodes * prompt_tokens * work.flops.forward / (card.tflops * 1e12)
    return drawn * (read_bytes + cached) / rate + reading / work.efficiency


def rollouts_of(
    setup: TrainingSetup,
    card: Gpu,
    work: Work,
    read_bytes: int,
    prompt: tuple[int, str],
    peaks: tuple[int | None, int],
) -> Rollouts | None:
    """Return what the episodes of a run cost; ``None`` for a method that plays none.

    Args:
        setup: As for ``playing_seconds``.
        card: Likewise.
        work: Likewise.
        read_bytes: Likewise.
        prompt: Tokens of a prompt, and where that number comes from.
        peaks: Bytes of one GPU while it plays, and in a training step.
    """
    phase, method = phase_of(setup), setup.method
    if phase is None or method.name != "grpo":
        return None
    episodes = method.updates * method.prompts_per_step * method.group_size
    a, tokens = setup.architecture, min(prompt[0] + phase.answer, phase.longest)
    phases = None if work.steps is None else -(-work.steps // method.updates)
    seconds = None
    if method.sampler != "server":
        seconds = playing_seconds(
            *(setup, card, work, read_bytes),
            episodes=phase.episodes,
            prompt_tokens=prompt[0],
            chunks=phase.chunks,
        )
    replayed = a.layers * a.experts_per_token if method.replay_routing else 0
    each = int(tokens * _TEXT_BYTES) + _LINE_BYTES
    return Rollouts(
        sampler=method.sampler,
        phase=phase,
        episodes=episodes,
        updates=method.updates,
        prompt_tokens=prompt[0],
        prompt_from=prompt[1],
        seconds=seconds,
        hours=None if phases is None or seconds is None else phases * seconds / 3600,
        choice_bytes=replayed,
        waiting=episodes * tokens * (_TOKEN_BYTES + replayed),
        text=None if phases is None else phases * episodes * each,
        peak=peaks[0],
        training_peak=peaks[1],
    )
