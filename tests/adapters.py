"""The table of adapters: each way one comes, and what every command makes of it.

``python tests/adapters.py --write docs/adapters.md`` makes each adapter on a tiny base, runs the
commands and writes the page (some minutes); ``--check docs/adapters.md`` does the same and says
which rows are other ones than the page shows. What PEFT can write is written by PEFT; the rest is
laid out by hand in the form of the program that is named.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.evaluate.load import open_evaluated_model
from gptoss_tune.model.initial_adapter import init_from
from gptoss_tune.model.lora import ADAPTER_NAME
from gptoss_tune.testing.tiny import tiny_checkpoint

PREFIX = "base_model.model."
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXPERTS, LAYERS = 4, 2
INTRODUCTION = """\
# Adapters made elsewhere

<!-- Made by: python tests/adapters.py --write docs/adapters.md -->

What PEFT {version} and other programs write as an adapter of gpt-oss, and what the commands make of
it. Every row was run on a tiny base: adapters that PEFT can write are written by PEFT, the others
are laid out by hand in the form of the program. `verify` compared every weight.

- **yes**: it works.
- **by merge**: refused, with the `gptoss-tune merge` that makes a folder that works.
- **by adapter**: refused, with the `gptoss-tune adapter --for peft` that makes a copy that works.
- **no**: refused; the last table says why. Under `init_from` also: the recipe has other targets.

`chat` stands for `evaluate` and `benchmark` too, which open an adapter alike. `init_from` is
`lora.init_from` of a recipe on attention and both stacks of experts at the adapter's rank.

| the adapter | merge, verify | adapter --for peft | --for vllm | chat | init_from |
|---|---|---|---|---|---|
"""
REASONS = """
## What the refusals say

A refusal of `merge` is also that of the others.

