"""Figures of a step of GRPO: entropy, mismatch of sampler and trainer, clip, KL to the reference.

Sums and maxima on the device, read only when something is logged, and put together over ranks
before that. The tokens are drawn by the sampler, q, so ``k1 = q - logp`` estimates KL(q || trainer)
without bias and ``k3 = exp(-k1) - 1 + k1`` does too, is never negative and has less variance: it is
the one that is bounded (``mismatch_kl_limit``).

See Schulman, Approximating KL Divergence, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptoss_tune.train.grpo.objectives import TokenTerms

SUMS = ("tokens", "entropy", "mismatch_k1", "mismatch_k3", "capped", "clipped", "kl")
MAXIMA = ("mismatch", "importance")


@dataclass(frozen=True)
class GrpoFigures:
    """What a micro-batch adds to a meter.

    Attributes:
        sums: ``[len(SUMS)]`` fp64.
        maxima: ``[len(MAXIMA)]`` fp64, 0 where nothing is trained.
    """

    sums: Tensor
    maxima: Tensor


@torch.no_grad()
def figures_of(terms: TokenTerms, entropies: Tensor, trained: Tensor) -> GrpoFigures:
    """Return the figures of a micro-batch.

    Args:
        terms: ``[N]``, of every token.
        entropies: ``[N]``.
        trained: ``[N]`` bool, which of them count.
    """
    k1 = -terms.mismatch
    each = torch.stack(
        (
            torch.ones_like(k1),
            entropies.double(),
            k1,
            torch.expm1(-k1) + k1,
            terms.capped.double(),
            terms.clipped.double(),
            terms.kl,
        )
    )
    largest = torch.stack((terms.mismatch.abs(), terms.mismatch.exp()))
    return GrpoFigures(
        torch.where(trained, each, 0.0).sum(1),
        torch.where(trained, largest, 0.0).amax(1),
    )


class GrpoMeter:
    """Running sums and maxima of what a line of metrics shows.

    Attributes:
        sums: ``[len(SUMS)]`` fp64, to be summed over ranks.
        maxima: ``[len(MAXIMA)]`` fp64, of which the largest over ranks counts.
    """

    def __init__(self, device: torch.device, *, reference: bool) -> None:
        """Start at zero.

        Args:
            device: Of the sums.
            reference: Whether there is a KL to a reference to show.
        """
        self._reference = reference
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.maxima = torch.zeros(len(MAXIMA), dtype=torch.float64, device=device)

    def add(self, figures: GrpoFigures) -> None:
        """Count a micro-batch."""
        self.sums += figures.sums
        self.maxima = torch.maximum(self.maxima, figures.maxima)

    @property
    def total(self) -> GrpoFigures:
        """All micro-batches since the last ``reset``."""
        return GrpoFigures(self.sums, self.maxima)

    def read(self, sums: Tensor | None = None, maxima: Tensor | None = None) -> dict[str, float]:
        """Return the figures since the last ``reset``; none where nothing was trained.

        Args:
            sums: Those of all ranks; ``None``: this one's alone.
            maxima: Those of all ranks; ``None``: this one's alone.

        Returns:
            ``trained_tokens``; means over them: ``entropy``, ``mismatch_kl`` (k3),
            ``mismatch_kl_k1``, ``kl_reference`` (k3, with a reference), in nats; shares:
            ``clipped_share``, ``importance_capped_share``; and the largest ``mismatch_max`` (nats)
            and ``importance_weight_max`` (before its bound).
        """
        got = dict(zip(SUMS, (self.sums if sums is None else sums).tolist(), strict=True))
        most = (self.maxima if maxima is None else maxima).tolist()
        tokens = got["tokens"]
        if not tokens:
            return {}
        found = {
            "trained_tokens": tokens,
            "entropy": got["entropy"] / tokens,
            "mismatch_kl": got["mismatch_k3"] / tokens,
            "mismatch_kl_k1": got["mismatch_k1"] / tokens,
            "clipped_share": got["clipped"] / tokens,
            "importance_capped_share": got["capped"] / tokens,
            "mismatch_max": most[0],
            "importance_weight_max": most[1],
        }
        return found | ({"kl_reference": got["kl"] / tokens} if self._reference else {})

    def reset(self) -> None:
        """Start again at zero."""
        self.sums.zero_()
        self.maxima.zero_()
