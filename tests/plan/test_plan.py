"""Plans: figures worked out by hand."""

import json

import pytest
from pydantic import ValidationError

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.plan.architecture import RELEASED, architecture_of
from gptoss_tune.plan.flops import flops_per_token
from gptoss_tune.plan.gpus import GPUS, card, smallest_with
from gptoss_tune.plan.memory import memory
from gptoss_tune.plan.methods import METHODS, Added
from gptoss_tune.plan.plan import plan
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.plan.weights import parameters
from gptoss_tune.recipe import load_recipe
from gptoss_tune.shipped import shipped

SMALL = RELEASED["openai/gpt-oss-20b"]
LARGE = RELEASED["openai/gpt-oss-120b"]
H100 = card("h100-80gb")


def small(recipe):
    """Return the setup of a recipe on one GPU, with the 20b's sizes."""
    return TrainingSetup(SMALL, recipe.model, recipe.lora, recipe.method, recipe.data, recipe.train)


def test_parameters_of_the_released_models(recipe):
    """As published: 20.9 and 116.8 billion."""
    assert parameters(SMALL) == 20_914_757_184
    assert parameters(LARGE) == 116_829_156_672


def test_trained_parameters_by_rank_and_layer(recipe):
    # gate_up: 32 experts x 16 x (2880 + 5760); down: 32 x 16 x (2880 + 2880);
    # q and o: 16 x (2880 + 4096); k and v: 16 x (2880 + 512).
    layer = 4_423_680 + 2_949_120 + 2 * 111_616 + 2 * 54_272
    whole = plan(recipe(), H100)
    assert whole.trained == 24 * layer == 184_909_824
    upper = plan(recipe("lora.layers=[20, 21, 22, 23]"), H100)
    assert upper.trained == 4 * layer
    named = plan(recipe("model.name_or_path=openai/gpt-oss-120b", "lora.expert_rank=4"), H100)
    parts = named.as_json()["parameters"]
    assert parts["trained"] == 277_364_736
    assert parts["trained_per_expert_rank"] == 36 * 128 * (2880 + 5760 + 2880 + 2880)


def test_bytes_of_the_base(recipe):
    """12.8 and 60.8 GiB in MXFP4, 39.0 and 217.6 GiB in bf16."""
    for name, packed, dense in (("20b", 12.8, 39.0), ("120b", 60.8, 217.6)):
        disk = plan(recipe(f"model.name_or_path=openai/gpt-oss-{name}"), H100).disk
        assert disk.merged_mxfp4 / 2**30 == pytest.approx(packed, abs=0.06)
        assert disk.merged_bf16 / 2**30 == pytest.approx(dense, abs=0.06)


def test_bytes_of_checkpoints(recipe):
    """Factors and two moments in fp32, or moments of a byte with two scales for each 256."""
    factors, small = 184_909_824, 2**16
    made = plan(recipe(), H100).disk
    assert made.adapter == 4 * factors
    assert made.checkpoints == 12 * factors + small, "a signal may ask for one"
    kept = plan(recipe("train.save_steps=5", "train.save_total_limit=3"), H100).disk
    assert kept.checkpoints == 4 * made.checkpoints
    # The best one is kept beside the newest, and every evaluation may make one.
    best = ("train.keep_best=eval_loss", "data.eval=b.jsonl", "train.eval_steps=2")
    kept = plan(recipe(*best, "train.save_steps=5", "train.save_total_limit=3"), H100).disk
    assert kept.checkpoints == 5 * made.checkpoints
    assert plan(recipe(*best), H100).disk.checkpoints == 4 * made.checkpoints
    halved = plan(recipe("train.optim=paged_adamw_8bit"), H100).disk.checkpoints
    assert halved == pytest.approx((4 + 2 + 8 / 256) * factors, rel=1e-3)


# GFLOP a token of gpt-oss-20b at rank 16, worked out apart from the code; from 16,384 tokens on
# full checkpointing keeps the full layers' attention, 6.4 GFLOP at 64k queries of 64.
@pytest.mark.parametrize(
    ("length", "none", "full"),
    [(4096, 16.1, 22.7), (16_384, 20.3, 28.1), (32_768, 26.0, 35.3), (131_072, 59.8, 78.8)],
)
def test_operations_of_a_token(recipe, length, none, full):
    def gflop(mode):
        settings = {"data.max_length": length, "train.activation_checkpointing": mode}
        return flops_per_token(small(recipe()).with_settings(settings)).total / 1e9

    kept = 12 * 4 * 4096 * length / 2 / 1e9 if length >= 16_384 else 0
    assert gflop("none") == pytest.approx(none, rel=0.005)
    # Nothing of a layer that is run again reads what down_proj returned: 2 x 4 x 2880 x 2880 x 24.
    assert gflop("full") == pytest.approx(full - kept - 1.593, rel=0.005)
    # The product of gate_up alone is computed again: 2 x 4 experts x 2880 x 5760 x 24 layers.
    assert gflop("selective") - gflop("none") == pytest.approx(3.185, abs=0.001)


