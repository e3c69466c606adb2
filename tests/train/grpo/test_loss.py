"""The loss of sampled answers against float64 autograd of the written formulas, through a model.

The truth runs each document alone through whole logits in float64 and leaves every derivative to
autograd; ours packs the documents, asks for weights between a chunk's losses and its gradient, and
never has a logit.
"""

import itertools

import numpy as np
import pytest
import torch
from gptoss_kernels.testing import relative_rms

from gptoss_tune.model import causal_lm
from gptoss_tune.model.attention import set_attention
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.train.data.collator import BATCH_ONLY, Collator
from gptoss_tune.train.grpo.advantages import token_weights
from gptoss_tune.train.grpo.loss import GrpoLoss
from gptoss_tune.train.grpo.reference import (
    StartAdapter,
    log_probabilities,
    reference_log_probabilities,
)

FP32 = 3e-6
"""Relative RMS; gradients taken as one vector."""
WORDS = 97
LENGTHS = ((6, 5), (3, 9), (4, 1), (9, 7), (2, 12))
"""Tokens of each document: a prompt, and what was drawn after it."""
EPISODES = (0, 0, 1, 2, 3)
"""Whose document it is: the first episode has two."""
ADVANTAGES = (1.0, -0.7, 0.4, -1.3)


def section_of(**settings):
    return GrpoSection.model_validate({"name": "grpo", **settings})


def documents(section, seed=3):
    """Return rows of a data set, one a document, with the columns of the objective."""
    draw = np.random.default_rng(seed)
    drawn = np.zeros(len(ADVANTAGES), int)
    for episode, (_, answer) in zip(EPISODES, LENGTHS, strict=True):
        drawn[episode] += answer
    weights = token_weights(drawn, section.average, longest=section.max_new_tokens)
    found = []
    for episode, (prompt, answer) in zip(EPISODES, LENGTHS, strict=True):
        total = prompt + answer
        sampled = np.arange(total) >= prompt
        row = {"input_ids": draw.integers(0, WORDS, total), "position_ids": np.arange(total)}
        row["channels"] = np.zeros(total, np.int64)
        row["loss_weights"] = np.where(sampled, weights[episode], 0).astype(np.float32)
        row["advantages"] = np.where(sampled, ADVANTAGES[episode], 0)
        # Filled in once a model has said what it holds the tokens for.
        row["noise"] = {
            name: draw.normal(0, 0.5, total) for name in ("sampler", "old", "reference")
        }
        found.append(row)
    return found


def alone(model, row, temperature):
    """Return the log-probability of each token under the tokens before it, with a graph."""
    ids = torch.as_tensor(row["input_ids"])
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1] / temperature
    each = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return torch.cat((each.new_zeros(1), each))


def prepare(model, section, rows):
    """Give every row what sampler, old policy and reference held its tokens for: near ``model``."""
    with torch.no_grad():
        for row in rows:
            near = alone(model, row, section.temperature).double().numpy()
            columns = {"sampler_logps": near + row["noise"]["sampler"]}
            if section.updates > 1:
                columns["old_logps"] = near + row["noise"]["old"]
            if section.kl_weight:
                columns["reference_logps"] = near + row["noise"]["reference"]
            counted = row["loss_weights"] != 0
            row.update({name: np.where(counted, v, 0) for name, v in columns.items()})


def written(section, logp, row):
    """Return the objective of each token as the papers write it; autograd finds the gradient."""
    A = torch.as_tensor(row["advantages"])
    q = torch.as_tensor(row["sampler_logps"])
    old = torch.as_tensor(row["old_logps"]) if section.updates > 1 else logp.detach()
    c = torch.exp(old - q)
    if section.importance == "truncate":
        c = torch.minimum(c, torch.tensor(section.importance_cap))
    elif section.importance == "mask":
        c = c * ((c <= section.importance_cap) & (c >= 1 / section.importance_cap))
    else:
        c = torch.ones_like(c)
    r = torch.exp(logp - old)
    bounded = torch.clamp(r, 1 - section.clip_low, 1 + section.clip_high)
    if section.objective == "clip":
        loss = -torch.minimum(r * A, bounded * A)
    else:
        loss = -bounded.detach() * A * logp
    if section.kl_weight:
        d = torch.as_tensor(row["reference_logps"]) - logp
        loss = loss + section.kl_weight * r * (torch.exp(d) - d - 1)
    return c * loss


