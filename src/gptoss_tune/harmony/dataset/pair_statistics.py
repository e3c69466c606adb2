"""Statistics of preferences: how long both answers are, what of them counts, what that teaches.

The figures are those of the samples that are drawn, after holding out and mixing; an answer is as
long as its counted tokens are many, since these alone enter the loss.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import CHANNEL_NAMES, CHANNELS
from gptoss_tune.harmony.dataset.mismatched import partners
from gptoss_tune.recipe.schema import MethodSection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.harmony.dataset.arrow import SampleFile
    from gptoss_tune.harmony.dataset.kinds import Rows
    from gptoss_tune.harmony.dataset.selection import Split

FEWEST_COMPARED: Final = 20
"""Pairs of answers of different lengths from which on a bias is told."""
STRONG_BIAS: Final = 0.8
"""Share of them in which the same side is the longer one, from which on it is told."""
MOST_GOOD: Final = 4 / 3
"""Largest ratio of the good answers' weight to the bad ones'; the smallest is 1."""
LARGEST_WEIGHT: Final = 1000.0
"""Largest value of method.desirable_weight and undesirable_weight."""


class LabelWeights(NamedTuple):
    """What KTO multiplies a good answer's loss by, and a bad one's."""

    good: float = 1.0
    bad: float = 1.0


EQUAL_WEIGHTS: Final = LabelWeights()
"""What labels count where the recipe says nothing."""


def label_weights(method: MethodSection) -> LabelWeights:
    """Return the weights of a method's labels; 1 and 1 where it has none."""
    if method.name != "kto":
        return EQUAL_WEIGHTS
    return LabelWeights(method.desirable_weight, method.undesirable_weight)


@dataclass(frozen=True, slots=True)
class BranchStatistics:
    """The answers of one side: chosen, rejected, good or bad.

    Attributes:
        answers: How many there are.
        tokens: Tokens of their documents, prompts included.
        counted: Tokens that enter the loss.
        channels: These by channel.
        weight: Sum of the answers' weights, times the method's weight of the label.
    """

    answers: int
    tokens: int
    counted: int
    channels: dict[str, int]
    weight: float

    @property
    def mean_length(self) -> float:
        """Counted tokens per answer."""
        return self.counted / max(1, self.answers)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "answers": self.answers,
            "tokens": self.tokens,
            "counted_tokens": self.counted,
            "mean_counted_tokens": self.mean_length,
            "channels": self.channels,
            "weight": self.weight,
        }


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """The figures of both sides of a split.

    Attributes:
        rows: What a row is, ``pair`` or ``label``.
        preferred: The chosen or the good answers.
        other: The rejected or the bad ones.
        longer: Pairs whose chosen answer is the longer one.
        shorter: Pairs whose rejected answer is.
        weights: What the method multiplies the labels by.
    """

    rows: Rows
    preferred: BranchStatistics
    other: BranchStatistics
    longer: int
    shorter: int
    weights: LabelWeights

    @property
    def sides(self) -> tuple[tuple[str, BranchStatistics], tuple[str, BranchStatistics]]:
        """The names of both sides with their figures, the preferred one first."""
        first, second = SIDES[self.rows]
        return (first, self.preferred), (second, self.other)

    @property
    def longer_share(self) -> float:
        """Share of the pairs whose chosen answer is the longer one."""
        return self.longer / max(1, self.preferred.answers)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        found: dict[str, Any] = {name: side.to_json() for name, side in self.sides}
        if self.rows == "pair":
            found |= {
                "pairs": self.preferred.answers,
                "chosen_longer": self.longer,
                "rejected_longer": self.shorter,
                "chosen_longer_share": self.longer_share,
            }
        return found


SIDES: Final[dict[str, tuple[str, str]]] = {
    "pair": ("chosen", "rejected"),
    "label": ("good", "bad"),
}
"""What both sides are called, by what a row is; the preferred one first."""
NOUNS: Final[dict[str, tuple[str, str]]] = {
    "conversation": ("sample", "row"),
    "pair": ("pair", "pair"),
    "label": ("answer", "answer"),
}
"""What a sample, and a row, is called, by what a row is."""