# GiB for tokens in the micro-batch, modelled apart from the code: full, selective, none; selective
# and full are 0.7 GiB less at 16,384 since gate_up's gradient is written over it.
@pytest.mark.parametrize(("length", "gib"), [(4096, (19, 23, 27)), (16_384, (23.3, 36.3, 54))])
def test_peak_of_a_step(recipe, length, gib):
    for mode, expected in zip(("full", "selective", "none"), gib, strict=True):
        settings = {"data.max_length": length, "train.activation_checkpointing": mode}
        peak = memory(small(recipe()).with_settings(settings)).peak / 2**30
        assert peak == pytest.approx(expected, rel=0.05), mode


def test_memory_moves_as_the_settings_say(recipe):
    usual = memory(small(recipe()))
    for overrides, kind in (
        (["train.optim=adamw_8bit"], "optimizer"),
        (["train.activation_checkpointing=offload"], "saved activations"),
        (["model.linear_precision=nf4"], "attention"),
        (["model.embeddings=cpu"], "embeddings"),
        (["lora.expert_rank=4"], "adapters"),
        (["data.max_length=2048"], "saved activations"),
    ):
        other = memory(small(recipe(*overrides)))
        assert other.kinds[kind] < usual.kinds[kind], overrides
        assert other.peak < usual.peak, overrides
    assert memory(small(recipe("model.experts_precision=bf16"))).peak > usual.peak + 25 * 2**30
    offloaded = plan(recipe("train.activation_checkpointing=offload"), H100)
    assert offloaded.host_bytes == 24 * 4096 * 2880 * 2


def test_a_setup_is_changed_by_the_keys_of_its_recipe_and_no_others(recipe):
    setup = small(recipe("train.per_device_train_batch_size=4"))
    assert setup.tokens == 4 * 4096
    changed = setup.with_settings({"data.max_length": 2048, "lora.expert_rank": 4})
    assert changed.tokens == 4 * 2048 and {f.rank for f in changed.factors} == {16, 4}
    assert {f.rank for f in setup.factors} == {16}
    with pytest.raises(ValidationError):
        setup.with_settings({"data.max_length": 0})
    with pytest.raises(AttributeError):
        setup.with_settings({"guard.check_steps": 1})


def test_a_method_adds_passes_and_bytes(recipe, monkeypatch):
    usual = plan(recipe(), H100)
    added = Added(forward_passes=1, base_copies=1, bytes_per_token=4)
    monkeypatch.setitem(METHODS, "sft", added)
    more = plan(recipe(), H100)
    flops = usual.work.flops
    assert more.work.flops.total == flops.total + flops.forward
    assert more.as_json()["flops_per_token"]["added"] == flops.forward
    held = usual.memory.resident - usual.memory.kinds["adapters"]
    assert more.memory.kinds["sft"] == held + 4 * 4096
    assert more.memory.peak > usual.memory.peak + held


def test_layers_below_the_adapters_keep_nothing(recipe):
    top = plan(recipe("lora.layers=[23]", "train.activation_checkpointing=none"), H100)
    every = plan(recipe("train.activation_checkpointing=none"), H100)
    assert top.memory.kinds["saved activations"] < every.memory.kinds["saved activations"] / 20
    assert top.work.flops.backward < every.work.flops.backward / 5


def test_several_gpus(recipe):
    one, eight = plan(recipe(), H100), plan(recipe(), H100, gpus=8)
    assert eight.memory.kinds["gradient buckets"] == eight.memory.kinds["gradients"]
    assert eight.work.tokens == 8 * one.work.tokens
    assert eight.work.hours == pytest.approx(one.work.hours)
    large = recipe("model.name_or_path=openai/gpt-oss-120b", "model.experts_precision=bf16")
    alone = plan(large, H100, gpus=8)
    assert not alone.fits
    spread = plan(large, H100, gpus=8, strategy="fsdp2")
    assert spread.fits and spread.memory.peak < alone.memory.peak / 3
    said = large.with_settings({"distributed.num_processes": 8, "distributed.strategy": "fsdp2"})
    assert plan(said, H100).memory == spread.memory
    assert plan(said, H100, strategy="ddp").memory == alone.memory
    assert plan(said, H100, gpus=1).strategy == "ddp"


