"""Loss, margin and every adapter's gradient against float64 autograd of the written formula.

The truth runs each document alone through whole logits in float64; ours packs them, goes through
the fused cross-entropy in fp32 and never has a logit.
"""

import numpy as np
import pytest
import torch
from gptoss_kernels.testing import relative_rms
from torch.nn.functional import logsigmoid

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.train.data.collator import BATCH_ONLY
from gptoss_tune.train.preference.answers import answers_of, take
from gptoss_tune.train.preference.collator import PreferenceCollator
from gptoss_tune.train.preference.loss import PreferenceLoss

FP32 = 1e-6
"""Relative RMS, as promised; the gradients taken as one vector, measured up to 4e-7."""
KL = 0.3
SECTIONS = {
    "dpo": {"beta": 0.3},
    "dpo of noisy labels, with the chosen answer's loss": {
        "label_smoothing": 0.2,
        "sft_weight": 0.7,
        "beta": 0.5,
    },
    "dpo per token": {"length_normalized": True, "beta": 2.0},
    "ipo": {"beta": 0.4, "sft_weight": 0.1},
    "ipo of sums": {"length_normalized": False, "beta": 0.2},
    "simpo": {"beta": 2.5, "gamma": 0.6, "label_smoothing": 0.1, "sft_weight": 0.2},
    "orpo": {"beta": 0.6},
    "kto": {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.8},
}


def section_of(name):
    method = name.split()[0]
    return METHODS[method].model_validate({"name": method, **SECTIONS[name]})


def written(section, chosen, rejected):
    """Return the loss of one pair as the papers write it: each side is logp, reference, tokens."""
    (c, ref_c, n_c), (r, ref_r, n_r) = chosen, rejected
    if section.name == "orpo":
        p_c, p_r = (c / n_c).exp(), (r / n_r).exp()
        odds = torch.log(p_c / (1 - p_c)) - torch.log(p_r / (1 - p_r))
        return -c / n_c - section.beta * logsigmoid(odds)
    if section.name == "simpo":
        z = section.beta * (c / n_c - r / n_r) - section.gamma
    elif section.length_normalized:
        z = section.beta * ((c - ref_c) / n_c - (r - ref_r) / n_r)
    else:
        z = section.beta * ((c - ref_c) - (r - ref_r))
    if section.name == "ipo":
        loss = (z / section.beta - 1 / (2 * section.beta)) ** 2
    else:
        e = section.label_smoothing
        loss = -(1 - e) * torch.log(1 / (1 + (-z).exp())) - e * torch.log(1 / (1 + z.exp()))
    return loss - section.sft_weight * c / n_c


def written_kto(section, sign, logp, reference):
    ratio = logp - reference
    if sign > 0:
        return section.desirable_weight * (1 - torch.sigmoid(section.beta * (ratio - KL)))
    return section.undesirable_weight * (1 - torch.sigmoid(section.beta * (KL - ratio)))


def ready(small_model, randomise_adapters, dtype, mode="none"):
    model = small_model(dtype=dtype)
    randomise_adapters(model, scale=0.2)
    set_attention(model)
    set_checkpointing(model, mode)
    return model.train()


def reference_of(row):
    """Return made-up log-probabilities of a reference, one for each token."""
    draw = np.random.default_rng(len(row["input_ids"]))
    return (-5 + draw.random(len(row["input_ids"]))).astype(np.float32)


