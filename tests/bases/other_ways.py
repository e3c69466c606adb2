"""Ways in which a base comes that need no translation, and those that nothing here reads.

Run by ``table.py`` and by the tests, with the writers of ``ways.py``.
"""

import json
import os
import runpy
import struct
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

WAYS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "ways.py")))
SINGLE, INDEX = WAYS.SINGLE, WAYS.INDEX
copied, sharded, renamed, in_dtype = WAYS.copied, WAYS.sharded, WAYS.renamed, WAYS.in_dtype
one_by_one = WAYS.one_by_one


def setting(**changes):
    """Return a writer of the dense base with other settings."""
    return lambda bases, out: copied(bases["bf16"], out, **changes)


def weights(change, **settings):
    """Return a writer of the dense base with other tensors: ``change(weights)``."""

    def write(bases, out):
        return copied(bases["bf16"], out, change(load_file(bases["bf16"] / SINGLE)), **settings)

    return write


def with_file(name, content=b"", *, without=(SINGLE,), kind="bf16"):
    """Return a writer of a folder with another file instead of some of its own."""

    def write(bases, out):
        copied(bases[kind], out)
        for each in without:
            (out / each).unlink()
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
        return out

    return write


def gguf(bases, out):
    """A GGUF of the packed base, as ``merge --format gguf`` writes it."""
    from gptoss_tune.workflows.finished_run import merge

    merge([], out, base=bases["mxfp4"], format="gguf", verified=False)
    return next(out.glob("*.gguf"))


def named_file(bases, out):
    """The file of the weights, named instead of its folder."""
    return copied(bases["bf16"], out) / SINGLE


def cache(refs=True, snapshots=1, name="models--openai--gpt-oss-20b", answer="repository"):
    """Return a writer of a repository in the Hub's cache: links from snapshots to blobs."""

    def write(bases, out):
        repository = out / "hub" / name
        blobs = repository / "blobs"
        blobs.mkdir(parents=True)
        if answer == "elsewhere":
            blobs.rmdir()
            (out / "other-disk").mkdir()
            blobs.symlink_to(out / "other-disk")
        for i, file in enumerate(sorted(bases["mxfp4"].iterdir())):
            os.link(file, blobs / f"b{i}")
            for number in range(snapshots):
                snapshot = repository / "snapshots" / f"commit{number}"
                snapshot.mkdir(parents=True, exist_ok=True)
                (snapshot / file.name).symlink_to(f"../../blobs/b{i}")
        if refs:
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("commit0")
        if answer == "link":
            (out / "link").symlink_to(repository / "snapshots" / "commit0")
            return out / "link"
        return repository if answer == "repository" else repository / "snapshots" / "commit0"

    return write


def broken_link(bases, out):
    """A folder whose weights are a link to a file that is gone."""
    copied(bases["bf16"], out)
    (out / SINGLE).unlink()
    (out / SINGLE).symlink_to("gone.safetensors")
    return out


def link_to_nothing(bases, out):
    """A link to a folder that is gone."""
    out.mkdir()
    (out / "base").symlink_to(out / "gone")
    return out / "base"


def link_to_itself(bases, out):
    """Two links that lead to each other."""
    out.mkdir()
    (out / "base").symlink_to("other")
    (out / "other").symlink_to("base")
    return out / "base"


def shards(bases, out):
    """Three files with their index."""
    return sharded(copied(bases["bf16"], out))


def missing_shards(bases, out):
    """Three files, of which two are not there."""
    shards(bases, out)
    for part in (2, 3):
        (out / f"model-0000{part}-of-00003.safetensors").unlink()
    return out


def transformers_5(bases, out):
    """``rope_parameters`` with the base inside, ``dtype`` for ``torch_dtype``."""
    config = json.loads((bases["bf16"] / "config.json").read_text())
    rope = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    return copied(
        bases["bf16"],
        out,
        rope_parameters=rope,
        dtype="bfloat16",
        rope_scaling=...,
        rope_theta=...,
        torch_dtype=...,
    )


def nested(bases, out):
    """A larger model that has a gpt-oss in it."""
    config = json.loads((bases["bf16"] / "config.json").read_text())
    copied(bases["bf16"], out)
    (out / "config.json").unlink()
    outer = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": config,
    }
    (out / "config.json").write_text(json.dumps(outer))
    return out


def tied(bases, out, keep_head=False):
    """Embeddings that are the head as well."""
    tensors = load_file(bases["bf16"] / SINGLE)
    if not keep_head:
        del tensors["lm_head.weight"]
    return copied(bases["bf16"], out, tensors, tie_word_embeddings=True)


