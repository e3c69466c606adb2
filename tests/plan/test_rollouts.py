"""What playing episodes holds, takes and writes: figures worked out by hand, and a real cache."""

import json

import pytest
import torch
from transformers import DynamicCache

from gptoss_tune.errors import RecipeError
from gptoss_tune.plan.architecture import RELEASED, Architecture
from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.methods import METHODS, added
from gptoss_tune.plan.plan import plan
from gptoss_tune.plan.rollout.phase import (
    PAGE_TOKENS,
    attention_bytes,
    cache_after_reading,
    cache_bytes,
    paged_cache_bytes,
)
from gptoss_tune.recipe import load_recipe

H100 = card("h100-80gb")
SMALL, LARGE = RELEASED["openai/gpt-oss-20b"], RELEASED["openai/gpt-oss-120b"]
SERVED = ["method.sampler=server", "method.server_url=http://gpu:8000/v1"]
SERVED += ["method.server_folder=shared", "lora.merge_aware=true"]


@pytest.fixture
def recipe(tmp_path, sound):
    """Return a function that loads a recipe of 64 episodes a step, 400 bytes a prompt."""
    row = {"prompt": "q" * 300, "answer": "7"}
    line = json.dumps(row)
    rows = tmp_path / "prompts.jsonl"
    rows.write_text((line + " " * (399 - len(line)) + "\n") * 40)
    path = tmp_path / "a.yaml"
    path.write_text(sound.replace("a.jsonl", str(rows)))

    def load(*overrides, name="grpo"):
        return load_recipe(path, [f"method.name={name}", *overrides])

    return load


def test_the_cache_of_the_released_models():
    """A layer keeps 2 x 8 heads x 64 values of 2 bytes a token: 2,048; half of them a window."""
    assert cache_bytes(SMALL, 2, 4096, 16) == 16 * 2048 * (12 * 4096 + 12 * 128) == 1_660_944_384
    assert cache_bytes(LARGE, 2, 131_072, 1) == 2048 * (18 * 131_072 + 18 * 128)
    assert cache_bytes(SMALL, 2, 100, 1) == 2048 * 24 * 100, "shorter than the window"
    assert cache_after_reading(SMALL, 2, 3072, 16) == 16 * 2048 * 24 * 3072 == 2_415_919_104
    # In pages of 128 tokens of all layers, and four more, as the sampler asks for them.
    from gptoss_tune.rollout.batched import planner

    assert PAGE_TOKENS == planner.PAGE_TOKENS
    assert paged_cache_bytes(SMALL, 2, 4096, 16) == (16 * 4096 + 512) * 24 * 2048
    assert paged_cache_bytes(SMALL, 2, 4097, 1) == (4224 + 512) * 24 * 2048


def test_attention_at_work_while_tokens_are_drawn(recipe):
    """8 x 64 keys of a token in fp32, 64 scores and their softmax; from pages also 4 x in bf16."""
    assert attention_bytes(SMALL, 2, 4096, 16, pages=False) == 16 * 4096 * (512 + 128) * 4
    assert attention_bytes(SMALL, 2, 4096, 16, pages=True) == 16 * 4096 * (2560 + 4 * 1024)
    logits = 2 * 16 * 201_088 * 4
    # A chunk of a phase holds a quarter of its groups, so that many prompts play 64 together.
    together = ("method.rollout_batch=64", "method.prompts_per_step=32")
    kinds = plan(recipe("method.sampler=batched", *together), H100).memory.kinds
    assert kinds["layer at work"] == 64 * 4096 * (2560 + 4096) + 4 * logits
    # What is read before an answer is little then.
    kinds = plan(recipe("method.max_new_tokens=4000", *together), H100).memory.kinds
    assert kinds["KV cache"] == cache_bytes(SMALL, 2, 4096, 64)
    assert kinds["layer at work"] == 64 * 4096 * 640 * 4 + 4 * logits


def test_the_cache_is_as_large_as_the_one_that_a_model_fills(small_model):
    """Counted as storage: what a windowed layer keeps is a view into one token more."""
    model = small_model(adapted=False).eval()
    config = model.config
    sizes = Architecture(
        *(tuple(config.layer_types), config.hidden_size, config.intermediate_size),
        *(config.num_local_experts, config.num_experts_per_tok, config.num_attention_heads),
        *(config.num_key_value_heads, config.head_dim, config.vocab_size, config.sliding_window),
        packed=False,
    )
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}

    def held(cache):
        both = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        return sum(t.untyped_storage().nbytes() for t in both)

    for prompt, drawn in ((20, 1), (20, 7), (3, 2)):
        cache, rows = DynamicCache(config=config), 3
        with torch.no_grad():
            ids = torch.randint(0, 97, (rows, prompt))
            model(ids, past_key_values=cache, use_cache=True)
            assert held(cache) == cache_after_reading(sizes, 4, prompt, rows)
            for _ in range(drawn):
                model(ids[:, :1], past_key_values=cache, use_cache=True)
        assert held(cache) == cache_bytes(sizes, 4, prompt + drawn, rows)