def pair_statistics(
    files: Sequence[SampleFile],
    samples: NDArray[np.int64],
    rows: Rows,
    weights: LabelWeights,
) -> PairStatistics:
    """Return the figures of both sides of a split.

    Args:
        files: Renderings of preferences.
        samples: ``[n]`` which of their samples, laid end to end, are drawn.
        rows: What a row is.
        weights: Of the labels.
    """
    measured = [_measured(file) for file in files]
    tokens = np.concatenate([one.tokens for one in measured])[samples]
    counted = np.concatenate([one.counted for one in measured])[samples]
    weight = np.concatenate([one.weights for one in measured])[samples]
    lengths = counted.sum(axis=2)
    sides = [
        _branch(tokens[:, side], counted[:, side], weight, factor)
        for side, factor in enumerate(weights)
    ]
    both = rows == "pair"
    longer, shorter = (
        int((lengths[:, side] > lengths[:, 1 - side]).sum()) if both else 0 for side in (0, 1)
    )
    return PairStatistics(rows, sides[0], sides[1], longer, shorter, weights)


def _branch(
    tokens: NDArray[np.int64],
    counted: NDArray[np.int64],
    weight: NDArray[np.float64],
    factor: float,
) -> BranchStatistics:
    by_channel = dict(zip(CHANNEL_NAMES, map(int, counted.sum(axis=0)), strict=True))
    return BranchStatistics(
        answers=int((tokens > 0).sum()),
        tokens=int(tokens.sum()),
        counted=sum(by_channel.values()),
        channels={channel: by_channel[channel] for channel in CHANNELS},
        weight=factor * float(weight[tokens > 0].sum()),
    )


class _Measured(NamedTuple):
    """Of n samples: tokens ``[n, 2]``, counted ones ``[n, 2, channels]``, weights ``[n]``."""

    tokens: NDArray[np.int64]
    counted: NDArray[np.int64]
    weights: NDArray[np.float64]


def _measured(file: SampleFile) -> _Measured:
    """Return what the samples of a file hold."""
    kinds = len(CHANNEL_NAMES)
    tokens = [np.empty((0, 2), np.int64)]
    counted = [np.empty((0, 2, kinds), np.int64)]
    weights = [np.empty(0)]
    for batch in file.table.to_batches():
        lengths = batch["length"].to_numpy()
        starts = np.cumsum(lengths) - lengths
        documents = batch["documents"].flatten().to_numpy()
        of_sample = np.repeat(np.arange(len(batch)), batch["documents"].value_lengths().to_numpy())
        cells = 2 * of_sample + (batch["branches"].flatten().to_numpy() < 0)
        tokens.append(np.bincount(cells, documents, 2 * len(batch)).astype(np.int64).reshape(-1, 2))
        loss_weights = batch["loss_weights"].flatten().to_numpy()
        enters = loss_weights > 0
        channels = batch["channels"].flatten().to_numpy()[enters]
        cells = np.repeat(cells, documents)[enters] * kinds + channels
        counted.append(np.bincount(cells, minlength=2 * kinds * len(batch)).reshape(-1, 2, kinds))
        weights.append(np.maximum.reduceat(loss_weights, starts).astype(np.float64))
    return _Measured(np.concatenate(tokens), np.concatenate(counted), np.concatenate(weights))


def dropped(counts: Counter[str], rows: Rows) -> dict[str, int]:
    """Return how many samples of preferences were left out, by the reason."""
    both = " (both branches together)" if rows == "pair" else ""
    said = {
        "with equal answers": "equal_answers",
        "tied": "ties",
        f"longer than max_length{both}": "too_long",
        "with an answer of nothing to count": "nothing_to_train",
    }
    return {what: counts[name] for what, name in said.items() if counts[name]}


def dropped_phrases(counts: Counter[str], rows: Rows) -> list[str]:
    """Return what ``dropped`` does in words."""
    noun = NOUNS[rows][0]
    return [
        f"{number:,} {noun if number == 1 else noun + 's'} {what}"
        for what, number in dropped(counts, rows).items()
    ]


