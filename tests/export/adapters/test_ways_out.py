"""What commands say of an adapter that they do not take: the way out is run, and succeeds."""

import re
import shlex
import subprocess
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gptoss_tune.errors import CheckpointError
from gptoss_tune.evaluate.load import open_evaluated_model
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.initial_adapter import init_from
from gptoss_tune.model.lora import ADAPTER_NAME
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MERGED = {
    "DoRA": {"use_dora": True},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "token rows": {"trainable_token_indices": [5]},
    "a bias on B": {"lora_bias": True},
    "the router": {"target_parameters": ["mlp.router.weight"]},
}


def told(error, foreign, out):
    """Run the command that a message names, with its place filled in."""
    command = re.search(r"`(gptoss-tune [^`]*)`", str(error.value))[1]
    words = shlex.split(command.replace("DIR", str(out)))[1:]
    if "--base" not in words:
        words += ["--base", str(foreign.base)]
    done = foreign.run(*words)
    assert done.exit_code == 0, (command, done.output, done.exception)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "DoRA")) for k in MERGED]
)
def test_what_only_a_merge_holds_is_merged_as_evaluate_and_chat_say(foreign, base, tmp_path, kind):
    adapter = foreign.by_peft(tmp_path / "adapter", **MERGED[kind])
    with pytest.raises(CheckpointError, match="merge it with `gptoss-tune merge") as error:
        open_evaluated_model(str(adapter), base=str(base))
    told(error, foreign, tmp_path / "merged")
    assert open_evaluated_model(str(tmp_path / "merged")).adapter is None


@pytest.fixture
def trainable(lab, base):
    """A model as a recipe with all projections trains it."""
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=ATTENTION, target_parameters=STACKS, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(lab.plain_model(base), config, adapter_name=ADAPTER_NAME)


def test_a_run_starts_from_the_copy_of_single_experts(foreign, base, trainable, tmp_path):
    weights = {}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        sizes = {"q_proj": (64, 256), "k_proj": (64, 128), "v_proj": (64, 128), "o_proj": (256, 64)}
        for seed, (name, (into, out)) in enumerate(sizes.items()):
            weights |= foreign.factors(f"{stem}.self_attn.{name}", into, out, 4, seed=seed)
        for expert in range(4):
            experts = f"{stem}.mlp.experts"
            weights |= foreign.factors(f"{experts}.gate_up_projs.{expert}", 64, 192, 4, seed=expert)
            weights |= foreign.factors(f"{experts}.down_projs.{expert}", 96, 64, 4, seed=9 + expert)
    targets = [*ATTENTION, *(f"{n}_projs.{e}" for n in ("gate_up", "down") for e in range(4))]
    adapter = foreign.by_hand(tmp_path / "adapter", weights, target_modules=targets)
    with pytest.raises(CheckpointError, match=r"lora.init_from: .*write a copy with") as error:
        init_from(trainable, adapter)
    told(error, foreign, tmp_path / "copy")
    init_from(trainable, tmp_path / "copy")
    found = open_adapter(tmp_path / "copy", open_checkpoint(base))
    change = found.read("model.layers.1.mlp.experts.gate_up_proj")
    stored = weights["base_model.model.model.layers.1.mlp.experts.gate_up_projs.3.lora_B.weight"]
    assert torch.equal(change.B[3], stored)


def test_a_run_starts_from_the_copy_of_a_state_dict(foreign, lab, trainable, tmp_path):
    adapter = foreign.by_peft(
        tmp_path / "adapter", target_modules=ATTENTION, target_parameters=STACKS
    )
    lab.edit_weights(
        adapter,
        lambda w: {f"module.{n}".replace(".weight", ".default.weight"): t for n, t in w.items()},
    )
    with pytest.raises(CheckpointError, match=r"lora.init_from: .*write a copy with") as error:
        init_from(trainable, adapter)
    told(error, foreign, tmp_path / "copy")
    init_from(trainable, tmp_path / "copy")


@pytest.mark.slow
def test_a_run_does_not_start_from_dora_and_says_what_to_do(foreign, base, trainable, tmp_path):
    adapter = foreign.by_peft(tmp_path / "adapter", target_modules=ATTENTION, use_dora=True)
    with pytest.raises(CheckpointError, match=r"use_dora .*name DIR as model.name_or_p") as error:
        init_from(trainable, adapter)
    told(error, foreign, tmp_path / "merged")
    open_checkpoint(tmp_path / "merged")