def test_the_peak_is_the_larger_one_of_playing_and_of_a_step(recipe):
    sft = plan(recipe(name="sft"), H100).memory
    made = plan(recipe(), H100)
    playing, step = made.rollouts.peak, made.rollouts.training_peak
    assert made.memory.peak == playing > step
    assert made.memory.kinds["KV cache"] == 2_415_919_104
    assert "gradients" not in made.memory.kinds and "saved activations" not in made.memory.kinds
    assert made.memory.resident == sft.resident, "one model, and no second copy of it"
    # Beside the activations of a step: what GRPO keeps of each token, the experts' choices with it.
    few = plan(recipe("method.rollout_batch=1"), H100)
    assert few.memory.peak == few.rollouts.training_peak == step > few.rollouts.peak
    assert few.memory.kinds["grpo"] == (12 + 24 * 4) * 4096
    assert few.memory.peak - sft.peak == pytest.approx(1.03 * 108 * 4096, abs=2)
    served = plan(recipe(*SERVED), H100)
    assert served.rollouts.peak is None and "KV cache" not in served.memory.kinds
    assert served.rollouts.seconds is None and served.hours is None, "another machine's"


@pytest.mark.parametrize(
    ("overrides", "passes", "each"),
    [
        ([], 0, 12 + 96),
        (["method.replay_routing=false"], 0, 12),
        (["method.kl_weight=0.1"], 1, 16 + 96),
        (["method.updates=4"], 1, 16 + 96),
        (["method.updates=4", "method.kl_weight=0.1"], 2, 20 + 96),
    ],
)
def test_passes_and_bytes_of_a_step(recipe, overrides, passes, each):
    """A reference, and the ratio's old weights where there are several steps, cost a pass each.

    Of every step: each of a phase trains on rows of its own.
    """
    made, usual = recipe(*overrides), plan(recipe(), H100).work.flops
    found = added(made.method, made.lora, choices=96)
    assert (found.forward_passes, found.bytes_per_token) == (passes, each)
    assert plan(made, H100).work.flops.added == pytest.approx(passes * usual.forward)
    assert METHODS["grpo"].head_passes == 0, "weights are known in the pass that makes gradients"


def test_time_of_the_episodes(recipe):
    """64 episodes in 4 batches of 16, 1,024 tokens each; a token reads all weights twice.

    The experts are packed (17 bytes for 32 values), decoded to bf16, written and read; of the two
    tables of the vocabulary the head is read; and the cache of 16 prompts of 100 tokens and half an
    answer.
    """
    made = plan(recipe(), H100, efficiency=0.5)
    experts = 24 * 32 * (2880 * 5760 + 2880 * 2880)
    weights = made.memory.resident - made.memory.kinds["adapters"] - 201_088 * 2880 * 2
    token = weights + 2 * 2 * experts + cache_bytes(SMALL, 2, 100 + 512, 16)
    drawing = 4 * 1024 * token / (3.35e12 * 0.5)
    reading = 64 * 100 * made.work.flops.forward / (989e12 * 0.5)
    assert made.rollouts.seconds == pytest.approx(drawing + reading, rel=1e-6)
    assert made.rollouts.prompt_tokens == 100
    assert made.rollouts.per_second == pytest.approx(64 / made.rollouts.seconds)
    assert made.rollouts.hours == pytest.approx(10 * made.rollouts.seconds / 3600)
    assert made.hours == pytest.approx(made.work.hours + made.rollouts.hours)
    assert made.work.tokens == 10 * 64 * (100 + 1024)
    # Four chunks of two prompts are dealt to the GPUs: of three, one plays two.
    halves = plan(recipe(), H100, gpus=2, efficiency=0.5).rollouts
    assert halves.phase.episodes == 32 and halves.seconds == pytest.approx(
        made.rollouts.seconds / 2
    )
    assert plan(recipe(), H100, gpus=3).rollouts.phase.episodes == 32
    assert plan(recipe(), H100, gpus=4).rollouts.phase.episodes == 16
    twice = plan(recipe("method.updates=2"), H100, efficiency=0.5)
    assert twice.rollouts.episodes == 128, "a phase plays for two steps, each with its prompts"
    assert twice.rollouts.hours == pytest.approx(made.rollouts.hours)
    assert twice.work.tokens == made.work.tokens
    assert twice.rollouts.waiting == 2 * made.rollouts.waiting
    assert twice.rollouts.text == made.rollouts.text


