"""The objectives of GRPO for one token, with their slopes: all that a pass through the model needs.

Each depends on the token's own log-probability alone, so it is computed from a chunk's losses
inside the pass through the head (``loss.py``). Everything is fp64. With logp the trainer's
log-probability, old the trainer's before the updates on these episodes, q the sampler's, ref the
reference's, A the advantage, lo and hi ``clip_low`` and ``clip_high``, sg without gradient::

    r      exp(logp - old);  one update: old = sg(logp), so r is 1 and has the gradient of logp
    c      sg(exp(old - q)), the importance weight, at most ``importance_cap`` (truncate), or 0
           above it and below its inverse (mask), or 1 (none)
    clip   -min(r A, clamp(r, 1 - lo, 1 + hi) A)
    cispo  -sg(min(r, 1 + hi)) A logp
    kl     kl_weight * r * k3,  k3 = exp(ref - logp) - (ref - logp) - 1
    loss   c * (clip or cispo  +  kl)

CISPO has no bound below, in effect: a token that the updates made rare weighs what it still is.

The two ratios are apart on purpose: the clip bounds how far the updates move, and what sampler and
trainer compute differently is a weight beside it; a ratio to q itself would clip tokens on which
the two merely disagree.

The slope of the KL term is ``r (k3 + 1 - exp(ref - logp)) = r (logp - ref)``: an unbiased estimate
of the gradient of KL(policy || reference), so the optimum is ``ref * exp(reward / kl_weight)``.
Rejected: GRPO's own k3 without r, whose gradient is that of the KL the other way round.

See Schulman et al., arXiv 1707.06347 (the clip); Yu et al., arXiv 2503.14476 (its two sides);
MiniMax, arXiv 2506.13585 (CISPO); Schulman, Approximating KL Divergence, 2020 (k1, k3);
DeepSeek-AI, arXiv 2512.02556 (the unbiased KL); Yao et al., Your Efficient RL Framework Secretly
Brings You Off-Policy RL Training, 2025 (truncated importance weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptoss_tune.recipe.schema import GrpoSection


@dataclass(frozen=True)
class TokenFacts:
    """What the objective of a token is computed from; all of one shape, in nats.

    Attributes:
        advantages: What the token's episode is worth.
        sampler: Log-probability under the sampler.
        old: Under the trainer before the updates; ``None``: this is the only update.
        reference: Under the reference; ``None``: there is no KL term.
    """

    advantages: Tensor
    sampler: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    def at(self, rows: Tensor) -> TokenFacts:
        """Return those of ``rows``, of flat facts."""
        return TokenFacts(
            self.advantages[rows],
            self.sampler[rows],
            None if self.old is None else self.old[rows],
            None if self.reference is None else self.reference[rows],
        )


@dataclass(frozen=True)
class TokenTerms:
    """The objective of each token; all fp64 of the tokens' shape.

    Attributes:
        losses: Its value.
        slopes: Its derivative by the trainer's log-probability.
        mismatch: ``old - q``: the log of the importance weight before its bound.
        capped: Whether that bound changed it.
        clipped: Whether the clip took the gradient (clip) or bounded the ratio (cispo).
        kl: k3 to the reference; 0 without one.
    """

    losses: Tensor
    slopes: Tensor
    mismatch: Tensor
    capped: Tensor
    clipped: Tensor
    kl: Tensor


def token_terms(section: GrpoSection, logps: Tensor, facts: TokenFacts) -> TokenTerms:
    """Return the objective of tokens with the log-probabilities ``logps``, any shape, any dtype."""
    logp = logps.double()
    old = logp if facts.old is None else facts.old.double()
    advantages, ratio = facts.advantages.double(), (logp - old).exp()
    low, high = 1 - section.clip_low, 1 + section.clip_high
    if section.objective == "clip":
        bounded = ratio.clamp(low, high)
        # Only where it makes the objective look worse than it is.
        clipped = torch.where(advantages > 0, ratio > high, (ratio < low) & (advantages < 0))
        losses = -torch.where(clipped, bounded, ratio) * advantages
        slopes = -torch.where(clipped, 0.0, ratio) * advantages
    else:
        bounded = ratio.clamp(max=high)
        clipped = ratio > high
        losses = -bounded * advantages * logp
        slopes = -bounded * advantages
    kl = torch.zeros_like(logp)
    if facts.reference is not None:
        distance = logp - facts.reference.double()
        kl = torch.expm1(-distance) + distance
        losses = losses + section.kl_weight * ratio * kl
        slopes = slopes + section.kl_weight * ratio * distance
    mismatch = old - facts.sampler.double()
    weights, capped = importance_weights(section, mismatch)
    return TokenTerms(weights * losses, weights * slopes, mismatch, capped, clipped, kl)


def importance_weights(section: GrpoSection, mismatch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of tokens for ``mismatch = old - q``, and whether the bound changed them.

    A token without a number keeps it: a NaN of the sampler has to show.
    """
    ratio = mismatch.exp()
    if section.importance == "none":
        return torch.ones_like(ratio), torch.zeros_like(ratio, dtype=torch.bool)
    capped = ratio > section.importance_cap
    if section.importance == "truncate":
        return ratio.clamp(max=section.importance_cap), capped
    capped = capped | (ratio < 1 / section.importance_cap)
    return ratio.masked_fill(capped, 0.0), capped