def truth(model, section, rows):
    """Return the step's loss, with a graph: a mean over the episodes that the test knows."""
    each, lengths = {}, {}
    for episode, row in zip(EPISODES, rows, strict=True):
        counted = torch.as_tensor(row["loss_weights"] != 0)
        losses = written(section, alone(model, row, section.temperature), row)[counted]
        each[episode] = each.get(episode, 0.0) + losses.sum()
        lengths[episode] = lengths.get(episode, 0) + len(losses)
    if section.average == "token":
        return sum(each.values()) / sum(lengths.values())
    if section.average == "sequence":
        return sum(each[e] / lengths[e] for e in each) / len(each)
    return sum(each.values()) / section.max_new_tokens / len(each)


def packed(rows):
    """Return one row of several documents."""
    columns = [name for name in rows[0] if name != "noise"]
    return {name: np.concatenate([row[name] for row in rows]) for name in columns}


def batch_of(rows, dtype=torch.float32):
    """Return the collated rows with the objective's columns beside the targets."""
    batch = Collator(0, packed=True)(rows)
    for name in BATCH_ONLY:
        batch.pop(name, None)
    for name in ("advantages", "sampler_logps", "old_logps", "reference_logps"):
        if name in rows[0]:
            column = torch.zeros(batch["input_ids"].shape, dtype=dtype)
            for index, row in enumerate(rows):
                values = torch.as_tensor(row[name], dtype=dtype)
                column[index, : len(values) - 1] = values[1:]
            batch[name] = column
    return batch


def ready(small_model, randomise_adapters, dtype):
    model = small_model(dtype=dtype)
    randomise_adapters(model, scale=0.2)
    set_attention(model)
    return model.train()


def gradients(model):
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


CASES = [
    {"objective": objective, "importance": importance, "updates": updates}
    for objective, importance, updates in itertools.product(
        ("clip", "cispo"), ("truncate", "mask", "none"), (1, 2)
    )
]
CASES += [
    {"average": "sequence", "updates": 2, "kl_weight": 0.3, "temperature": 0.7},
    {"average": "constant", "objective": "cispo", "kl_weight": 0.2, "updates": 3},
    {"average": "constant", "kl_weight": 0.5, "temperature": 1.6},
    {"average": "sequence", "clip_low": 0.05, "clip_high": 0.6, "updates": 2},
]


@pytest.fixture
def small_chunks(monkeypatch):
    """Rows of several chunks in a small batch."""
    monkeypatch.setattr(causal_lm, "CHUNK_ROWS", 8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case.values())))
def test_loss_and_gradients_are_those_of_the_written_formula(
    small_model, randomise_adapters, small_chunks, case
):
    section = section_of(importance_cap=1.3, max_new_tokens=16, **case)
    exact = ready(small_model, randomise_adapters, torch.float64)
    rows = documents(section)
    prepare(exact, section, rows)
    expected = truth(exact, section, rows)
    expected.backward()
    model = ready(small_model, randomise_adapters, torch.float32)
    outputs = GrpoLoss(section)(model, batch_of([packed(rows[:3]), packed(rows[3:])]))
    outputs.loss_sum.backward()
    assert expected != 0 and gradients(exact).norm() > 1e-4
    assert relative_rms(outputs.loss_sum, expected) <= FP32
    assert relative_rms(gradients(model), gradients(exact)) <= FP32
