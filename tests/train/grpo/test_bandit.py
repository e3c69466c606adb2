"""A bandit whose optimum is known: a softmax policy over 8 words goes where the formulas say.

One prompt, an answer of one word, a reward for each word. The head alone is trained, so the logits
may become anything and the policy is tabular. Answers that say the same word are one row, with the
mean of their advantages and the share of them as its weight: the step is that of all of them.
"""

import pytest
import torch
from transformers import GptOssConfig

from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.train.grpo.advantages import group_advantages, token_weights
from gptoss_tune.train.grpo.loss import GrpoLoss

ARMS = 8
REWARDS = torch.tensor([0.1, 0.0, 0.9, 0.3, 1.0, 0.2, 0.5, 0.7])
BEST = 4


@pytest.fixture
def policy():
    """Return a model of 8 words that starts away from uniform, its head alone trained."""
    torch.manual_seed(1)
    config = GptOssConfig(
        num_hidden_layers=1,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=ARMS,
        hidden_size=8,
        intermediate_size=8,
        head_dim=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_cache=False,
        pad_token_id=0,
    )
    model = GptOssForTuning._from_config(config, experts_implementation="eager")
    model.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        model.model.norm.weight.fill_(1.0)
    model.lm_head.weight.requires_grad_()
    return model.train()


def every_word(weights, advantages, **columns):
    """Return a batch of a row for each word: a prompt of one token, and the word."""
    ids = torch.stack((torch.zeros(ARMS, dtype=torch.int64), torch.arange(ARMS)), 1)
    labels = torch.stack((torch.arange(ARMS), torch.full((ARMS,), -100)), 1)

    def first(values):
        return torch.stack((values.float(), torch.zeros(ARMS)), 1)

    return {
        "input_ids": ids,
        "shift_labels": labels,
        "loss_weights": first(weights),
        "advantages": first(advantages),
        **{name: first(values) for name, values in columns.items()},
    }


@torch.no_grad()
def final_state(model):
    """Return what the head reads after the prompt: always the same, as nothing else is trained."""
    return model.model(input_ids=torch.zeros(1, 1, dtype=torch.int64)).last_hidden_state[0, 0]


@torch.no_grad()
def logps_of(model, state):
    return (model.lm_head.weight @ state).log_softmax(-1)


def sampled(logps, section, groups, generator):
    """Return weights and advantages of the words that ``groups`` groups draw."""
    episodes = groups * section.group_size
    words = torch.multinomial(logps.exp(), episodes, replacement=True, generator=generator)
    rewards = REWARDS[words].view(groups, section.group_size).numpy()
    found = group_advantages(rewards, scale_by_std=section.scale_by_std)
    advantages = torch.from_numpy(found).flatten()
    share = token_weights([1] * episodes, section.average, longest=1)
    weights = torch.zeros(ARMS, dtype=torch.float64).index_add_(0, words, torch.from_numpy(share))
    drawn = torch.bincount(words, minlength=ARMS)
    mean = torch.zeros(ARMS, dtype=torch.float64).index_add_(0, words, advantages) / drawn.clamp(1)
    return weights, mean


def trained(model, section, steps, groups, rate, **columns):
    """Train on policy; return the mean of the policy's probabilities over the last quarter."""
    optimizer = torch.optim.Adam([model.lm_head.weight], lr=rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    state, seen = final_state(model), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        logps = logps_of(model, state)
        seen.append(logps.exp())
        weights, advantages = sampled(logps, section, groups, generator)
        batch = every_word(weights, advantages, sampler_logps=logps, **columns)
        GrpoLoss(section)(model, batch).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(seen[-steps // 4 :]).mean(0)


@pytest.mark.parametrize(
    "settings",
    [{}, {"scale_by_std": False, "average": "constant"}, {"objective": "cispo"}],
    ids=["grpo", "dr grpo", "cispo"],
)
def test_the_best_word_is_found(policy, settings):
    section = GrpoSection.model_validate({"name": "grpo", "group_size": 8, **settings})
    before = logps_of(policy, final_state(policy)).exp()
    after = trained(policy, section, steps=80, groups=8, rate=0.15)
    assert before[BEST] < 0.3
    assert after[BEST] > 0.95


def test_with_kl_the_optimum_is_the_reference_times_exp_of_the_reward(policy):
    """pi ~ ref exp(r / beta), with the share 1 - 1/n of r: a group's mean has the answer in it."""
    n, beta = 4, 0.4
    section = GrpoSection.model_validate(
        {"name": "grpo", "group_size": n, "scale_by_std": False, "kl_weight": beta}
    )
    reference = logps_of(policy, final_state(policy))
    optimum = (reference + (1 - 1 / n) * REWARDS / beta).softmax(-1)
    found = trained(policy, section, 120, 1024, rate=0.1, reference_logps=reference)
    assert (optimum - reference.exp()).abs().max() > 0.1
    # Measured 6e-4; the gradient of k3 alone, that of KL(ref || pi), ends elsewhere.
    assert (found - optimum).abs().max() < 3e-3
