"""TRL's own losses on the same token ids: their code computes, from log-probabilities of ours."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gptoss_kernels.testing import relative_rms
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from gptoss_tune.model.attention import set_attention
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.train.data.collator import BATCH_ONLY
from gptoss_tune.train.preference.collator import PreferenceCollator
from gptoss_tune.train.preference.loss import PreferenceLoss

FP32 = 1e-6
DPO_TYPES = {
    "sigmoid": ("dpo", {"beta": 0.3}),
    "sigmoid_norm": ("dpo", {"beta": 2.0, "length_normalized": True}),
    "ipo": ("ipo", {"beta": 0.3}),
}


@pytest.fixture
def model(small_model, randomise_adapters):
    made = small_model()
    randomise_adapters(made, scale=0.2)
    set_attention(made)
    return made.train()


def padded(sides, references):
    """Return TRL's batch of whole documents, one a row, and each row's reference."""
    longest = max(len(ids) for ids, _, _ in sides)
    ids = torch.zeros(len(sides), longest, dtype=torch.int64)
    counted = torch.zeros_like(ids)
    known = torch.zeros(len(sides))
    for row, ((own, weights, _), reference) in enumerate(zip(sides, references, strict=True)):
        ids[row, : len(own)] = torch.as_tensor(own)
        counted[row, : len(own)] = torch.as_tensor(weights != 0)
        known[row] = torch.as_tensor(reference)[torch.as_tensor(weights != 0)].sum()
    mask = (torch.arange(longest) < torch.tensor([[len(s[0])] for s in sides])).long()
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": counted}, known


def answering(model):
    """Return a model as TRL calls it: log-probabilities where there is a label, else 0."""

    def call(input_ids, attention_mask, labels, **_):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        targets = labels[:, 1:]
        every = logits[:, :-1].log_softmax(-1)
        chosen = every.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        log_probs = torch.where(targets >= 0, chosen, 0.0)
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )

    return call


def trainer_of(model, **settings):
    same = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    return SimpleNamespace(
        model=model,
        accelerator=same,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def pairs_of(samples):
    """Return pairs of one document a side, each with weight 1."""
    return [(1.0, documents) for _, documents in samples if len(documents) == 2]


def ours(model, method, settings, samples, pack, references, kl=None):
    section = METHODS[method].model_validate({"name": method, **settings})
    row = pack(samples)
    row["reference"] = np.concatenate(references)
    batch = PreferenceCollator(0)([row])
    for name in BATCH_ONLY:
        batch.pop(name, None)
    return PreferenceLoss(section, kl)(model, batch).loss_sum / len(samples)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(model, mine, theirs):
    assert relative_rms(mine, theirs) <= FP32
    assert relative_rms(gradients(model, mine), gradients(model, theirs)) <= FP32


def made_up(documents):
    draw = np.random.default_rng(8)
    return [(-4.6 + 0.2 * draw.random(len(ids))).astype(np.float32) for ids, _, _ in documents]


@pytest.mark.parametrize("kind", DPO_TYPES)
def test_dpo_and_ipo_are_trls(model, pair_samples, packed_row, kind):
    samples = pairs_of(pair_samples)
    documents = [document for _, pair in samples for _, document in pair]
    references = made_up(documents)
    method, settings = DPO_TYPES[kind]
    mine = ours(model, method, settings, samples, packed_row, references)
    batch, known = padded(documents[0::2] + documents[1::2], references[0::2] + references[1::2])
    half = len(samples)
    batch |= {"ref_chosen_logps": known[:half], "ref_rejected_logps": known[half:]}
    trainer = trainer_of(model, loss_types=[kind], loss_weights=[1.0], beta=settings["beta"])
    theirs = DPOTrainer._compute_loss(trainer, answering(model), batch, return_outputs=False)
    assert_same(model, mine, theirs)


def means(model, documents):
    """Return the mean log-probability of each document's counted tokens."""
    batch, _ = padded(documents, [np.zeros(len(ids), np.float32) for ids, _, _ in documents])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    found = answering(model)(batch["input_ids"], batch["attention_mask"], labels).log_probs
    return found.sum(1) / batch["completion_mask"].sum(1)


def test_simpo_is_trls(model, pair_samples, packed_row):
    samples = pairs_of(pair_samples)
    documents = [document for _, pair in samples for _, document in pair]
    settings = {"beta": 2.5, "gamma": 0.7, "label_smoothing": 0.1}
    mine = ours(model, "simpo", settings, samples, packed_row, made_up(documents))
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=settings["gamma"],
        beta=settings["beta"],
        label_smoothing=settings["label_smoothing"],
    )
    chosen, rejected = means(model, documents[0::2]), means(model, documents[1::2])
    assert_same(model, mine, CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean())


def test_orpo_is_trls(model, pair_samples, packed_row):
    """The odds ratio is theirs; the other half is the chosen answer's mean loss, by pair."""
    samples = pairs_of(pair_samples)
    documents = [document for _, pair in samples for _, document in pair]
    mine = ours(model, "orpo", {"beta": 0.4}, samples, packed_row, made_up(documents))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=0.4)
    chosen, rejected = means(model, documents[0::2]), means(model, documents[1::2])
    ratio = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
    assert_same(model, mine, (-chosen - ratio).mean())


def test_kto_is_trls(model, labelled_samples, packed_row):
    samples = [(1.0, documents) for _, documents in labelled_samples]
    documents = [document for _, ((_, document),) in samples]
    labels = torch.tensor([sign > 0 for _, ((sign, _),) in samples])
    references = made_up(documents)
    batch, known = padded(documents, references)
    # Their KL term is that of the mismatched answers in the batch: here the answers themselves.
    batch |= {"label": labels, "ref_logps": known, "ref_KL_logps": known - 2.0}
    batch |= {f"KL_{name}": batch[name] for name in ("input_ids", "attention_mask")}
    batch["KL_completion_mask"] = batch["completion_mask"]
    settings = {"beta": 0.2, "desirable_weight": 1.4, "undesirable_weight": 0.9}
    trainer = trainer_of(model, loss_type="kto", calculate_KL=True, **settings)
    trainer._compute_kl_logps = lambda m, b: KTOTrainer._compute_kl_logps(trainer, m, b)
    theirs = KTOTrainer._compute_loss(trainer, answering(model), batch, return_outputs=False)
    kl = torch.tensor(trainer._metrics["train"]["kl"][0], dtype=torch.float64)
    assert kl > 0.1
    mine = ours(model, "kto", settings, samples, packed_row, references, kl)
    assert_same(model, mine, theirs)