LISTED: Final = {
    "equal_answers": "{} with equal answers",
    "ties": "{} without a preference",
    "differ_in_length": "{} whose answers differ in length alone",
    "lost_analysis": "{} whose chosen answer lost its chain of thought",
}
"""What the places of each count are; ``{}`` stands for what a row is called."""


def pair_warnings(counts: Counter[str]) -> Iterator[tuple[int, str, str]]:
    """Yield what pairs teach beside their preference: how many, of what, and what to do."""
    yield (
        counts["equal_answers"],
        "pair",
        "dropped, the answers are equal: no loss can tell them apart",
    )
    yield counts["ties"], "pair", "dropped, the row says that neither answer is better"
    yield (
        counts["differ_in_length"],
        "pair",
        "whose answers differ in length alone, one being the beginning of the other: what is "
        "learnt there is to stop or to go on; remove those that are not meant so",
    )
    yield (
        counts["lost_analysis"],
        "pair",
        "whose chosen answer has no chain of thought and whose rejected one has: the model learns "
        "not to think, also with method.analysis ignored, since the chosen answer still begins "
        "where the thoughts would; add the thoughts to the chosen answers, or remove the pairs",
    )


def figure_warnings(figures: PairStatistics, split: Split) -> Iterator[str]:
    """Yield what the figures of both sides say against training on them, or measuring by them."""
    if figures.rows == "label":
        # Held-out answers are measured label by label.
        yield from _unbalanced(figures) if split == "train" else ()
        return
    compared = figures.longer + figures.shorter
    if compared < FEWEST_COMPARED:
        return
    for number, side in ((figures.longer, "chosen"), (figures.shorter, "rejected")):
        if number > STRONG_BIAS * compared:
            yield (
                f"the {side} answer is the longer one in {number / compared:.0%} of "
                f"{compared:,} pairs of different lengths (counted tokens on average: "
                f"{figures.preferred.mean_length:,.1f} chosen, {figures.other.mean_length:,.1f} "
                "rejected): length alone tells the answers apart; add pairs in which the "
                "other one is longer, or compare per token (method.length_normalized of dpo and "
                "ipo; simpo and orpo always do)"
            )


def _unbalanced(figures: PairStatistics) -> Iterator[str]:
    good, bad = figures.preferred, figures.other
    said = f"{good.answers:,} good and {bad.answers:,} bad answers"
    if not good.answers or not bad.answers:
        missing = "good" if bad.answers else "bad"
        yield f"{said}: nothing is learnt from one label alone; add {missing} answers"
        return
    ratio = good.weight / bad.weight
    # Weights that were chosen for a ratio of 1 or 4/3 are not told for their last bits.
    if 1 - 1e-6 <= ratio <= MOST_GOOD + 1e-6:
        return
    name, todo = "desirable", "good"
    lowest = figures.weights.good / ratio
    if ratio > 1:
        name, todo = "undesirable", "bad"
        lowest = figures.weights.bad * ratio / MOST_GOOD
    highest = lowest * MOST_GOOD
    advice = f"add {todo} answers"
    if lowest <= LARGEST_WEIGHT:
        value = _round_within(lowest, min(highest, LARGEST_WEIGHT))
        advice = f"set method.{name}_weight to {value} ({lowest:.4g} to {highest:.4g}), or {advice}"
    yield (
        f"{said}, weighted {good.weight:,.6g} to {bad.weight:,.6g}; KTO's authors advise a ratio "
        f"of 1:1 to 4:3, good to bad; {advice}"
    )


def without_partners(answers: int, split: Split) -> str | None:
    """Return why KTO cannot use so many answers; None where it can."""
    try:
        partners(np.arange(answers, dtype=np.uint64), np.ones(answers, np.int64), seed=0)
    except DataError as error:
        return f"{split}: {error}"
    return None


def _round_within(lowest: float, highest: float) -> str:
    """Return the number of fewest digits in a range, as it is written in a recipe."""
    middle = (lowest + highest) / 2
    for digits in range(1, 17):
        step = 10.0 ** (math.floor(math.log10(middle)) + 1 - digits)
        value = float(f"{round(middle / step) * step:.{digits}g}")
        if lowest <= value <= highest:
            break
    else:
        value = middle
    return np.format_float_positional(value, trim="-")
