"""An adapter as llama.cpp reads one: a GGUF file of LoRA factors, experts included.

llama.cpp multiplies the factors beside the weights, those of the experts by the experts that the
router chose. What is unlike PEFT's file:

* ``gate_up_proj``, whose outputs alternate, is two tensors there; so A ``[E, r, in]`` is written
  twice, and the even rows of B ``[E, 2*I, r]`` go to the gate, the odd ones to up;
* one ``alpha`` holds for all tensors, each is scaled by ``alpha / r`` of its own rank; other
  scalings are folded into B;
* factors of experts that were not chosen are zeros.

llama.cpp's own converter has no place for factors of experts that are stacked as PEFT stacks them.
Rejected: folding factors into a copy of the base, which is what a merge is.
"""

# Legend: E experts, r rank, I intermediate; ``in`` and ``out`` of a projection.

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from torch import Tensor

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.export.gguf.layout import by_name, plan_tensors
from gptoss_tune.export.merge.options import GGUF_MAX_SHARD_SIZE
from gptoss_tune.export.merge.steps import plan_steps
from gptoss_tune.files.atomic import staged, to_json
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import record_of_adapter
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import Adapter
from gptoss_tune.weights.adapter_targets import Target
from gptoss_tune.weights.names import layer_of

_HALVES = {"gate_up_proj": {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}}
"""Rows of B of the projections that are several tensors in llama.cpp."""


def write_lora(adapter: Adapter, out: Path) -> Path:
    """Write ``adapter`` as a GGUF file into the new folder ``out``; return the file.

    Factors are fp32, read and written one target at a time. The record of the run lies beside it.

    Raises:
        CheckpointError: It holds more than factors, or ``out`` exists.
        MachineError: ``gguf`` is not installed, or the disk is full or cannot be written.
    """
    refuse_unwritable(adapter)
    name = f"{out.name.removesuffix('-lora')}-lora.gguf"
    with staged(out) as folder:
        _write(adapter, folder / name, out.name)
        if record := record_of_adapter(adapter.path):
            RunFolder(folder).record.write_text(to_json(record), encoding="utf-8")
    return out / name


def refuse_unwritable(adapter: Adapter) -> None:
    """Refuse what a GGUF file of factors cannot hold.

    Raises:
        CheckpointError: With the reason and what to do.
        MachineError: ``gguf`` is not installed.
    """
    targets = adapter.targets.values()
    what = None
    if any(target.dora for target in targets):
        what = "DoRA rescales each row of the weight, which llama.cpp applies to no LoRA"
    elif adapter.whole:
        what = f"values of {min(adapter.whole)} lie beside its factors, where a LoRA has no place"
    elif any(target.embedding for target in targets):
        what = "it has factors of the embedding, which are not laid out for llama.cpp here"
    if what is not None:
        raise CheckpointError(
            f"{adapter.path}: {what}; merge instead: "
            f"gptoss-tune merge {shlex.quote(str(adapter.path))} --format gguf --out DIR"
        )
    if importlib.util.find_spec("gguf") is None:
        raise MachineError(
            "a GGUF file is written by the package gguf, which is not installed here; "
            "pip install 'gptoss-tune[gguf]'"
        )


def serve_lora_command(file: Path, adapter: Adapter, checkpoint: Checkpoint) -> str:
    """Return the commands that make the base a GGUF and serve it with the factors in ``file``.

    llama.cpp is given one file; where the base's GGUF is in several, the first.

    Args:
        file: What ``write_lora`` wrote.
        adapter: What it was written of.
        checkpoint: The base, the values of whose experts its GGUF keeps.
    """
    base = adapter.config.get("base_model_name_or_path") or "BASE"
    folder, expert_format = f"{Path(base).name}-gguf", checkpoint.expert_format
    layout = "gguf" if expert_format == "mxfp4" else "gguf-bf16"
    tensors = by_name(plan_tensors(plan_steps(checkpoint, [], expert_format))).values()
    splits = sum(tensor.nbytes for tensor in tensors) > GGUF_MAX_SHARD_SIZE
    model = shlex.quote(f"{folder}/{folder}-{expert_format}")
    model += "-00001-of-*.gguf" if splits else ".gguf"
    return (
        f"gptoss-tune merge --base {shlex.quote(base)} --format {layout} "
        f"--out {shlex.quote(folder)}\n"
        f"llama-server --model {model} --lora {shlex.quote(str(file))} --jinja"
    )


def _write(adapter: Adapter, path: Path, name: str) -> None:
    """Write the header, then the factors of one target after the other."""
    import gguf

    layers = 1 + max(layer_of(module) or 0 for module in adapter.targets)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, layers)
    alpha = max(target.rank for target in adapter.targets.values())
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT_OSS])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_name(name)
    for target in adapter.targets.values():
        for module, rows in _tensors_of(target.module).items():
            for key, shape in zip(("lora_a", "lora_b"), _shapes(target, rows), strict=True):
                whole, size = f"{names.get_name(module)}.weight.{key}", 4 * prod(shape)
                writer.add_tensor_info(whole, shape, np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for factor in _factors(adapter, alpha):
        writer.write_tensor_data(factor.contiguous().numpy())
    writer.close()


def _tensors_of(module: str) -> dict[str, slice]:
    """Return the tensors that a weight is in llama.cpp, and which rows of it each is."""
    stem, _, name = module.rpartition(".")
    halves = _HALVES.get(name, {name: slice(None)})
    return {f"{stem}.{half}".lstrip("."): rows for half, rows in halves.items()}


def _shapes(target: Target, rows: slice) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A ``[E, r, in]`` and B ``[E, out, r]``, of a linear layer without E."""
    into, out = target.features
    stack = () if target.experts is None else (target.experts,)
    return (*stack, target.rank, into), (*stack, len(range(out)[rows]), target.rank)


def _factors(adapter: Adapter, alpha: int) -> Iterator[Tensor]:
    """Yield the factors in the order of the header, the scaling in B but for ``alpha / r``."""
    for module, target in adapter.targets.items():
        change = adapter.read(module)
        scaled = change.B * (change.scaling * target.rank / alpha)
        for rows in _tensors_of(module).values():
            for factor in (change.A, scaled[:, rows]):
                yield factor if target.experts is not None else factor[0]
