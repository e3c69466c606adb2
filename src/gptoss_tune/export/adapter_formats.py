"""Adapter files as PEFT and as servers read them.

PEFT and vLLM read the same keys. What differs is what they do with the rest: older vLLM ignores
``rank_pattern`` and ``alpha_pattern`` (the experts then run at the wrong scale, without a word),
drops keys that match nothing, needs both expert projections, and refuses several options of PEFT.
So an adapter for vLLM is written in the plainest form: the scale folded into B, one rank for all
layers, no patterns. SGLang does not read expert adapters of gpt-oss: for it, merge.

The rejected alternative is to ship the training's files and a list of caveats.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import staged, to_json
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import record_of_adapter
from gptoss_tune.weights.adapter import Adapter, LowRank
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHOSEN_EXPERTS
from gptoss_tune.weights.adapter_targets import Target
from gptoss_tune.weights.names import ExpertFormat
from gptoss_tune.weights.safetensors_file import TensorSpec
from gptoss_tune.weights.write import Shard, write_shard

Server = Literal["peft", "vllm", "sglang"]

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for ``--max-lora-rank``; 16 when it is not given."""


def write_adapter(
    adapter: Adapter,
    out: Path,
    server: Server,
    *,
    uniform: bool = False,
    compact: bool = False,
    rank: int | None = None,
) -> None:
    """Write ``adapter`` to the new folder ``out`` for one reader, factors in fp32.

    Factors that PEFT 0.19.0 swapped are written the right way round. Where the adapter has factors
    of chosen experts alone, those of the others are written as zeros: PEFT and servers know nothing
    of a choice.

    Args:
        adapter: An opened adapter.
        out: Folder to create.
        server: Who will read it.
        uniform: Fold the scaling into B and pad to one rank; always done for vLLM.
        compact: Keep to the chosen experts, which gptoss-tune reads and nobody else.
        rank: Pad to this one, at least the adapter's own; ``None``: to the largest of its layers.

    Raises:
        CheckpointError: The server cannot read such an adapter, or ``out`` exists.
        MachineError: The disk is full or cannot be written.
    """
    refuse_unreadable(adapter, server)
    if compact and server != "peft":
        raise CheckpointError(
            f"{adapter.path}: {server} reads factors of all experts; leave --compact out"
        )
    if compact and adapter.single:
        raise CheckpointError(
            f"{adapter.path}: has factors of single experts, as no run chose them; leave --compact "
            "out: experts without factors get zeros"
        )
    if rank is None and (uniform or server == "vllm"):
        rank = largest_rank(adapter)
    shapes: dict[str, tuple[int, ...]] = {
        name: shape
        for target in adapter.targets.values()
        for name, shape in _named_shapes(target, rank, target.held if compact else target.experts)
    }
    specs = [TensorSpec(name, torch.float32, shape) for name, shape in shapes.items()]
    for whole in adapter.whole.values():
        spec = adapter.file.entries[whole.stored].spec
        specs.append(replace(spec, dtype=torch.float32) if whole.kind == "add" else spec)
    specs.sort(key=lambda spec: (-spec.dtype.itemsize, spec.name))
    with staged(out) as folder:
        tensors = _tensors(adapter, rank, compact=compact)
        write_shard(folder, Shard(ADAPTER_WEIGHTS, tuple(specs)), tensors)
        config = to_json(_config(adapter, rank, compact=compact))
        (folder / ADAPTER_CONFIG).write_text(config, encoding="utf-8")
        # The record of the run tells later exports the base and how the adapter was trained.
        if record := record_of_adapter(adapter.path):
            RunFolder(folder).record.write_text(to_json(record), encoding="utf-8")