def truth(model, section, samples, references):
    """Return the summed loss, with a graph."""
    total, at = 0.0, 0
    for weight, documents in samples:
        sides = {}
        for sign, (ids, weights, _) in documents:
            logits = model(input_ids=torch.as_tensor(ids)[None], use_cache=False).logits[0, :-1]
            each = logits.log_softmax(-1).gather(1, torch.as_tensor(ids)[1:, None])[:, 0]
            counted = torch.as_tensor(weights[1:] != 0)
            known = torch.as_tensor(references[at : at + len(ids)])[1:].double()
            at += len(ids)
            old = sides.get(sign, (0.0, 0.0, 0))
            new = (each[counted].sum(), known[counted].sum(), int(counted.sum()))
            sides[sign] = tuple(a + b for a, b in zip(old, new, strict=True))
        if section.name == "kto":
            ((sign, (logp, reference, _)),) = sides.items()
            total = total + weight * written_kto(section, sign, logp, reference)
        else:
            total = total + weight * written(section, sides[1], sides[-1])
    return total


def gradients(model):
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def batch_of(rows):
    batch = PreferenceCollator(0)(rows)
    for name in BATCH_ONLY:
        batch.pop(name, None)
    return batch


@pytest.mark.parametrize("name, mode", [*((name, "none") for name in SECTIONS), ("dpo", "full")])
def test_loss_and_gradients_are_those_of_the_written_formula(
    small_model, randomise_adapters, pair_samples, labelled_samples, packed_row, name, mode
):
    section = section_of(name)
    samples = labelled_samples if section.name == "kto" else pair_samples
    rows = [packed_row(samples[:3]), packed_row(samples[3:])]
    has_reference = hasattr(section, "reference")
    for row in rows:
        row["reference"] = reference_of(row) * has_reference
    exact = ready(small_model, randomise_adapters, torch.float64)
    references = np.concatenate([row["reference"] for row in rows])
    expected = truth(exact, section, samples, references)
    expected.backward()
    model = ready(small_model, randomise_adapters, torch.float32, mode)
    kl = torch.tensor(KL, dtype=torch.float64)
    outputs = PreferenceLoss(section, kl)(model, batch_of(rows))
    outputs.loss_sum.backward()
    assert expected != 0 and gradients(exact).norm() > 1e-3
    assert relative_rms(outputs.loss_sum, expected) <= FP32
    assert relative_rms(gradients(model), gradients(exact)) <= FP32
    with torch.no_grad():
        again = PreferenceLoss(section, kl)(model, batch_of(rows)).loss_sum
    assert relative_rms(again, expected) <= FP32


def test_answers_are_summed_over_their_documents_and_no_context(pair_samples, packed_row):
    """Every token's loss is its place in the batch: sums tell which places were taken."""
    rows = [packed_row(pair_samples[:3]), packed_row(pair_samples[3:])]
    batch = batch_of(rows)
    _, mine = take(batch)
    places = torch.arange(batch["input_ids"].numel(), dtype=torch.float32)
    answers = answers_of(places.view(batch["input_ids"].shape), mine)
    expected, tokens, at = [], [], 0
    width = batch["input_ids"].shape[1]
    for number, row in enumerate(rows):
        at, found = number * width, {}
        starts = [i for i, p in enumerate(row["position_ids"]) if p == 0] + [row["length"]]
        owners = zip(row["samples"], row["branches"], strict=True)
        for document, owner in enumerate(owners):
            for place in range(starts[document] + 1, starts[document + 1]):
                if row["loss_weights"][place]:
                    found.setdefault(owner, []).append(at + place - 1)
        expected += [-float(sum(found[key])) for key in found]
        tokens += [len(found[key]) for key in found]
    assert answers.logps.tolist() == expected
    assert answers.tokens.tolist() == tokens
    assert mine["sample_weights"].tolist() == [1, 0.5, 1, 2]


def test_a_filler_trains_nothing(small_model, randomise_adapters, pair_samples, packed_row):
    row = packed_row(pair_samples)
    filler = {
        name: row[name][:1] for name in ("input_ids", "loss_weights", "channels", "position_ids")
    }
    model = ready(small_model, randomise_adapters, torch.float32)
    outputs = PreferenceLoss(section_of("dpo"))(model, batch_of([{**filler, "filler": True}]))
    outputs.loss_sum.backward()
    assert outputs.loss_sum == 0 and gradients(model).abs().max() == 0
