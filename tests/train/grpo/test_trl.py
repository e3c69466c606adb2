"""TRL's own GRPO loss on the same ids and advantages: its code computes, from logits of our model.

Where the two differ on purpose nothing is compared: TRL's KL term has no importance weight.
"""

from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gptoss_kernels.testing import relative_rms
from trl import GRPOTrainer

from gptoss_tune.model.attention import set_attention
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.train.grpo.advantages import token_weights
from gptoss_tune.train.grpo.loss import GrpoLoss
from gptoss_tune.train.grpo.meter import GrpoMeter

FP32 = 3e-6
PROMPTS, ANSWERS = (4, 2, 6), (3, 8, 5)
ADVANTAGES = torch.tensor([1.3, -0.4, -0.2])
TRL = {
    "dapo": {"average": "token"},
    "grpo": {"average": "sequence"},
    "dr_grpo": {"average": "constant"},
    "cispo": {"average": "token", "objective": "cispo"},
}


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def model(made, small_model, randomise_adapters):
    if not made:
        made["model"] = small_model().train()
        randomise_adapters(made["model"], scale=0.2)
        set_attention(made["model"])
    made["model"].zero_grad()
    return made["model"]


def answering(model, temperature):
    """Return a model as TRL calls it: log-probabilities and entropies where there is a label."""

    def call(input_ids, attention_mask, labels, fused_lm_head):
        assert fused_lm_head
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        every = (logits[:, :-1] / temperature).log_softmax(-1)
        targets = labels[:, 1:]
        chosen = every.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        entropy = -(every.exp() * every).sum(-1)
        return SimpleNamespace(log_probs=torch.where(targets >= 0, chosen, 0.0), entropy=entropy)

    call.training = True
    return call


def trainer_of(answers, section, kind):
    alone = SimpleNamespace(
        autocast=nullcontext,
        num_processes=1,
        is_main_process=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    trainer = SimpleNamespace(
        model=answers,
        accelerator=alone,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=True, steps_per_generation=1),
        loss_type=kind,
        beta=section.kl_weight,
        epsilon_low=section.clip_low,
        epsilon_high=1 + section.clip_high if kind == "cispo" else section.clip_high,
        importance_sampling_level="token",
        max_completion_length=section.max_new_tokens,
        current_gradient_accumulation_steps=1,
        use_vllm=section.importance != "none",
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    trainer._get_per_token_logps_and_entropies = partial(
        GRPOTrainer._get_per_token_logps_and_entropies, trainer
    )
    return trainer


def drawn():
    """Return padded prompts and answers as TRL holds them, and the same rows as ours has them."""
    draw = np.random.default_rng(2)
    rows = [draw.integers(1, 97, p + a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    widest, longest = max(PROMPTS), max(ANSWERS)
    theirs = {
        "prompt_ids": torch.zeros(3, widest, dtype=torch.int64),
        "prompt_mask": torch.zeros(3, widest, dtype=torch.int64),
        "completion_ids": torch.zeros(3, longest, dtype=torch.int64),
        "completion_mask": torch.zeros(3, longest, dtype=torch.int64),
    }
    for n, (row, prompt, answer) in enumerate(zip(rows, PROMPTS, ANSWERS, strict=True)):
        theirs["prompt_ids"][n, -prompt:] = torch.as_tensor(row[:prompt])
        theirs["prompt_mask"][n, -prompt:] = 1
        theirs["completion_ids"][n, :answer] = torch.as_tensor(row[prompt:])
        theirs["completion_mask"][n, :answer] = 1
    return theirs, rows


def ours_of(section, rows, columns):
    """Return the batch: rows filled on the right, values where a token of the answer follows."""
    length = max(len(row) for row in rows)
    batch = {"input_ids": torch.zeros(3, length, dtype=torch.int64)}
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    batch["shift_labels"] = torch.full_like(batch["input_ids"], -100)
    names = ("loss_weights", "advantages", *columns)
    batch |= {name: torch.zeros(3, length) for name in names}
    weights = token_weights(ANSWERS, section.average, longest=section.max_new_tokens)
    for n, (row, prompt, answer) in enumerate(zip(rows, PROMPTS, ANSWERS, strict=True)):
        total, of = prompt + answer, slice(prompt - 1, prompt + answer - 1)
        batch["input_ids"][n, :total] = torch.as_tensor(row)
        batch["attention_mask"][n, :total] = 1
        batch["shift_labels"][n, : total - 1] = torch.as_tensor(row[1:])
        batch["loss_weights"][n, of] = float(weights[n])
        batch["advantages"][n, of] = ADVANTAGES[n]
        for name, values in columns.items():
            batch[name][n, of] = values[n, :answer]
    return batch


@pytest.mark.parametrize("kind", TRL)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"updates": 2, "temperature": 0.8, "clip_high": 0.28},
        {"updates": 2, "kl_weight": 0.3},
        {"updates": 2, "importance": "truncate", "importance_cap": 1.2},
    ],
    ids=["one update", "two updates, temperature", "KL", "importance"],
)
def test_the_loss_is_trls(model, kind, settings):
    section = GrpoSection.model_validate(
        {"name": "grpo", "max_new_tokens": 16, "importance": "none", **TRL[kind], **settings}
    )
    theirs, rows = drawn()
    trainer = trainer_of(answering(model, section.temperature), section, kind)
    ids = torch.cat((theirs["prompt_ids"], theirs["completion_ids"]), 1)
    mask = torch.cat((theirs["prompt_mask"], theirs["completion_mask"]), 1)
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, max(ANSWERS)
        )
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(3, *logps.shape, generator=generator) * 0.3
    near = dict(zip(("old_logps", "sampler_logps", "reference_logps"), logps + noise, strict=True))
    # What TRL computes of its sampler when it generates.
    importance = (near["old_logps"] - near["sampler_logps"]).exp()
    theirs |= {
        "advantages": ADVANTAGES,
        "num_items_in_batch": torch.tensor(float(sum(ANSWERS))),
        "importance_sampling_ratio": importance.clamp(max=section.importance_cap),
        "ref_per_token_logps": near["reference_logps"],
    }
    if section.updates > 1:
        theirs["old_per_token_logps"] = near["old_logps"]
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, theirs)
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()

    wanted = {"sampler_logps": True, "old_logps": section.updates > 1}
    wanted["reference_logps"] = section.kl_weight > 0
    columns = {name: values for name, values in near.items() if wanted[name]}
    outputs = GrpoLoss(section)(model, ours_of(section, rows, columns))
    outputs.loss_sum.backward()
    mine = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert gradient.norm() > 1e-4
    assert relative_rms(outputs.loss_sum, expected) <= FP32
    assert relative_rms(mine, gradient) <= FP32
    meter, said = GrpoMeter(torch.device("cpu"), reference=True), trainer._metrics["train"]
    meter.add(outputs.figures)
    assert meter.read()["entropy"] == pytest.approx(said["entropy"][0], rel=1e-5)
    if section.kl_weight and kind != "cispo":
        assert meter.read()["clipped_share"] == pytest.approx(said["clip_ratio/region_mean"][0])
