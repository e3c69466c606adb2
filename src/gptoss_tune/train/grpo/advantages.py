"""Rewards of groups to advantages, and how much each token of a step weighs.

An answer is worth what it earned above the mean of its group: the answers to one prompt::

    rewards [1, 0, 0, 1]  ->  advantages [0.5, -0.5, -0.5, 0.5]
    over their standard deviation 0.577 + 1e-4: [0.866, -0.866, -0.866, 0.866]
    rewards [1, 1, 1, 1]  ->  all 0: nothing to learn, a group without signal

The mean of a step is over everything that is trained in it, whatever micro-batches and ranks it
was cut into; so weights are made once for the whole step, and its loss is a plain sum.

See Shao et al., arXiv 2402.03300 (GRPO); Liu et al., arXiv 2503.20783 (Dr. GRPO: neither the
standard deviation nor an answer's own length); Yu et al., arXiv 2503.14476 (DAPO: the mean over
tokens, dynamic sampling, soft overlong punishment). The deviation is of the sample (n - 1) and has
the 1e-4 that TRL's ``GRPOTrainer`` adds.

G groups, n episodes of each, E episodes of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

STD_FLOOR = 1e-4
"""Added to a group's standard deviation."""
_SAME = 1e-9
"""Rewards of a group that differ by no more, relative to the largest, are the same."""


def group_advantages(rewards: ArrayLike, *, scale_by_std: bool) -> NDArray[np.float64]:
    """Return ``r - mean(group)``, over ``std(group) + 1e-4`` if asked for.

    Args:
        rewards: ``[G, n]``, finite.
        scale_by_std: As in GRPO; Dr. GRPO leaves it out, so that easy and hard prompts weigh alike.

    Returns:
        ``[G, n]``; exactly 0 where a group has no signal.

    Raises:
        ValueError: Not ``[G, n]`` with n of at least 2, or a reward that is not finite.
    """
    values = _groups(rewards)
    centred = values - values.mean(axis=1, keepdims=True)
    if scale_by_std:
        centred /= values.std(axis=1, ddof=1, keepdims=True) + STD_FLOOR
    return np.where(has_signal(values)[:, None], centred, 0.0)


def has_signal(rewards: ArrayLike) -> NDArray[np.bool_]:
    """Return for each group of ``rewards [G, n]`` whether they differ: ``[G]``.

    What dynamic sampling keeps; the others have no gradient of the objective.
    """
    values = _groups(rewards)
    size = np.maximum(1.0, np.abs(values).max(axis=1))
    return values.max(axis=1) - values.min(axis=1) > _SAME * size


def overlong_penalty(tokens: ArrayLike, *, longest: int, buffer: int) -> NDArray[np.float64]:
    """Return DAPO's soft overlong punishment, from 0 down to -1, to be added to a reward.

    0 up to ``longest - buffer`` tokens, then linear, -1 from ``longest`` on::

        longest 100, buffer 20: 80 -> 0, 85 -> -0.25, 100 -> -1, 300 -> -1

    Args:
        tokens: Lengths, any shape.
        longest: Length at which an answer is cut.
        buffer: Tokens over which the penalty grows, at most ``longest``.

    Raises:
        ValueError: ``buffer`` is not in 1 to ``longest``.
    """
    if not 1 <= buffer <= longest:
        raise ValueError(
            f"the buffer of the overlong penalty must be 1 to {longest} tokens, as long as an "
            f"answer may be, got {buffer}"
        )
    over = np.asarray(tokens, np.float64) - (longest - buffer)
    return -np.clip(over / buffer, 0.0, 1.0) + 0.0


def token_weights(
    tokens: Sequence[int] | NDArray[np.integer],
    average: Literal["token", "sequence", "constant"],
    *,
    longest: int,
) -> NDArray[np.float64]:
    """Return by how much each token of an episode counts in the mean of the step: ``[E]``.

    ``sum_e tokens_e * weight_e`` is 1 for ``token`` and ``sequence``: the step's loss is the sum of
    its tokens' losses by these weights, over all micro-batches and ranks. With 2 and 6 tokens::

        token      1/8 and 1/8    every token alike (DAPO)
        sequence   1/4 and 1/12   every episode alike (GRPO)
        constant   1/2L each      L is ``longest``: no length has a part in it (Dr. GRPO)

    Args:
        tokens: Trained tokens of every episode of the step, on all ranks; 0: it is not trained, and
            is none of those that are averaged over.
        average: Which mean.
        longest: L, the divisor of ``constant``.

    Returns:
        Weights; 0 for an episode that is not trained.

    Raises:
        ValueError: A negative length, or a name that is none of the three.
    """
    counts = np.asarray(tokens, np.float64)
    if (counts < 0).any():
        raise ValueError(f"numbers of trained tokens must not be negative, got {counts.min():g}")
    trained = counts > 0
    if not trained.any():
        return np.zeros_like(counts)
    if average == "token":
        weights = np.full_like(counts, 1.0 / counts.sum())
    elif average == "sequence":
        weights = 1.0 / (np.where(trained, counts, 1.0) * trained.sum())
    elif average == "constant":
        weights = np.full_like(counts, 1.0 / (longest * trained.sum()))
    else:
        raise ValueError(f"average must be token, sequence or constant, got {average!r}")
    return np.where(trained, weights, 0.0)


def _groups(rewards: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(rewards, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(
            f"rewards must be [groups, episodes] with at least 2 episodes to compare, got "
            f"{values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            "a reward is NaN or infinite; give a finite one, or raise, which is counted as failed"
        )
    return values