def test_the_120b_on_one_card_of_80_gb_takes_rank_8_and_not_16():
    """Base, factors, gradients and fp32 moments: 60.8 + 4 + 4 + 8 GiB at rank 16."""
    path = shipped("recipes") / "gpt-oss-120b" / "qlora-80gb.yaml"
    assert H100.memory_bytes / 2**30 == pytest.approx(79.1, abs=0.01)
    shipped_plan = plan(load_recipe(path), H100)
    assert shipped_plan.fits and load_recipe(path).lora.expert_rank <= 8
    asked = ("train.optim=adamw", "lora.expert_rank=16")
    made = plan(load_recipe(path, asked), H100)
    held = made.memory.resident + sum(made.memory.kinds[k] for k in ("gradients", "optimizer"))
    assert held / 2**30 == pytest.approx(76.8, abs=0.05)
    assert not made.fits
    half = plan(load_recipe(path, (asked[0], "lora.expert_rank=8")), H100)
    assert half.fits
    (named,) = made.advice
    followed = plan(load_recipe(path, (*named.overrides, asked[1])), H100)
    assert named.fits and followed.fits and followed.memory.peak == named.peak


def test_tokens_and_hours(recipe, tmp_path):
    made = plan(recipe("train.gradient_accumulation_steps=2"), H100, efficiency=0.5)
    assert made.work.tokens == 10 * 2 * 4096
    rate = 989e12 * 0.5 / made.work.flops.total
    assert made.work.tokens_per_second == pytest.approx(rate)
    assert made.work.hours == pytest.approx(made.work.tokens / rate / 3600)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * 4000)
    epochs = ["train.max_steps=null", "train.num_train_epochs=2", f"data.train={file}"]
    assert plan(recipe(*epochs), H100).work.tokens == 2000
    assert plan(recipe(*epochs, "data.eval_fraction=0.25"), H100).work.tokens == 1500
    assert plan(recipe(*epochs), H100, epoch_tokens=7_000_000).work.tokens == 14_000_000
    unread = plan(recipe(*epochs[:2], "data.train=owner/rows"), H100)
    assert unread.work.tokens is None and unread.work.hours is None


def test_evaluations_have_hours_of_their_own(recipe, tmp_path):
    """Worked out apart from the code: 20b, rank 16, an H100 at 0.5 of its rates."""
    plain = plan(recipe(), H100, efficiency=0.5)
    assert plain.evaluation.hours == 0.0 and plain.hours == plain.work.hours
    held_out = tmp_path / "eval.jsonl"
    held_out.write_bytes(b"x" * 4000)
    made = plan(recipe(f"data.eval={held_out}", "train.eval_steps=4"), H100, efficiency=0.5)
    rate = 989e12 * 0.5 / made.work.flops.forward
    assert made.evaluation.held_out.times == 3, "after 4, 8 and 10 steps"
    assert made.evaluation.held_out.seconds == pytest.approx(1000 / rate)
    assert made.hours == pytest.approx(made.work.hours + 3000 / rate / 3600)

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n\n' * 20)
    section = [
        f"evaluation.prompts={prompts}",
        "evaluation.reasoning_effort=[low, high]",
        "evaluation.max_new_tokens=100",
        "evaluation.eval_steps=4",
        f"evaluation.drift.references={prompts}",
    ]
    asked = plan(recipe(*section), H100, efficiency=0.5).evaluation
    # 24 layers x 32 experts x (2880 x 5760 + 2880 x 2880), packed in 17 bytes for 32 values, then
    # decoded: 2 bytes written and 2 read; attention, norms, router and head are 2.4 GB.
    experts = 24 * 32 * (2880 * 5760 + 2880 * 2880)
    token = (experts * (17 / 32 + 4) + 2.4e9) / (3.35e12 * 0.5)
    # 20 prompts at 2 efforts are 5 batches of 8; 16 references of 4,096 tokens go through twice.
    seconds = 5 * 100 * token + 2 * 16 * 4096 / rate
    assert asked.answers == 40
    assert asked.asked.times == 4, "before the first step, after 4, 8 and 10"
    assert asked.asked.seconds == pytest.approx(seconds, rel=0.01)
    assert asked.base.hours == 0
    compared = [*section, "evaluation.drift.reasoning=true", "evaluation.at_start=false"]
    late = plan(recipe(*compared), H100, efficiency=0.5).evaluation
    assert (late.asked.times, late.base.times) == (3, 1)
    assert late.base.seconds == pytest.approx(500 * token, rel=0.01)
    four = plan(recipe(*section), H100, gpus=4, efficiency=0.5).evaluation
    # 10 answers a card are 2 batches; 4 references a card.
    fourth = 2 * 100 * token + 2 * 4 * 4096 / rate
    assert four.asked.seconds == pytest.approx(fourth, rel=0.01)