| the adapter | what is said |
|---|---|
"""


class Workshop:
    """A base, and the making of adapters on it."""

    def __init__(self, folder):
        self.folder = folder
        self.base = tiny_checkpoint(folder / "base", layers=LAYERS, experts=EXPERTS)

    def model(self):
        return AutoModelForCausalLM.from_pretrained(
            self.base, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
        )

    def peft(self, out, kind=peft.LoraConfig, **options):
        """An adapter by PEFT, moved from where it started."""
        if kind is peft.LoraConfig:
            rank = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}
            options = {**rank, "target_parameters": STACKS, **options}
        model = peft.get_peft_model(self.model(), kind(task_type="CAUSAL_LM", **options))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.save_pretrained(out)

    def singles(self, out, layers_of, targets):
        """An adapter with factors of single experts."""
        weights, seed = {}, 0
        sizes = {"q_proj": (64, 256), "k_proj": (64, 128), "v_proj": (64, 128), "o_proj": (256, 64)}
        for layer in range(LAYERS):
            modules = {f"self_attn.{name}": size for name, size in sizes.items()}
            for expert in range(EXPERTS):
                modules |= layers_of(expert)
            for module, (into, rows) in modules.items():
                seed += 1
                generator = torch.Generator().manual_seed(seed)
                stem = f"{PREFIX}model.layers.{layer}.{module}.lora_"
                weights[f"{stem}A.weight"] = torch.randn(4, into, generator=generator) * 0.1
                weights[f"{stem}B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
        self.write(out, weights, config | {"target_modules": [*ATTENTION, *targets]})

    @staticmethod
    def write(out, weights, config):
        out.mkdir(parents=True, exist_ok=True)
        save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
        (out / "adapter_config.json").write_text(json.dumps(config))

    def edited(self, out, config=None, weights=None, **options):
        """A plain adapter by PEFT, with configuration or tensors changed."""
        self.peft(out, **options)
        file = out / "adapter_config.json"
        told = json.loads(file.read_text()) | (config or {})
        tensors = load_file(out / "adapter_model.safetensors")
        self.write(out, weights(tensors) if weights else tensors, told)


def named(change):
    return lambda weights: {change(name): tensor for name, tensor in weights.items()}


def unsloth(expert):
    return {
        f"mlp.experts.gate_up_projs.{expert}": (64, 192),
        f"mlp.experts.down_projs.{expert}": (96, 64),
    }


def mixtral(expert):
    stem = f"mlp.experts.{expert}"
    return {
        f"{stem}.gate_proj": (64, 96),
        f"{stem}.up_proj": (64, 96),
        f"{stem}.down_proj": (96, 64),
    }


def swapped(weights):
    """Factors of experts as PEFT 0.19.0 saved them."""
    found = dict(weights)
    for name in [n for n in weights if ".experts." in n and "lora_A" in n]:
        other = name.replace("lora_A", "lora_B")
        a, b = (
            weights[name].unflatten(0, (EXPERTS, 4)),
            weights[other].unflatten(1, (4, EXPERTS)),
        )
        found[name] = b.permute(2, 1, 0).reshape(EXPERTS * 4, -1).contiguous()
        found[other] = a.permute(2, 1, 0).reshape(-1, EXPERTS * 4).contiguous()
    return found


def with_nan(weights):
    next(iter(weights.values()))[0, 0] = float("nan")
    return weights


def to_pickle(out):
    torch.save(load_file(out / "adapter_model.safetensors"), out / "adapter_model.bin")
    (out / "adapter_model.safetensors").unlink()


@dataclass(frozen=True)
class Way:
    """One way an adapter comes: its name, and what makes it in a folder."""

    what: str
    make: Callable[[Workshop, Path], object]


def edited(what, **options):
    return Way(what, lambda shop, out: shop.edited(out, **options))


def by_peft(what, **options):
    return Way(what, lambda shop, out: shop.peft(out, **options))


SAVED = ["lm_head", "norm", "router"]
NO_EXPERTS = {"target_parameters": None}
LISTS = [f"{name}_projs.{expert}" for name in ("gate_up", "down") for expert in range(EXPERTS)]
WAYS = [
    by_peft("attention and experts"),
    edited("experts alone", target_modules=[]),
    by_peft("attention alone", **NO_EXPERTS),
    by_peft("rsLoRA, rank_pattern, alpha_pattern", use_rslora=True, rank_pattern={"v_proj": 2}),
    by_peft("layers_to_transform, exclude_modules", layers_to_transform=[1], **NO_EXPERTS),
    by_peft("head: `lm_head`", target_modules=["lm_head"], **NO_EXPERTS),
    by_peft("embedding: `embed_tokens`", target_modules=["embed_tokens"], **NO_EXPERTS),
    by_peft("router: `mlp.router.weight`", target_parameters=["mlp.router.weight"]),
    by_peft("DoRA on attention", use_dora=True, **NO_EXPERTS),
    edited("DoRA said of experts", config={"use_dora": True}),
    by_peft(
        "`modules_to_save`: head, norms, router", modules_to_save=["lm_head", "norm", "router"]
    ),
    by_peft("`modules_to_save`: experts", modules_to_save=["mlp"], **NO_EXPERTS),
    by_peft("`trainable_token_indices`", trainable_token_indices=[5, 200010]),
    by_peft("`lora_bias`", lora_bias=True, **NO_EXPERTS),
    by_peft('`bias="all"`', bias="all", **NO_EXPERTS),
    by_peft('`bias="lora_only"`', bias="lora_only", **NO_EXPERTS),
    edited(
        "resized embedding",
        modules_to_save=["embed_tokens"],
        weights=lambda w: w | {f"{PREFIX}model.embed_tokens.weight": torch.ones(201_100, 64)},
    ),
    Way("Unsloth: `experts.gate_up_projs.N`", lambda s, out: s.singles(out, unsloth, LISTS)),
    Way(
        "as Mixtral: `experts.N.gate_proj`",
        lambda s, out: s.singles(out, mixtral, ["gate_proj", "up_proj", "down_proj"]),
    ),
    edited("`lora_A.default.weight`", weights=named(lambda n: n.replace(".weight", ".x.weight"))),
    edited("`module.`, `_orig_mod.`", weights=named(lambda n: f"module._orig_mod.{n}")),
    edited("FSDP: `_fsdp_wrapped_module.`", weights=named(lambda n: f"_fsdp_wrapped_module.{n}")),
    edited("no prefix", weights=named(lambda n: n.removeprefix(f"{PREFIX}model."))),
    edited(
        "`model.language_model.`",
        weights=named(lambda n: n.replace(".model.model.", ".model.model.language_model.")),
    ),
    edited(
        "two adapters in a file",
        weights=lambda w: w | {n.replace("A.weight", "A.b.weight"): t + 1 for n, t in w.items()},
    ),
    edited(
        "torchtune, mlx-lm: `lora_a`",
        weights=named(lambda n: n.replace("lora_A.weight", "lora_a.weight")),
    ),
    edited(
        "NeMo: `linear_qkv.adapter.linear_in`",
        weights=named(lambda n: n.replace("q_proj.lora_A", "linear_qkv.adapter.linear_in")),
    ),
    by_peft("start: orthogonal", init_lora_weights="orthogonal", **NO_EXPERTS),
    edited("start: EVA", config={"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
    edited("start: PiSSA, not converted", config={"init_lora_weights": "pissa"}),
    edited("start: OLoRA, CorDA, LoRA-GA", config={"init_lora_weights": "olora"}),
    edited("start: LoftQ", config={"init_lora_weights": "loftq"}),
    by_peft("LoHa", kind=peft.LoHaConfig, target_modules=ATTENTION),
    by_peft("LoKr", kind=peft.LoKrConfig, target_modules=ATTENTION),
    by_peft("VeRA", kind=peft.VeraConfig, r=2, target_modules=["q_proj"]),
    by_peft(
        "IA3", kind=peft.IA3Config, target_modules=["k_proj", "v_proj"], feedforward_modules=[]
    ),
    by_peft("OFT", kind=peft.OFTConfig, target_modules=["q_proj"], oft_block_size=8, r=0),
    edited("AdaLoRA", config={"peft_type": "ADALORA"}),
    edited("prompt tuning", config={"peft_type": "PROMPT_TUNING"}),
    edited("`layer_replication`", config={"layer_replication": [[0, 2], [1, 2]]}),
    edited("`use_qalora`", config={"use_qalora": True}),
    edited("PEFT 0.19.0's swapped factors", weights=swapped, config={"peft_version": "0.19.0"}),
    edited("float16 factors", weights=lambda w: {n: t.half() for n, t in w.items()}),
    edited("int8 factors", weights=lambda w: {n: t.to(torch.int8) for n, t in w.items()}),
    edited(
        "float8 factors", weights=lambda w: {n: t.to(torch.float8_e4m3fn) for n, t in w.items()}
    ),
    edited("NaN in a factor", weights=with_nan),
    Way("`adapter_model.bin` alone", lambda s, out: (s.peft(out), to_pickle(out))),
]


def outcome(error):
    """Return a cell of the table."""
    if error is None:
        return "yes"
    found = re.search(r"gptoss-tune (adapter|merge) \S+", str(error))
    return f"by {found[1]}" if found else "no"


def attempt(job):
    """Return the error of a job, or None; anything but a refusal is a fault of ours."""
    try:
        job()
    except GptossTuneError as error:
        return error
    return None


def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None:
        raise done.exception


def merged_and_verified(source, base, out):
    command("merge", source, *base, "--out", out, "--no-verify")
    command("verify", out, "--adapter", source, *base, "--no-logits")


def tried(shop, way, trainable):
    """Return the cells of one adapter, and what is said of it."""
    work = Path(tempfile.mkdtemp(dir=shop.folder))
    source = work / "adapter"
    way.make(shop, source)
    base = ("--base", shop.base)
    errors = [
        attempt(lambda: merged_and_verified(source, base, work / "merged")),
        attempt(lambda: command("adapter", source, *base, "--out", work / "peft")),
        attempt(lambda: command("adapter", source, *base, "--for", "vllm", "--out", work / "vllm")),
        attempt(lambda: open_evaluated_model(str(source), base=str(shop.base))),
        attempt(lambda: init_from(trainable, source)),
    ]
    said = [str(e).replace(str(source), "DIR") for e in errors if e is not None]
    shutil.rmtree(work)
    first = " ".join(said[0].split()) if said and (errors[0] or way.what.startswith("DoRA")) else ""
    cells = [outcome(error) for error in errors]
    if cells[0] == "no":  # what is named is no way out of what no command reads
        cells = ["no" for _ in cells]
    return cells, re.sub(r"^[^:]*: ", "", first, count=1)


def rows(folder):
    """Return the lines of both tables."""
    shop = Workshop(folder)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=ATTENTION, target_parameters=STACKS, task_type="CAUSAL_LM"
    )
    trainable = peft.get_peft_model(shop.model(), config, adapter_name=ADAPTER_NAME)
    table, reasons = [], []
    for way in WAYS:
        cells, said = tried(shop, way, trainable)
        table.append(f"| {way.what} | " + " | ".join(cells) + " |")
        if cells[0] != "yes":
            reasons.append(f"| {way.what} | {said.replace('|', chr(92) + '|')} |")
        sys.stderr.write(f"{table[-1]}\n")
    return table, reasons


def page(folder):
    """Return the page."""
    table, reasons = rows(folder)
    head = INTRODUCTION.replace("{version}", peft.__version__)
    return head + "\n".join(table) + "\n" + REASONS + "\n".join(reasons) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    try:
        found = page(folder)
    finally:
        shutil.rmtree(folder)
    if asked.write:
        asked.write.write_text(found, encoding="utf-8")
    if asked.check:
        shown = asked.check.read_text("utf-8").splitlines()
        wrong = [line for line in found.splitlines() if line not in shown]
        wrong += [f"no more: {line}" for line in shown if line not in found.splitlines()]
        print("\n".join(wrong) or f"{len(WAYS)} ways are as shown")
        return 1 if wrong else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