def nf4(bases, out):
    """Experts one by one in bitsandbytes' codes, as Unsloth's 4-bit repositories hold them."""
    one_by_one("gate_up_projs.{}", "down_projs.{}", "mlp.router.linear.")(bases, out)
    tensors = load_file(out / SINGLE)
    for name in [name for name in tensors if "_projs." in name and name.endswith("weight")]:
        tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.ones(4)
        tensors[f"{name}.quant_map"] = torch.ones(16)
    save_file(tensors, out / SINGLE, metadata={"format": "pt"})
    return out


def nf4_said(bases, out):
    """The same, with bitsandbytes in the configuration."""
    nf4(bases, out)
    config = json.loads((out / "config.json").read_text())
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    return out


def fp8(bases, out):
    """A file whose header names FP8, and nothing in the configuration."""
    copied(bases["bf16"], out)
    (out / SINGLE).unlink()
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    (out / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    return out


def transposed(tensors):
    """Return experts ``[E, out, in]``."""
    ends = (".gate_up_proj", ".down_proj")
    return {n: t.transpose(1, 2) if n.endswith(ends) else t for n, t in tensors.items()}


def padded(tensors):
    """Return embeddings and head with 64 rows more."""
    ends = ("embed_tokens.weight", "lm_head.weight")
    rows = torch.zeros(64, 32, dtype=torch.bfloat16)
    return {n: torch.cat([t, rows]) if n.endswith(ends) else t for n, t in tensors.items()}


def factors(tensors):
    """Return the weights with an adapter's factor among them."""
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    return {**tensors, name: torch.ones(4, 32)}


def quantised(method, **others):
    """Return a writer of the base whose configuration names a quantiser."""
    return setting(quantization_config={"quant_method": method, **others})


READ = {
    "the release, MXFP4": lambda bases, out: copied(bases["mxfp4"], out),
    "the release, bf16": lambda bases, out: copied(bases["bf16"], out),
    "several files with their index": shards,
    "float16": in_dtype(torch.float16),
    "float32": in_dtype(torch.float32),
    "`rope_parameters` (transformers 5)": transformers_5,
    "tied embeddings": tied,
    "a snapshot in the Hub's cache": cache(answer="snapshot"),
    "a link to a snapshot": cache(answer="link"),
    "a cache whose blobs lie on another disk": cache(answer="elsewhere"),
    "a repository's folder in the cache": cache(),
}
"""Read by everything as it is."""
REFUSED = {
    "a repository's folder with two snapshots": cache(refs=False, snapshots=2),
    "a link to a file that is gone": broken_link,
    "a link to a folder that is gone": link_to_nothing,
    "links that lead round": link_to_itself,
    "shards that are missing": missing_shards,
    "the file of the weights": named_file,
    "`metal/` of a release": with_file("model.bin", without=(SINGLE, "config.json")),
    "a GGUF": gguf,
    "a folder with a GGUF": lambda bases, out: gguf(bases, out).parent,
    "`pytorch_model.bin` alone": with_file("pytorch_model.bin"),
    "`consolidated.safetensors` alone": with_file("consolidated.safetensors"),
    "no `config.json`": lambda bases, out: with_file("x", without=("config.json",))(bases, out),
    "another `model_type`": setting(model_type="llama"),
    "gpt-oss inside a larger model (`text_config`)": nested,
    "no `head_dim` in `config.json`": setting(head_dim=...),
    "a layer more than `config.json` says": setting(
        num_hidden_layers=1, layer_types=["sliding_attention"]
    ),
    "a padded vocabulary": weights(padded),
    "tied embeddings and a head": lambda bases, out: tied(bases, out, keep_head=True),
    "experts `[E, out, in]`": weights(transposed),
    "experts one by one, gate and up in one": one_by_one("{}.gate_up_proj", "{}.down_proj"),
    "an adapter's factors among the weights": weights(factors),
    "bitsandbytes NF4": nf4_said,
    "NF4 that `config.json` does not say": nf4,
    "FP8 that `config.json` does not say": fp8,
    "FP8": quantised("fp8"),
    "AWQ": quantised("awq", bits=4),
    "GPTQ": quantised("gptq", bits=4),
    "compressed-tensors": quantised("compressed-tensors", format="pack-quantized"),
    "NVIDIA ModelOpt, NVFP4": quantised("modelopt", quant_algo="NVFP4"),
}
"""Refused, with the reason and the way out."""
EVERY = {
    "Read by everything": READ,
    "Read here, converted for other programs": WAYS.TRANSLATED,
    "Converted first": WAYS.OPENAI,
    "Refused": REFUSED,
}