def test_evaluations_of_unknown_number_or_size_are_not_guessed(recipe):
    epochs = ["train.max_steps=null", "train.num_train_epochs=1", "data.packing=false"]
    unread = plan(recipe(*epochs, "data.eval=owner/rows", "train.eval_steps=5"), H100)
    assert unread.evaluation.held_out.times is None and unread.evaluation.hours is None
    assert plan(recipe("data.eval=owner/rows"), H100).hours is None
    once = plan(recipe(*epochs, "evaluation.prompts=owner/rows", "evaluation.max_prompts=3"), H100)
    assert (once.evaluation.asked.times, once.evaluation.answers) == (2, 3)


def test_a_local_base(recipe, tmp_path):
    config = {
        "model_type": "gpt_oss",
        "layer_types": ["sliding_attention", "full_attention"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 100,
        "sliding_window": 8,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    found = architecture_of(str(tmp_path))
    assert (found.layers, found.intermediate, found.packed) == (2, 96, False)
    with pytest.raises(RecipeError, match="does not store its experts so"):
        plan(recipe(f"model.name_or_path={tmp_path}"), H100)
    for change, message in (
        ({"model_type": "llama"}, "not the configuration of a gpt-oss model"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_hidden_layers": 3}, "layer_types has 2 entries"),
        ({"layer_types": ["sliding"]}, "expected a list of sliding_attention"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=message):
            architecture_of(str(tmp_path))
    path.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        architecture_of(str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["model.name_or_path=owner/other"], {}, "a plan asks nobody; name a folder"),
        (["model.name_or_path=./nowhere"], {}, "no folder './nowhere'"),
        (["lora.layers=[24]"], {}, r"lora.layers: got \[24\], but the base has 24 layers"),
        ([], {"strategy": "fsdp2"}, "give --gpus 2 or more"),
        ([], {"strategy": "fsdp2", "gpus": 6}, "32 experts over 6 processes"),
        (["train.optim=adamw_8bit"], {"strategy": "fsdp2", "gpus": 8}, "set it to adamw"),
        ([], {"efficiency": 1.5}, "efficiency of 1.5"),
        ([], {"gpus": 0}, "0 GPUs"),
    ],
)
def test_what_cannot_be_planned(recipe, overrides, options, message):
    with pytest.raises(RecipeError, match=message):
        plan(recipe(*overrides), H100, **options)


def test_unknown_card():
    with pytest.raises(RecipeError, match=r"expected one of .*h100-80gb"):
        card("h1000")


def test_cards_are_in_order():
    assert [c.memory_gib for c in GPUS] == sorted(c.memory_gib for c in GPUS)
    assert len({c.name for c in GPUS}) == len(GPUS)


@pytest.mark.parametrize(
    "name",
    [
        "gb10-128gb",
        "t4-16gb",
        "v100-32gb",
        "h100nvl-94gb",
        "gh200-96gb",
        "gh200-144gb",
        "b300-288gb",
    ],
)
def test_cards_that_people_rent(name):
    known = card(name)
    assert known.memory_gib < int(name.rpartition("-")[2].removesuffix("gb"))
    assert tuple(sorted(GPUS, key=lambda gpu: gpu.memory_gib)) == GPUS


def test_a_card_without_bf16_is_never_proposed():
    for gib in range(1, 60):
        found = smallest_with(gib << 30)
        assert found is not None and found.has_bf16, found
    assert not card("t4-16gb").has_bf16 and card("rtx4080-16gb").has_bf16


@pytest.mark.parametrize("size", ["20b", "120b"])
def test_safeguard_has_the_sizes_of_its_release(size):
    guard = architecture_of(f"openai/gpt-oss-safeguard-{size}")
    assert guard == architecture_of(f"openai/gpt-oss-{size}")
