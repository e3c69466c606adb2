"""method grpo: settings that an episode has no use for, and what cannot be played."""

import pytest

GRPO = "method.name=grpo"
# What contradicts, what is said of it, and the overrides that follow the advice.
REFUSED = [
    (
        "method.max_resampling=2",
        "with method.dynamic_sampling false",
        ["method.dynamic_sampling=true"],
    ),
    ("method.overlong_buffer=9", "with method.overlong masked", ["method.overlong=shaped"]),
    ("method.reference=base", "with method.kl_weight 0.0", ["method.kl_weight=0.1"]),
    ("method.clip_high=0.28", "in the first one no ratio differs from 1", ["method.updates=2"]),
    ("method.clip_low=0.1", "in the first one no ratio differs from 1", ["method.updates=2"]),
    ("method.objective=cispo", "in the first one no ratio differs from 1", ["method.updates=2"]),
    ("method.max_new_tokens=4096", "prompt, answers and results", ["data.max_length=8192"]),
    ("data.packing=true", "episodes always share rows", ["data.packing=false"]),
    ("data.turns=last", "all that the model draws is trained", ["data.turns=all"]),
    ("data.curriculum=reasoning_effort", "an order drawn by the seed", ["data.curriculum=none"]),
    ("data.too_long=truncate", "a prompt is asked whole", ["data.too_long=drop"]),
    (
        "data.channel_weights.analysis=0",
        "weighs what its episode earned",
        ["data.channel_weights.analysis=1"],
    ),
    (
        "train.gradient_accumulation_steps=4",
        "as many micro-batches as its episodes fill",
        ["train.gradient_accumulation_steps=1", "method.prompts_per_step=32"],
    ),
    (
        "train.auto_find_batch_size=true",
        "no rows to try a step with",
        ["train.auto_find_batch_size=false"],
    ),
    ("lora.experts={share: 0.5}", "by the answers of the data", ["lora.experts=all"]),
]  # fmt: skip


@pytest.mark.parametrize(("override", "said", "followed"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_nothing_would_use_is_refused_and_the_advice_is_true(
    mistakes, load, sound, override, said, followed
):
    (line,) = mistakes(sound, GRPO, override)
    assert said in line
    setting = override.partition("=")[0]
    kept = [one for one in followed if one.partition("=")[0] != setting]
    load(sound, GRPO, *([override] if kept == followed else []), *followed)


def test_an_importance_cap_wants_importance_weights(mistakes, load, sound):
    (line,) = mistakes(sound, GRPO, "method.importance=none", "method.importance_cap=3")
    assert "3.0 with method.importance none" in line
    load(sound, GRPO, "method.importance=mask", "method.importance_cap=3")


def test_cispo_has_no_lower_bound(mistakes, load, sound):
    cispo = (GRPO, "method.updates=2", "method.objective=cispo")
    (line,) = mistakes(sound, *cispo, "method.clip_low=0.1")
    assert "cispo bounds the ratio above alone" in line
    load(sound, *cispo, "method.clip_high=4")


def test_a_buffer_is_no_longer_than_an_answer(mistakes, sound):
    (line,) = mistakes(
        sound,
        GRPO,
        "method.overlong=shaped",
        "method.max_new_tokens=64",
        "method.overlong_buffer=65",
    )
    assert "as many tokens as an answer may have, or fewer" in line


@pytest.mark.parametrize("key", ["strategy=fsdp2", "context_parallel=2"])
def test_processes_that_share_a_model_or_rows_are_refused(mistakes, sound, key):
    (line,) = mistakes(sound, GRPO, "distributed.num_processes=2", f"distributed.{key}")
    assert "each process plays episodes of its own" in line


def test_the_best_is_chosen_by_rewards(mistakes, load, sound):
    held = ("data.eval=b.jsonl", "train.eval_steps=2")
    load(sound, GRPO, *held, "train.keep_best=eval_reward")
    load(
        sound,
        GRPO,
        *held,
        "method.rewards={answer: 1, calls: 0.1}",
        "train.keep_best=eval_reward_calls",
    )
    (line,) = mistakes(sound, GRPO, *held, "train.keep_best=eval_loss")
    assert "eval_reward, eval_reward_answer, eval_episode_tokens" in line
