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
from gptoss_tune.train.grpo.loss import GrpoLoss, take
from gptoss_tune.train.grpo.meter import SUMS, GrpoMeter
from gptoss_tune.train.grpo.reference import log_probabilities

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


def prepare(section, rows, logps):
    """Give every row what sampler, old policy and reference held its tokens for: near ``logps``."""
    for row, near in zip(rows, logps, strict=True):
        near = near.detach().double().numpy()
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
        loss = -torch.clamp(r, max=1 + section.clip_high).detach() * A * logp
    if section.kl_weight:
        d = torch.as_tensor(row["reference_logps"]) - logp
        loss = loss + section.kl_weight * r * (torch.exp(d) - d - 1)
    return c * loss


def truth(section, rows, logps):
    """Return the step's loss, with a graph: a mean over the episodes that the test knows."""
    each, lengths = {}, {}
    for episode, row, logp in zip(EPISODES, rows, logps, strict=True):
        counted = torch.as_tensor(row["loss_weights"] != 0)
        losses = written(section, logp, row)[counted]
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


@pytest.fixture(scope="module")
def made():
    """Models of this file by their dtype."""
    return {}


@pytest.fixture
def model_of(made, small_model, randomise_adapters):
    """Return a function from a dtype to a model without gradients, the same in every test."""

    for dtype in (torch.float32, torch.float64):
        if dtype not in made:
            made[dtype] = small_model(dtype=dtype).train()
            set_attention(made[dtype])
        randomise_adapters(made[dtype], scale=0.2)
        made[dtype].zero_grad()
    return made.__getitem__


@pytest.fixture
def stepped(model_of):
    """Return a function from a section to its rows, prepared, and to logps with a graph."""

    def make(section, seed=3):
        rows = documents(section, seed)
        logps = [alone(model_of(torch.float64), row, section.temperature) for row in rows]
        prepare(section, rows, logps)
        return rows, logps

    return make


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """A small batch has rows of several chunks."""
    monkeypatch.setattr(causal_lm, "CHUNK_ROWS", 8)


def gradients(model):
    found = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    return torch.cat(found)


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


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case.values())))
def test_loss_and_gradients_are_those_of_the_written_formula(model_of, stepped, case):
    section = section_of(importance_cap=1.3, max_new_tokens=16, **case)
    rows, logps = stepped(section)
    expected = truth(section, rows, logps)
    expected.backward()
    exact = gradients(model_of(torch.float64))
    model = model_of(torch.float32)
    outputs = GrpoLoss(section)(model, batch_of([packed(rows[:3]), packed(rows[3:])]))
    outputs.loss_sum.backward()
    assert expected != 0 and exact.norm() > 1e-4
    assert relative_rms(outputs.loss_sum, expected) <= FP32
    assert relative_rms(gradients(model), exact) <= FP32


def test_the_cases_bend_every_formula(stepped):
    """What a case is for happens in it: ratios beyond both bounds, weights beyond the cap."""
    section = section_of(importance_cap=1.3, updates=2, importance="mask")
    rows, logps = stepped(section)
    ratios, weights, advantages = [], [], []
    for row, logp in zip(rows, logps, strict=True):
        counted = row["loss_weights"] != 0
        old = row["old_logps"]
        ratios.append(np.exp(logp.detach().numpy() - old)[counted])
        weights.append(np.exp(old - row["sampler_logps"])[counted])
        advantages.append(row["advantages"][counted])
    ratio, weight, advantage = map(np.concatenate, (ratios, weights, advantages))
    for beyond in (ratio > 1.2, ratio < 0.8):
        assert (beyond & (advantage > 0)).any() and (beyond & (advantage < 0)).any()
    assert (weight > 1.3).any() and (weight < 1 / 1.3).any()


def test_one_update_is_a_pass_with_constant_weights(model_of, stepped):
    section = section_of(importance="none")
    rows, _ = stepped(section)
    batch = batch_of([packed(rows[:3]), packed(rows[3:])])
    model = model_of(torch.float32)
    GrpoLoss(section)(model, batch).loss_sum.backward()
    asked = gradients(model)
    model.zero_grad()
    forward, columns = take(batch)
    forward["loss_weights"] = forward["loss_weights"] * columns["advantages"]
    model(**forward, use_cache=False).loss_sum.backward()
    assert asked.norm() > 1e-4
    assert torch.equal(asked, gradients(model))


def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(model_of, stepped):
    section = section_of(kl_weight=0.2, updates=2, average="sequence")
    rows, _ = stepped(section)
    model, meters = model_of(torch.float32), []
    found = []
    for batches in (
        [[packed(rows)]],
        [[row] for row in rows],
        [[packed(rows[:2])], [rows[2], rows[3]], [rows[4]]],
    ):
        model.zero_grad()
        meter = GrpoMeter(torch.device("cpu"), reference=True)
        total = 0.0
        for batch in batches:
            outputs = GrpoLoss(section)(model, batch_of(batch))
            outputs.loss_sum.backward()
            total += outputs.loss_sum.detach()
            meter.add(outputs.figures)
        found.append((total, gradients(model)))
        meters.append(meter.read())
    for total, gradient in found[1:]:
        assert relative_rms(total, found[0][0]) <= FP32
        assert relative_rms(gradient, found[0][1]) <= FP32
    for read in meters[1:]:
        assert read == pytest.approx(meters[0], rel=1e-5)


