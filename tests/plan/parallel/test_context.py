"""Rows shared by several GPUs: figures worked out by hand, and the ways out of a plan."""

from dataclasses import replace

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.plan.architecture import RELEASED
from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.memory import model_saved, moments
from gptoss_tune.plan.parallel.context import shared_rows
from gptoss_tune.plan.plan import plan
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.recipe import load_recipe
from gptoss_tune.shipped import shipped

H100 = card("h100-80gb")
LONG = shipped("recipes") / "gpt-oss-120b" / "qlora-128k-8x80gb.yaml"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "model: {name_or_path: openai/gpt-oss-20b}\ndata: {train: a.jsonl, max_length: 8192}\n"
        "train: {output_dir: r, max_steps: 10, gradient_accumulation_steps: 2}\n"
    )
    return lambda *overrides: load_recipe(path, overrides)


def setup(recipe, processes=8, each=4, strategy="fsdp2"):
    sections = (recipe.model, recipe.lora, recipe.method, recipe.data, recipe.train)
    base = RELEASED[recipe.model.name_or_path]
    return TrainingSetup(base, *sections, processes, strategy, each)


def test_tokens_of_a_gpu_and_of_a_step(recipe):
    made = setup(recipe("train.per_device_train_batch_size=3"))
    assert made.row_tokens == 3 * 8192 and made.tokens == 3 * 8192 // 4
    assert made.step_tokens == 3 * 8192 * 2 * (8 // 4)


def test_saved_activations_are_those_of_a_part_of_the_row(recipe):
    whole, part = setup(recipe(), 4, 1), setup(recipe(), 4, 4)
    assert model_saved(whole).bytes(whole.tokens) > 3.9 * model_saved(part).bytes(part.tokens)
    alone = setup(recipe("data.max_length=2048"), 4, 1)
    assert model_saved(part) == model_saved(alone) and part.tokens == alone.tokens
    assert moments(part).loss == moments(alone).loss


def test_bytes_of_the_whole_row_in_one_full_layer(recipe):
    """K and V: 8 heads x 64 x 2 = 1,024 values a token, 2 KB in bf16."""
    found = shared_rows(setup(recipe("data.max_length=131072")))
    assert found.fetched == 131072 * 2048
    # What is fetched, a copy that a chunk sees, the copy's gradients, and the sums in fp32.
    assert found.attention == 131072 * (3 * 2048 + 4096)
    assert found.row_tokens == 32768 and found.gpus == 4
    assert shared_rows(setup(recipe(), 8, 1)) is None


def test_attention_of_a_whole_row_counts_where_it_is_the_largest(recipe):
    """As many tokens on a GPU as in rows of its own; a row over 32 GPUs is seen, over 2 it is not.

    Attention goes backward when the decoded experts have gone.
    """
    mode = "train.activation_checkpointing=offload"
    long = recipe("data.max_length=131072", mode)
    few, many = setup(long, 32, 2), setup(long, 32, 32)
    assert moments(few).rows == moments(setup(recipe("data.max_length=65536", mode), 32, 1)).rows
    alone = moments(setup(recipe("data.max_length=4096", mode), 32, 1))
    assert moments(many).rows > alone.rows
    assert moments(many).rows + moments(many).scratch > 0.9 * shared_rows(many).attention


def test_bytes_that_come_to_a_gpu(recipe):
    """12 full layers take three quarters of the row in, twice and once more as fp32 sums."""
    asked = ("train.activation_checkpointing=selective", "data.max_length=8192")
    found = shared_rows(setup(recipe(*asked)))
    full = 1024 * 8192 * 3 // 4 * (2 * 2 + 4)
    window = 1024 * (8 * 127) * 3 // 4 * (2 * 2 + 4)
    assert found.received == 2 * 12 * (full + window)  # two micro-batches
    again = shared_rows(setup(recipe("train.activation_checkpointing=full")))
    assert again.received > found.received


def test_more_gpus_a_row_where_advice_would_cut_it(recipe):
    made = plan(recipe("data.max_length=131072"), replace(H100, memory_gib=16.0))
    assert not made.fits and any("data.max_length=" in w for w in made.overrides_that_fit)
    way = made.elsewhere[-1]
    assert "distributed.context_parallel=" in " ".join(way.overrides)
    assert not any(word.startswith("data.max_length") for word in way.overrides)
    there = plan(recipe("data.max_length=131072", *way.overrides), made.card)
    assert there.fits and there.memory.peak == way.peak
    assert there.recipe.distributed.num_processes == way.gpus
    pairs = recipe("data.max_length=131072", "method.name=dpo")
    assert plan(pairs, made.card).elsewhere == [], "a pair lies on one GPU"


def test_groups_that_are_not_whole_are_refused_and_one_gpu_shares_nothing(recipe):
    asked = recipe("distributed.num_processes=4", "distributed.context_parallel=4")
    assert plan(asked, H100).shared.gpus == 4
    assert plan(asked, H100, gpus=1).shared is None
    with pytest.raises(RecipeError, match=r"6 GPUs do not make whole groups .* give --gpus 8"):
        plan(asked, H100, gpus=6)


def test_the_long_recipe_of_120b_fits_cards_of_80_gb():
    made = plan(load_recipe(LONG), H100)
    assert made.fits and made.shared.row_tokens == 32768
    assert made.memory.peak / 2**30 == pytest.approx(32.3, abs=0.1)
    assert made.as_json()["shared_rows"]["received"] == made.shared.received