@pytest.mark.parametrize(
    ("overrides", "gpus", "each"),
    [
        # episodes, chunks, at a time, at most so (with held-out prompts)
        ([], 1, (128, 4, 32, 32)),
        (["data.eval_fraction=0.4"], 1, (128, 4, 32, 64)),
        ([], 2, (64, 2, 32, 32)),
        ([], 8, (16, 1, 16, 16)),
        (["method.updates=2"], 1, (256, 4, 64, 64)),
        (["method.rollout_batch=6"], 1, (128, 6, 6, 6)),
        (["method.rollout_batch=6", "method.sampler=own"], 1, (128, 16, 6, 6)),
    ],
)
def test_a_gpu_plays_its_chunks_one_after_the_other(recipe, overrides, gpus, each):
    usual = {"prompts_per_step": "16", "rollout_batch": "64", "sampler": "batched"}
    several = {f"method.{name}": value for name, value in usual.items()}
    several |= dict(word.split("=") for word in overrides)
    words = [f"{name}={value}" for name, value in several.items()]
    phase = plan(recipe(*words), H100, gpus=gpus).rollouts.phase
    assert each == (phase.episodes, phase.chunks, phase.at_a_time, phase.most_at_a_time)


def test_steps_of_epochs_and_files_of_episodes(recipe):
    """40 prompts are five steps of 8; a held-out one is an episode at its longest."""
    epochs = ["train.max_steps=null", "train.num_train_epochs=3"]
    made = plan(recipe(*epochs), H100)
    assert made.work.steps == 15
    assert plan(recipe(*epochs, "method.updates=2"), H100).work.steps == 15
    assert plan(recipe(*epochs, "data.eval_fraction=0.2"), H100).work.steps == 12
    tokens = 64 * (100 + 1024)
    assert made.rollouts.waiting == tokens * (4 + 4 + 1 + 1 + 96)
    assert made.rollouts.text == 15 * (tokens * 4 + 64 * 600)
    held_out = plan(recipe("data.eval_fraction=0.4"), H100).evaluation.held_out
    assert held_out.seconds == pytest.approx(plan(recipe(), H100).rollouts.seconds / 4, rel=0.01)
    unknown = plan(recipe(*epochs, "data.train=owner/prompts"), H100)
    assert unknown.work.tokens is None and unknown.rollouts.hours is None
    assert unknown.rollouts.prompt_tokens == 4096 - 1024


def test_fsdp2_is_neither_planned_nor_proposed(recipe):
    with pytest.raises(RecipeError, match="method grpo plays with a whole model"):
        plan(recipe(), H100, gpus=4, strategy="fsdp2")
    large = recipe("model.name_or_path=openai/gpt-oss-120b")
    ways = plan(large, card("4090")).elsewhere
    assert ways and not any("fsdp2" in word for way in ways for word in way.overrides)


def test_advice_plays_fewer_at_a_time_before_it_rounds_anything(recipe):
    many = "method.prompts_per_step=32"
    made = plan(recipe(many, "method.rollout_batch=64"), card("4090"))
    assert not made.fits and made.advice[-1].fits
    assert made.overrides_that_fit == ("method.rollout_batch=16",)
    fitting = plan(recipe(many, "method.rollout_batch=16"), card("4090"))
    assert fitting.fits and fitting.rollouts.phase.at_a_time == 16
    rows = plan(
        recipe("train.per_device_train_batch_size=8", "data.max_length=16384"), card("4090")
    )
    words = [word for entry in rows.advice for word in entry.overrides]
    assert "train.per_device_train_batch_size=1" in words
    assert not any("gradient_accumulation" in word for word in words), "episodes make the batches"


def test_the_command_says_both_halves_of_a_step(recipe, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from gptoss_tune.cli import app

    monkeypatch.chdir(tmp_path)
    recipe()  # writes a.yaml
    words = ["plan", "a.yaml", "method.name=grpo", "--gpu", "h100"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    said = "\n".join(lines)
    assert "sampling 23.56 GiB, a training step 19.09 GiB: one after the other" in said
    assert "sampled together: 16 episodes, each of 4,096 tokens at most" in said
    assert "rollouts: 64 episodes each step, by sampler own" in said
    assert "(estimated, not measured)" in said and "prompts of 100 tokens (row bytes / 4)" in said
    assert "96 bytes a token of experts to replay" in said
    served = CliRunner().invoke(app, [*words, *SERVED])
    assert "the server that samples has a memory of its own" in served.stdout
    body = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert body["rollouts"]["peak"] == body["memory_bytes"]["peak"]
    assert body["hours"] == pytest.approx(sum(body["hours_by_kind"].values()))