def refuse_unreadable(adapter: Adapter, server: Server) -> None:
    """Refuse what ``server`` would refuse, or would drop without a word.

    Raises:
        CheckpointError: With the reason and what to do.
    """
    if server == "sglang":
        raise CheckpointError(
            f"{adapter.path}: SGLang does not read expert adapters of gpt-oss; merge instead: "
            f"gptoss-tune merge {shlex.quote(str(adapter.path))} --format bf16 --out DIR"
        )
    if server == "peft":
        return
    _refuse_for_vllm(adapter)
    for module in adapter.targets:
        partner = _partner(module)
        if partner is not None and partner not in adapter.targets:
            raise CheckpointError(
                f"{adapter.path}: has factors for {module} and none for {partner}; vLLM needs both "
                "projections of the experts: train with both in lora.target_parameters, or merge"
            )
    if largest_rank(adapter) > VLLM_RANKS[-1]:
        raise CheckpointError(
            f"{adapter.path}: has rank {largest_rank(adapter)}; vLLM reads at most {VLLM_RANKS[-1]}"
        )


def _refuse_for_vllm(adapter: Adapter) -> None:
    """Refuse what is no factor of attention or experts: vLLM refuses it, or leaves it out.

    Raises:
        CheckpointError: With the reason, and the command that merges.
    """
    what = None
    if any(target.dora for target in adapter.targets.values()):
        what = "rescales rows by DoRA, which vLLM refuses"
    elif any(whole.kind == "add" for whole in adapter.whole.values()):
        what = "has biases on B (lora_bias), which vLLM refuses"
    elif adapter.whole:
        first = min(adapter.whole)
        why = "refuses modules_to_save"
        if adapter.whole[first].kind == "rows":
            why = "reads no single rows (trainable_token_indices)"
        what = f"holds trained values of {first}; vLLM {why}"
    else:
        linear = [module for module, target in adapter.targets.items() if not target.experts]
        other = [module for module in linear if ".self_attn." not in module]
        if other:
            what = f"changes {other[0]}, which vLLM does not adapt for gpt-oss"
    if what is not None:
        raise CheckpointError(
            f"{adapter.path}: {what}; merge instead: gptoss-tune merge "
            f"{shlex.quote(str(adapter.path))} --format bf16 --out DIR"
        )


def serve_command(adapter: Adapter, out: Path, server: Server, expert_format: ExpertFormat) -> str:
    """Return the command, or the lines of Python, that load the base with this adapter.

    Args:
        adapter: What was written.
        out: The folder that was written.
        server: Who reads it.
        expert_format: The base's: PEFT finds no expert weights in a base that stays packed.
    """
    base = adapter.config.get("base_model_name_or_path") or "BASE"
    if server == "vllm":
        rank = vllm_rank([largest_rank(adapter)])
        return (
            f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank} "
            f"--lora-modules {shlex.quote(f'{out.name}={out.absolute()}')}"
        )
    packed = expert_format == "mxfp4"
    imports = "AutoModelForCausalLM, Mxfp4Config" if packed else "AutoModelForCausalLM"
    unpack = ", quantization_config=Mxfp4Config(dequantize=True)" if packed else ""
    return (
        "import torch\n"
        "from peft import PeftModel\n"
        f"from transformers import {imports}\n"
        f"base = AutoModelForCausalLM.from_pretrained({base!r}, dtype=torch.bfloat16{unpack})\n"
        f"model = PeftModel.from_pretrained(base, {str(out)!r})"
    )


def largest_rank(adapter: Adapter) -> int:
    """Return the largest rank among the adapter's targets."""
    return max(target.rank for target in adapter.targets.values())


def vllm_rank(ranks: Iterable[int]) -> int:
    """Return the least ``--max-lora-rank`` that holds adapters of these ranks, at most 512."""
    largest = max(ranks)
    return next(rank for rank in VLLM_RANKS if rank >= largest)


def _partner(module: str) -> str | None:
    """Return the other expert projection of the same layer, or None for a linear layer."""
    stem, _, name = module.rpartition(".")
    return {"gate_up_proj": f"{stem}.down_proj", "down_proj": f"{stem}.gate_up_proj"}.get(name)


