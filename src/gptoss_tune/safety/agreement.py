"""How far two judges agree: the share of equal labels, and Cohen's kappa.

kappa = (observed - expected) / (1 - expected), where the agreement expected by chance is what two
judges reach who label at random, each with its own share of ones (Cohen, 1960). Where both give one
label throughout, chance alone agrees in all cases and kappa is not defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same answers.

    Worked example: of 10 answers both label 4 as 1 and 3 as 0, the first alone labels 2 as 1 and
    the second alone 1. Observed 7/10; ones 6/10 and 5/10, so by chance 0.6*0.5 + 0.4*0.5 = 0.5;
    kappa (0.7 - 0.5) / 0.5 = 0.4.

    Attributes:
        both: Answers that both labelled.
        equal: Of them, those with equal labels.
        kappa: ``None`` where it is not defined.
        one_alone: Answers that only one of the two labelled.
        disagreements: Places of the answers whose labels differ.
    """

    both: int
    equal: int
    kappa: float | None
    one_alone: int
    disagreements: tuple[int, ...]

    @property
    def share(self) -> float | None:
        """Share of equal labels; ``None`` where no answer has two."""
        return self.equal / self.both if self.both else None


def agreement(first: Sequence[int | None], second: Sequence[int | None]) -> Agreement:
    """Return how far two judges agree.

    Args:
        first: Labels 0 and 1; ``None`` where there is none.
        second: Of the same answers.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True)]
    labelled = [(a, b) for a, b in pairs if a is not None and b is not None]
    equal, both = sum(a == b for a, b in labelled), len(labelled)
    kappa = None
    if both:
        ones = [sum(pair[side] for pair in labelled) / both for side in (0, 1)]
        expected = ones[0] * ones[1] + (1 - ones[0]) * (1 - ones[1])
        kappa = None if expected == 1 else (equal / both - expected) / (1 - expected)
    return Agreement(
        both=both,
        equal=equal,
        kappa=kappa,
        one_alone=sum((a is None) != (b is None) for a, b in pairs),
        disagreements=tuple(n for n, (a, b) in enumerate(pairs) if None not in (a, b) and a != b),
    )
