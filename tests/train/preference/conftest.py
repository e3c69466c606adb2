"""Rows of answers as a rendered data set has them, made by hand for a model of 97 words."""

import numpy as np
import pytest

FINAL, ANALYSIS = 3, 1


def document(generator, prompt, answer, analysis=0):
    """Return ids, weights and channels: a prompt, then thoughts and an answer, all counted."""
    shared, own = prompt, generator.integers(0, 97, answer)
    ids = np.concatenate((shared, own))
    weights = np.zeros(len(ids), np.float32)
    weights[len(shared) :] = 1
    channels = np.zeros(len(ids), np.int8)
    channels[len(shared) :] = FINAL
    channels[len(shared) : len(shared) + analysis] = ANALYSIS
    return ids, weights, channels


def pack(samples):
    """Return a row of samples: each a weight and a list of (sign, document)."""
    row = {name: [] for name in ("input_ids", "loss_weights", "channels", "position_ids")}
    row |= {"branches": [], "samples": [], "sources": []}
    for number, (weight, documents) in enumerate(samples):
        for sign, (ids, weights, channels) in documents:
            row["input_ids"] += ids.tolist()
            row["loss_weights"] += (weights * weight).tolist()
            row["channels"] += channels.tolist()
            row["position_ids"] += list(range(len(ids)))
            row["branches"].append(sign)
            row["samples"].append(number)
            row["sources"].append(0)
    return row | {"length": len(row["input_ids"])}


@pytest.fixture
def pair_samples():
    """Return pairs of several shapes: thoughts, two documents in a branch, a weight."""
    draw = np.random.default_rng(4)

    def pair(prompt, chosen, rejected, weight=1.0, turns=1):
        asked = draw.integers(0, 97, prompt)
        documents = [(1, document(draw, asked, *chosen)) for _ in range(turns)]
        return weight, [*documents, (-1, document(draw, asked, *rejected))]

    return [
        pair(5, (7, 3), (4, 2)),
        pair(9, (1,), (6,), weight=0.5),
        pair(3, (4, 2), (11,), turns=2),
        pair(12, (8,), (8, 5), weight=2.0),
    ]


@pytest.fixture
def labelled_samples():
    draw = np.random.default_rng(5)
    signs = (1, -1, -1, 1, -1)
    return [
        (1.0 + (n == 2), [(s, document(draw, draw.integers(0, 97, 3 + n), 4 + n))])
        for n, s in enumerate(signs)
    ]


@pytest.fixture
def packed_row():
    return pack