def _named_shapes(
    target: Target, rank: int | None, experts: int | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    rows, (into, out) = (rank or target.rank) * (experts or 1), target.features
    a, b = (f"{target.key}.{letter}" for letter in target.letters)
    yield a, (rows, out if target.embedding else into)
    yield b, (into if target.embedding else out, rows)
    if target.dora:
        yield target.magnitude, (target.features[1],)


def _tensors(adapter: Adapter, rank: int | None, *, compact: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors in PEFT's layout, factors folded and padded to a given ``rank``."""
    for whole in adapter.whole.values():
        trained = adapter.file.read(whole.stored)
        if whole.kind == "add":  # with the scaling in B, a bias on B has it too
            trained = trained.float() * (1.0 if rank is None else whole.scaling)
        yield whole.stored, trained
    for module, target in adapter.targets.items():
        change = adapter.read(module)
        a, b = change.A, change.B
        if rank is not None:
            a, b = _padded(change, rank)
        if compact and target.chosen is not None:
            a, b = a[list(target.chosen)], b[list(target.chosen)]
        # [E, out, r] -> [out, r, E] -> columns rank by rank
        a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        pair = (b.T, a.T) if target.embedding else (a, b)
        for letter, factor in zip(target.letters, pair, strict=True):
            yield f"{target.key}.{letter}", factor.contiguous()
        if change.magnitude is not None:
            yield target.magnitude, change.magnitude


def _padded(change: LowRank, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B at ``rank``, zeros beyond the old one, the scaling inside B."""
    missing = rank - change.A.shape[1]
    a = torch.nn.functional.pad(change.A, (0, 0, 0, missing))
    b = torch.nn.functional.pad(change.B * change.scaling, (0, missing))
    return a, b


def _config(adapter: Adapter, rank: int | None, *, compact: bool) -> dict[str, Any]:
    """Return ``adapter_config.json``; with ``rank``, one rank and a scaling of 1 everywhere."""
    config = dict(adapter.config)
    if config.get("init_lora_weights") not in (None, True, False):
        # How the factors started says nothing of what they are; PEFT would compute the start again.
        config["init_lora_weights"] = True
        config.pop("eva_config", None)
    if adapter.single:
        config.update(_stated_anew(adapter))
    if not compact:
        config.pop(CHOSEN_EXPERTS, None)  # those without factors are zeros now
    if adapter.swapped:
        config.pop("peft_version", None)  # it would mark the repaired file as swapped again
    if rank is not None:
        config.update(r=rank, lora_alpha=rank, rank_pattern={}, alpha_pattern={}, use_rslora=False)
        config.setdefault("target_modules", [])  # vLLM wants the key; it reads the file's names
    return config


def _stated_anew(adapter: Adapter) -> dict[str, Any]:
    """Return targets, ranks and alphas of what ``adapter`` changes, as a recipe states them.

    Its own configuration is of layers that the base does not have. Where layers differ from one
    another, each target stands there by its whole name.
    """
    groups: dict[str, list[Target]] = {}
    for module, target in adapter.targets.items():
        name = re.sub(r"^model\.layers\.\d+\.(self_attn\.)?", "", module)
        groups.setdefault(name, []).append(target)
    acts = {name: {(t.rank, t.scaling) for t in group} for name, group in groups.items()}
    in_all = (len(group) == adapter.layers for name, group in groups.items() if name != "lm_head")
    alike = all(in_all) and all(len(found) == 1 for found in acts.values())
    experts = [name for name, group in groups.items() if group[0].experts]
    linear = [name for name in groups if name not in experts]
    plain = {act for name in linear or experts for act in acts[name]}
    stated: dict[str, Any] = {
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "use_rslora": False,
    }
    if not alike or len(plain) > 1:
        targets = adapter.targets
        return stated | {
            "target_modules": [module for module, target in targets.items() if not target.experts],
            "target_parameters": [module for module, target in targets.items() if target.experts],
            "rank_pattern": {module: target.rank for module, target in targets.items()},
            "alpha_pattern": {m: target.scaling * target.rank for m, target in targets.items()},
        }
    ((rank, scaling),) = plain
    others = {name: act for name in experts for act in acts[name] if act != (rank, scaling)}
    return stated | {
        "r": rank,
        "lora_alpha": scaling * rank,
        "target_modules": linear,
        "target_parameters": experts,
        "rank_pattern": {name: act[0] for name, act in others.items()},
        "alpha_pattern": {name: act[0] * act[1] for name, act in others.items()},
    }