def test_log_probabilities_before_the_updates_make_the_first_ratio_one(model_of, stepped):
    one, two = (section_of(updates=n, temperature=0.8) for n in (1, 2))
    rows, _ = stepped(one)
    batch = batch_of([packed(rows[:3]), packed(rows[3:])])
    model = model_of(torch.float32)
    outputs = GrpoLoss(one)(model, batch)
    outputs.loss_sum.backward()
    expected = gradients(model)
    old = log_probabilities(model, batch, temperature=0.8)
    assert model.training and torch.equal(old, -outputs.token_losses)
    model.zero_grad()
    again = GrpoLoss(two)(model, {**batch, "old_logps": old})
    again.loss_sum.backward()
    assert torch.equal(gradients(model), expected)
    assert again.figures.sums[SUMS.index("clipped")] == 0


def test_figures_are_those_of_the_trained_tokens(model_of, stepped):
    section = section_of(kl_weight=0.2, updates=2, temperature=0.9, importance_cap=1.3)
    rows, logps = stepped(section)
    batch = batch_of([packed(rows[:3]), packed(rows[3:])])
    with torch.no_grad():
        outputs = GrpoLoss(section)(model_of(torch.float32), batch)
    meter = GrpoMeter(torch.device("cpu"), reference=True)
    assert meter.read() == {}
    meter.add(outputs.figures)
    kept = [row["loss_weights"] != 0 for row in rows]
    near = np.concatenate([p.detach().numpy()[k] for p, k in zip(logps, kept, strict=True)])
    of = {
        name: np.concatenate([row[name][k] for row, k in zip(rows, kept, strict=True)])
        for name in ("advantages", "old_logps", "sampler_logps", "reference_logps")
    }
    k1 = of["sampler_logps"] - of["old_logps"]
    ratio, importance = np.exp(near - of["old_logps"]), np.exp(-k1)
    up, down = of["advantages"] > 0, of["advantages"] < 0
    distance = of["reference_logps"] - near
    with torch.no_grad():
        entropies = []
        for row, k in zip(rows, kept, strict=True):
            ids = torch.as_tensor(row["input_ids"])[None]
            logits = model_of(torch.float64)(input_ids=ids, use_cache=False).logits[0, :-1] / 0.9
            each = torch.distributions.Categorical(logits=logits).entropy()
            entropies.append(each.numpy()[k[1:]])
    expected = {
        "trained_tokens": len(near),
        "entropy": np.concatenate(entropies).mean(),
        "mismatch_kl": (np.exp(-k1) - 1 + k1).mean(),
        "mismatch_kl_k1": k1.mean(),
        "mismatch_max": np.abs(k1).max(),
        "importance_weight_max": importance.max(),
        "importance_capped_share": (importance > 1.3).mean(),
        "clipped_share": ((up & (ratio > 1.2)) | (down & (ratio < 0.8))).mean(),
        "kl_reference": (np.exp(distance) - 1 - distance).mean(),
    }
    assert meter.read() == pytest.approx(expected, rel=1e-5)
    assert 0 < expected["clipped_share"] < 1 and 0 < expected["importance_capped_share"] < 1
    # Twice the same on another rank: the means stay, and so does the largest.
    assert meter.read(meter.sums * 2, meter.maxima)["entropy"] == meter.read()["entropy"]
    meter.reset()
    assert meter.read() == {}
    value = truth(section, rows, logps)
    assert relative_rms(outputs.loss_sum, value) <= FP32


def test_a_filler_trains_nothing(model_of, stepped):
    section = section_of()
    rows, _ = stepped(section)
    batch = batch_of(rows[:1])
    batch["loss_weights"].zero_()
    batch["selected_rows"] = 0
    model = model_of(torch.float32)
    outputs = GrpoLoss(section)(model, batch)
    outputs.loss_sum.backward()
    assert outputs.loss_sum == 0 and (gradients(model) == 0).all()
    assert (outputs.figures.sums == 0).all() and (outputs.figures.maxima == 0).all()


def test_a_label_that_is_ignored_has_no_part_whatever_its_weight(model_of, stepped):
    section = section_of()
    rows, _ = stepped(section)
    batch = batch_of(rows[:1])
    at = tuple(batch["loss_weights"].nonzero()[1])
    batch["shift_labels"][at] = -100
    found = GrpoLoss(section)(model_of(torch.float32), batch)
    batch["loss_weights"][at] = 0
    expected = GrpoLoss(section)(model_of(torch.float32), batch)
    assert torch.equal(found.loss_sum, expected.loss_sum)
    assert torch.equal(found.figures.sums, expected.figures.sums)
    assert found.figures.sums[SUMS.index("tokens")] == LENGTHS[0][1] - 1


def test_a_sampler_without_a_number_shows(model_of, stepped):
    for importance in ("truncate", "mask"):
        section = section_of(importance=importance)
        rows, _ = stepped(section)
        batch = batch_of([packed(rows)])
        at = int(batch["loss_weights"].flatten().nonzero()[2])
        batch["sampler_logps"].view(-1)[at] = float("nan")
        outputs = GrpoLoss(section)(model_of(torch.float32), batch)
        assert outputs.loss_sum.isnan() and outputs.figures.maxima.isnan().all()


def test_a_column_that_is_missing_is_named_and_one_too_many_is_left_alone(model_of, stepped):
    section = section_of(updates=2)
    rows, _ = stepped(section)
    batch = batch_of(rows[:1])
    model = model_of(torch.float32)
    with pytest.raises(ValueError, match=r"updates 2 and kl_weight 0\.1 lacks reference_logps; it"):
        GrpoLoss(section_of(updates=2, kl_weight=0.1))(model, batch)
    once = GrpoLoss(section_of())(model, batch).loss_sum
    del batch["old_logps"]
    assert torch.equal(GrpoLoss(section_of())(model, batch).loss_sum, once)
    with pytest.raises(ValueError, match="lacks old_logps"):
        GrpoLoss(section)(model, batch)
    del batch["sampler_logps"]
    with pytest.raises(ValueError, match="lacks sampler_logps, old_logps"):
        GrpoLoss(section)(model, batch)