@pytest.mark.slow
def test_pissa_is_refused_until_peft_has_converted_it(foreign, lab, base, tmp_path):
    """PEFT's conversion has twice the rank and says that it is plain LoRA."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        init_lora_weights="pissa",
        target_modules=ATTENTION,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(lab.plain_model(base, torch.float32), config)
    # The start is saved as a random one: its factors are the same, and PEFT reads it unchanged.
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "pissa_init")
    model.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    prompt = torch.tensor([[200006, 1428, 200008, 3, 7]])
    with torch.no_grad():
        trained = model.eval()(prompt).logits
    model.save_pretrained(tmp_path / "pissa")
    with pytest.raises(CheckpointError, match="path_initial_model_for_weight_conversion"):
        open_adapter(tmp_path / "pissa", open_checkpoint(base))
    converted = tmp_path / "converted"
    start = str(tmp_path / "pissa_init")
    model.save_pretrained(converted, path_initial_model_for_weight_conversion=start)
    opened = open_adapter(converted, open_checkpoint(base))
    assert {target.rank for target in opened.targets.values()} == {8}
    merged, _ = foreign.merged(converted, tmp_path / "out")
    foreign.assert_rounded(merged, lab.merged_by_peft(base, converted))
    with torch.no_grad():
        found = lab.plain_model(tmp_path / "out", torch.float32)(prompt).logits
    assert (found - trained).abs().max() < 0.02 * trained.abs().max()


def test_a_pickle_is_converted_by_the_line_that_the_refusal_shows(adapter_copy, base, tmp_path):
    weights = load_file(adapter_copy / "adapter_model.safetensors")
    torch.save(weights, adapter_copy / "adapter_model.bin")
    (adapter_copy / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickle file, which can run code") as error:
        open_adapter(adapter_copy, open_checkpoint(base))
    line = re.search(r'python -c "(.*)"', str(error.value))[1]
    subprocess.run([sys.executable, "-c", line], cwd=adapter_copy, check=True)
    open_adapter(adapter_copy, open_checkpoint(base))


@pytest.mark.slow
def test_what_peft_alone_can_merge_becomes_a_base_as_the_refusal_says(foreign, lab, base, tmp_path):
    config = peft.LoHaConfig(r=2, alpha=4, target_modules=ATTENTION, task_type="CAUSAL_LM")
    model = peft.get_peft_model(lab.plain_model(base), config)
    model.save_pretrained(tmp_path / "loha")
    result = foreign.run("merge", tmp_path / "loha", "--base", base, "--out", tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"'LOHA'.*Hadamard.*merge it with PEFT instead"):
        raise result.exception
    dense = lab.plain_model(base)
    merged = peft.PeftModel.from_pretrained(dense, tmp_path / "loha").merge_and_unload()
    merged.save_pretrained(tmp_path / "out")
    assert "AutoTokenizer.from_pretrained(BASE).save_pretrained(OUT)" in str(result.exception)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "out")
    load_vocabulary(tmp_path / "out")
    out = ("--format", "bf16", "--out", tmp_path / "base2")
    done = foreign.run("merge", "--base", tmp_path / "out", *out)
    assert done.exit_code == 0, (done.output, done.exception)


def test_factors_that_are_no_numbers_are_refused(foreign, base, lab, adapter_copy):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for dtype, reason in (
        (torch.int8, "'.*q_proj.lora_A.weight' is int8, the codes of a quantised factor"),
        (torch.float8_e4m3fn, r"is 'F8_E4M3', a dtype that no .*save it again in bf16"),
    ):
        lab.edit_weights(adapter_copy, lambda w, d=dtype: {**w, name: w[name].float().to(d)})
        with pytest.raises(CheckpointError, match=reason):
            open_adapter(adapter_copy, open_checkpoint(base))
        lab.edit_weights(adapter_copy, lambda w: {**w, name: torch.ones(4, 64)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (torch.bfloat16, torch.float64)),
    ],
)
def test_factors_of_other_dtypes_are_merged_at_their_values(foreign, lab, base, tmp_path, dtype):
    adapter = foreign.by_peft(tmp_path / "adapter", target_modules=ATTENTION)
    lab.edit_weights(adapter, lambda weights: {n: t.to(dtype) for n, t in weights.items()})
    merged, _ = foreign.merged(adapter, tmp_path / "out")
    foreign.assert_rounded(merged, lab.merged_by_peft(base, adapter))


def test_parts_of_an_adapter_are_not_taken_for_it(adapter_copy, base, lab):
    weights = load_file(adapter_copy / "adapter_model.safetensors")
    save_file(weights, adapter_copy / "adapter_model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"part of an adapter beside adapter_model.safet"):
        open_adapter(adapter_copy, open_checkpoint(base))
    (adapter_copy / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part of an adapter; PEFT reads"):
        open_adapter(adapter_copy, open_checkpoint(base))


def test_resized_embeddings_are_called_so(foreign, base, lab, tmp_path):
    adapter = foreign.by_peft(tmp_path / "adapter", modules_to_save=["embed_tokens"])
    name = "base_model.model.model.embed_tokens.weight"
    lab.edit_weights(adapter, lambda w: {**w, name: torch.ones(201_100, 64)})
    with pytest.raises(CheckpointError, match=r"201100 rows, the base's vocabulary 201088"):
        open_adapter(adapter, open_checkpoint(base))


@pytest.mark.slow
def test_what_has_no_sum_is_refused(foreign, base, lab, tmp_path):
    plain = foreign.by_peft(tmp_path / "plain", target_modules=["q_proj", "lm_head"])
    dora = foreign.by_peft(tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    saved = foreign.by_peft(
        tmp_path / "saved", modules_to_save=["lm_head"], target_modules=["k_proj"]
    )
    norms = foreign.by_peft(tmp_path / "norms", modules_to_save=["norm"], target_modules=["v_proj"])
    out = tmp_path / "out"
    for named, reason in (
        ((f"{dora}=0.5",), "its weight in the sum is 0.5, and it holds DoRA's row lengths"),
        ((f"{saved}=2",), "weight in the sum is 2, and it holds trained values of lm_head.weight"),
        ((saved, plain), "lm_head.weight, which .*plain changes too; the two have no sum"),
        ((plain, dora), "q_proj.weight, which .*plain changes too; the two have no sum"),
    ):
        result = foreign.run("merge", *named, "--base", base, "--out", out)
        with pytest.raises(CheckpointError, match=reason):
            raise result.exception
    # What does not meet does have one.
    merged, _ = foreign.merged(saved, tmp_path / "one", str(norms), str(dora))
    alone, _ = foreign.merged(norms, tmp_path / "alone", "--no-verify")
    assert torch.equal(merged["model.norm.weight"], alone["model.norm.weight"])
    assert torch.equal(
        merged["lm_head.weight"], lab.merged_by_peft(base, saved)["lm_head.weight"].bfloat16()
    )
