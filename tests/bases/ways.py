"""Every way in which a base comes: written from the tiny one, and what each command does with it.

``python tests/bases/ways.py --write docs/bases.md`` runs every command on every way and writes the
page; tests run this file for its writers, and compare the page's lines with what happens.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
SIZES = {"layers": 2, "experts": 4, "hidden": 32, "intermediate": 64}
OPENAI_NAMES = {
    "input_layernorm.weight": "attn.norm.scale",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "self_attn.sinks": "attn.sinks",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    f"{GATE_UP}_blocks": "mlp.mlp1_weight.blocks",
    f"{GATE_UP}_scales": "mlp.mlp1_weight.scales",
    f"{GATE_UP}_bias": "mlp.mlp1_bias",
    f"{DOWN}_blocks": "mlp.mlp2_weight.blocks",
    f"{DOWN}_scales": "mlp.mlp2_weight.scales",
    f"{DOWN}_bias": "mlp.mlp2_bias",
}


def bases(folder):
    """Write the tiny base in both formats: one model, whose norms and biases are no constants."""
    from gptoss_tune.testing.tiny import tiny_checkpoint

    made = {}
    for kind in ("mxfp4", "bf16"):
        base = tiny_checkpoint(Path(folder) / kind, seed=3, format=kind, **SIZES)
        weights = load_file(base / SINGLE)
        generator = torch.Generator().manual_seed(4)
        for name in sorted(weights):
            if "norm" in name:
                noise = torch.rand(weights[name].shape, generator=generator)
                weights[name] = (0.5 + noise).bfloat16()
        save_file(weights, base / SINGLE, metadata={"format": "pt"})
        made[kind] = base
    return made


def copied(base, out, weights=None, **changes):
    """Copy a base, with other weights or settings; a setting that is ``...`` is left out."""
    out.mkdir(parents=True)
    for file in base.iterdir():
        if file.name == SINGLE and weights is not None:
            continue
        if file.name == "config.json":
            config = {**json.loads(file.read_text()), **changes}
            kept = {key: value for key, value in config.items() if value is not ...}
            (out / file.name).write_text(json.dumps(kept))
        else:
            os.link(file, out / file.name)
    if weights is not None:
        tensors = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        save_file(tensors, out / SINGLE, metadata={"format": "pt"})
    return out


def sharded(folder, parts=3, name="model-{:05}-of-{:05}.safetensors"):
    """Divide the weights of a folder over files, with their index."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    weight_map = {}
    for part in range(parts):
        mine = {n: t for i, (n, t) in enumerate(sorted(weights.items())) if i % parts == part}
        file = name.format(part + 1, parts)
        save_file(mine, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def renamed(change, kind="bf16"):
    """Return a writer of the base whose tensors ``change(name)`` names."""

    def write(bases, out):
        weights = load_file(bases[kind] / SINGLE)
        return copied(bases[kind], out, {change(name): t for name, t in weights.items()})

    return write


def openai_config(config):
    """Return the settings of OpenAI's own code, as ``original/config.json`` has them."""
    rope = config["rope_scaling"]
    same = (
        *("num_hidden_layers", "experts_per_token", "vocab_size", "hidden_size"),
        *("intermediate_size", "swiglu_limit", "head_dim", "num_attention_heads"),
        *("num_key_value_heads", "sliding_window", "initial_context_length", "rope_theta"),
    )
    return {
        **{key: config[key] for key in same},
        "num_experts": config["num_local_experts"],
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": rope["beta_slow"],
        "rope_ntk_beta": rope["beta_fast"],
    }


def openai_weights(weights, layers):
    """Return the tensors of the release as OpenAI's own code names, joins and orders them."""
    out = {
        "embedding.weight": weights["model.embed_tokens.weight"],
        "norm.scale": weights["model.norm.weight"],
        "unembedding.weight": weights["lm_head.weight"],
    }
    for layer in range(layers):
        ours, theirs = f"model.layers.{layer}.", f"block.{layer}."
        for name, other in OPENAI_NAMES.items():
            if ours + name in weights:
                out[theirs + other] = weights[ours + name]
        for kind in ("weight", "bias"):
            parts = [weights[f"{ours}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{theirs}attn.qkv.{kind}"] = torch.cat(parts)
        for name, other in ((GATE_UP, "mlp.mlp1_weight"), (DOWN, "mlp.mlp2_weight")):
            if ours + name in weights:  # dense: OpenAI multiplies by [out, in]
                out[theirs + other] = weights[ours + name].transpose(1, 2)
    return out


def original(kind="mxfp4", above=True, parts=1):
    """Return a writer of ``original/``, in a release or alone."""

    def write(bases, out):
        base = bases[kind]
        config = json.loads((base / "config.json").read_text())
        folder = out / "original"
        folder.mkdir(parents=True)
        weights = openai_weights(load_file(base / SINGLE), config["num_hidden_layers"])
        tensors = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(openai_config(config)))
        (folder / "dtypes.json").write_text(json.dumps(dict.fromkeys(weights, "BF16")))
        if parts > 1:
            sharded(folder, parts, "model--{:05}-of-{:05}.safetensors")
        if above:
            for file in base.iterdir():
                os.link(file, out / file.name)
        return folder

    return write


def one_by_one(gate_up, down, router="mlp.router."):
    """Return a writer of experts as linear layers of their own, gate and up alternating."""

    def write(bases, out):
        weights = {}
        for name, tensor in load_file(bases["bf16"] / SINGLE).items():
            stack, bias = name.removesuffix("_bias"), name.endswith("_bias")
            for projection, as_ in ((GATE_UP, gate_up), (DOWN, down)):
                if stack.endswith(projection):
                    prefix = stack.removesuffix(projection)
                    for number, values in enumerate(tensor):
                        kind = "bias" if bias else "weight"
                        key = f"{prefix}mlp.experts.{as_.format(number)}.{kind}"
                        weights[key] = values if bias else values.T
                    break
            else:
                weights[name.replace("mlp.router.", router)] = tensor
        return copied(bases["bf16"], out, weights)

    return write


def apart(prefix="mlp.experts.{}"):
    """Return a writer of experts as three linear layers each."""

    def write(bases, out):
        weights = {}
        for name, tensor in load_file(bases["bf16"] / SINGLE).items():
            stack, bias = name.removesuffix("_bias"), name.endswith("_bias")
            kind = "bias" if bias else "weight"
            layer = name.partition("mlp.experts")[0]
            for number, values in enumerate(tensor if ".experts." in name else ()):
                rows = values if bias else values.T
                key = layer + prefix.format(number)
                if stack.endswith(GATE_UP):
                    weights[f"{key}.gate_proj.{kind}"] = rows[0::2]
                    weights[f"{key}.up_proj.{kind}"] = rows[1::2]
                else:
                    weights[f"{key}.down_proj.{kind}"] = rows
            if ".experts." not in name:
                weights[name] = tensor
        return copied(bases["bf16"], out, weights)

    return write


def dense_under_packed_names(bases, out):
    """What transformers 5.5.2 and later save after ``Mxfp4Config(dequantize=True)``."""
    ends = (".gate_up_proj", ".down_proj")
    return renamed(lambda name: name + "_blocks" * name.endswith(ends))(bases, out)


def in_dtype(dtype, kind="bf16"):
    """Return a writer of the base with its floating values in another dtype."""

    def write(bases, out):
        weights = load_file(bases[kind] / SINGLE)
        weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
        return copied(bases[kind], out, weights, torch_dtype=str(dtype).removeprefix("torch."))

    return write


TRANSLATED = {
    "dense values named `_blocks` (transformers 5.5.2 and later)": dense_under_packed_names,
    "`language_model.` before each name": renamed(lambda name: f"language_model.{name}"),
    "`model.language_model.`": renamed(
        lambda name: name.replace("model.", "model.language_model.", 1)
    ),
    "`module.`, MXFP4": renamed(lambda name: f"module.{name}", "mxfp4"),
    "`_orig_mod.`": renamed(lambda name: f"_orig_mod.{name}"),
    "`base_model.model.`": renamed(lambda name: f"base_model.model.{name}"),
    "no `model.`": renamed(lambda name: name.removeprefix("model."), "mxfp4"),
    "a linear layer an expert (Unsloth)": one_by_one(
        "gate_up_projs.{}", "down_projs.{}", "mlp.router.linear."
    ),
    "a linear layer an expert (GPTQModel)": one_by_one("gate_up.{}", "down.{}"),
    "three linear layers an expert": apart(),
    "three linear layers an expert (LLM Compressor)": apart("mlp.experts.experts.{}"),
}
"""Read through the checkpoint by whoever computes here; other programs need a copy."""
OPENAI = {
    "`original/` of a release": original(),
    "`original/` in several files": original(parts=3),
    "`original/` alone": original(above=False),
    "`original/` with dense experts": original("bf16"),
}
"""Written anew before anything is done with them."""


def tokenizer_of(bases):
    """Return a folder with the files that go with weights."""
    return shutil.copytree(
        bases["mxfp4"], bases["mxfp4"].parent / "tokenizer", ignore=shutil.ignore_patterns(SINGLE)
    )
