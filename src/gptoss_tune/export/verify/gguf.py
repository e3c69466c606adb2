"""Verification of a GGUF: its keys, its tensors, and each of its values.

The values are computed again from base and adapters, as the safetensors export of the same merge
holds them, and compared with what the library ``gguf`` decodes: not with bytes that the writer
packed. Then the file is read as a checkpoint (``export.gguf.view``) and asked what every merged
folder is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gptoss_kernels import dequantize
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.assets import completed_companions
from gptoss_tune.export.device import arithmetic_of, compute_device
from gptoss_tune.export.gguf.layout import (
    GgufStep,
    GgufTensor,
    by_name,
    kind_of,
    plan_tensors,
    rows_of,
)
from gptoss_tune.export.gguf.metadata import headers, refuse_inexpressible, require_gguf
from gptoss_tune.export.gguf.view import GgufCheckpoint, stored_rows
from gptoss_tune.export.merge.changes import changed_base
from gptoss_tune.export.merge.lineage import REPORT
from gptoss_tune.export.merge.produce import Producer
from gptoss_tune.export.merge.quantize import Survival
from gptoss_tune.export.merge.steps import WeightedAdapter, merged_config, plan_steps
from gptoss_tune.export.verify.verify import (
    Check,
    Verification,
    check_finite,
    check_hashes,
    compare_weights,
    said,
)
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.checkpoints import MANIFEST
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.gguf.file import (
    GgufKey,
    GgufModel,
    open_gguf,
    read_header,
    refuse_no_model,
)
from gptoss_tune.weights.names import ExpertFormat

_NAMED_AFTER_FOLDER = {
    f"general.{key}"
    for key in ("name", "basename", "finetune", "version", "organization", "size_label")
}
"""Keys that are made from what the folder was called, which its files do not tell."""
_WANTED_KEYS = ("general.architecture", "tokenizer.ggml.tokens", "tokenizer.chat_template")
_HOW = {
    "MXFP4": "values of each block, decoded by gguf",
    "BF16": "bits",
    "F32": "bits of the widened bf16",
}
_SHOWN = 80
_BAND = 256
_ONE_FILE = 2**62


@dataclass
class KindReport:
    """What was compared of one kind of tensor.

    Attributes:
        kind: ``experts gate`` and the like.
        type: How the file stores it.
        tensors: How many there are.
        compared: How.
        max_difference: The largest difference of a value; 0 in a right file.
    """

    kind: str
    type: str
    tensors: int
    compared: str
    max_difference: float


def verify_gguf(
    place: Path,
    base: Checkpoint | None = None,
    adapters: Sequence[WeightedAdapter] = (),
    *,
    logits: bool = True,
    device: str = "cpu",
) -> Verification:
    """Verify the GGUF ``place``, its file or its folder, as ``verify`` does a merged folder.

    Args:
        place: The file, one of several files of a model, or their folder.
        base: What was merged into; without it only the file itself is checked.
        adapters: What was merged.
        logits: Also compare logits, which reads base and file once more.
        device: Where to compute.

    Raises:
        CheckpointError: The base is none that a GGUF can hold.
        MachineError: The library ``gguf`` is not installed.
    """
    try:
        model = open_gguf(place)
        refuse_no_model(place, model)
    except CheckpointError as error:
        return Verification(str(place), (Check("files", False, str(error)),))
    folder = place if place.is_dir() else place.parent
    names = tuple(file.path.name for file in model.files)
    ours = _is_of_a_merge(folder, names)
    checks = [
        Check("files", True, f"{len(model.files)} files whole, {len(model.tensors)} tensors"),
        check_hashes(folder, () if place.is_dir() else names)
        if ours or place.is_dir()
        else Check("hashes", None, f"not checked: no {MANIFEST} beside it names {names[0]}"),
    ]
    if base is None:
        missing = [f"{key} is missing" for key in _WANTED_KEYS if key not in model.keys]
        checks.append(Check("keys", not missing, said(missing) or "those that chat needs"))
        asked = ("tensors", "values", "finite", "untouched tensors", "changes", "logits")
        reason = "not checked: needs the adapter and its base"
        return Verification(str(place), (*checks, *(Check(n, None, reason) for n in asked)))
    require_gguf()
    refuse_inexpressible(base)
    packed = any(entry.type == "MXFP4" for entry in model.tensors.values())
    expert_format: ExpertFormat = "mxfp4" if packed else "bf16"
    source = changed_base(base, adapters)
    steps = plan_tensors(plan_steps(source, adapters, expert_format))
    report = _report(folder) if ours or not (folder / MANIFEST).is_file() else {}
    checks.append(_check_keys(model, base, expert_format, steps, report.get("name")))
    tensors = _check_tensors(model, by_name(steps))
    checks.append(tensors)
    if not tensors.passed:
        asked = ("values", "finite", "untouched tensors", "changes", "logits")
        reason = "not done: the tensors are not those of this base"
        return Verification(str(place), (*checks, *(Check(n, None, reason) for n in asked)))
    producer = Producer(base, adapters, compute_device(device))
    # In another order of sums, or by another program, the same merge may round otherwise.
    exactly = report.get("computed_by") == arithmetic_of(producer.device)
    checks.append(_check_values(model, producer, steps, exactly=exactly))
    config = merged_config(base, expert_format)
    view = GgufCheckpoint(place, model, steps, config, expert_format)
    checks.append(check_finite(view))
    compared, targets = compare_weights(
        base, view, adapters, logits=logits, device=device, tokenizer=base.path
    )
    model.close()
    return Verification(str(place), (*checks, *compared), tuple(targets))


def _is_of_a_merge(folder: Path, names: Sequence[str]) -> bool:
    """Return whether the manifest of ``folder`` names the files, as a merge's does."""
    if not (folder / MANIFEST).is_file():
        return False
    files = read_object(inside(folder, MANIFEST, f"{folder}: has")).get("files")
    return isinstance(files, dict) and set(names) <= files.keys()


def _report(folder: Path) -> dict[str, Any]:
    """Return what the merge said of itself; empty where another program wrote the file."""
    if not (folder / REPORT).is_file():
        return {}
    report = read_object(inside(folder, REPORT, f"{folder}: has"))
    return report if report.get("container") == "gguf" else {}


def _check_keys(
    model: GgufModel,
    base: Checkpoint,
    expert_format: ExpertFormat,
    steps: Sequence[GgufStep],
    name: str | None,
) -> Check:
    """The keys are those that llama.cpp's converter writes for the same weights."""
    header = headers(
        base,
        expert_format,
        name or "model",
        list(by_name(steps).values()),
        completed_companions(base),
        stem="model",
        max_shard_size=_ONE_FILE,
    )[0]
    wanted = read_header(header.start)[0]
    passed_over = set() if name else _NAMED_AFTER_FOLDER
    faults = [
        _differing(key, model.keys.get(key), wanted.get(key))
        for key in sorted((set(wanted) | set(model.keys)) - passed_over)
        if model.keys.get(key) != wanted.get(key)
    ]
    compared = f"{len(wanted)} keys, in type and value"
    if not name:
        compared += "; not those that are made from the folder's name"
    return Check("keys", not faults, said(faults) or compared)


def _differing(name: str, found: GgufKey | None, wanted: GgufKey | None) -> str:
    """Return in what a key differs; of long texts and arrays the first place that does."""
    if found is None or wanted is None or found.type != wanted.type:
        return f"{name} is {_shown(found)}, expected {_shown(wanted)}"
    one, other = found.value, wanted.value
    if max(len(ascii(one)), len(ascii(other))) <= _SHOWN or not isinstance(one, str | list):
        return f"{name} is {_shown(found)}, expected {_shown(wanted)}"
    pairs = enumerate(zip(one, other, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
    unit = "character" if isinstance(one, str) else "index"
    lengths = "" if len(one) == len(other) else f" (length {len(one)}, expected {len(other)})"
    return f"{name} at {unit} {place} is {_piece(one, place)}, expected {_piece(other, place)}" + (
        lengths
    )


def _piece(value: str | list[Any], place: int) -> str:
    """Return what a text or an array has from ``place`` on."""
    if place >= len(value):
        return "its end"
    return _cut(value[place : place + _SHOWN] if isinstance(value, str) else value[place])


def _shown(key: GgufKey | None) -> str:
    """Return a key's type and value, cut."""
    return "missing" if key is None else f"{key.type} {_cut(key.value)}"


def _cut(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_tensors(model: GgufModel, wanted: dict[str, GgufTensor]) -> Check:
    """Every tensor is there in its shape and type, and none beside."""
    faults = [f"{name} is missing" for name in wanted if name not in model.tensors]
    for name, entry in model.tensors.items():
        expected = wanted.get(name)
        if expected is None:
            faults.append(f"{name} is none of this model")
        elif (entry.shape, entry.type) != (expected.shape, expected.type):
            faults.append(
                f"{name} is {entry.type} {list(entry.shape)}, expected {expected.type} "
                f"{list(expected.shape)}"
            )
    return Check("tensors", not faults, said(faults) or f"{len(wanted)}, in shape and type")


def _check_values(
    model: GgufModel, producer: Producer, steps: Sequence[GgufStep], *, exactly: bool
) -> Check:
    """Each value is the one that the safetensors export of the same merge holds.

    Args:
        model: The file.
        producer: Computes the values again.
        steps: What the tensors are made of.
        exactly: Whether a change has to be rounded as it is here; otherwise a changed tensor that
            differs is left to the check of the changes, which knows how far rounding may lead.
    """
    kinds: dict[tuple[str, str], KindReport] = {}
    faults, inexact = [], 0
    for step in steps:
        worst = {tensor.name: 0.0 for tensor in step.tensors}
        wrong: dict[str, str] = {}
        for row, parts in producer.tensors(step.step, Survival(step.step.source)):
            for tensor in step.tensors:
                count = len(parts[0])
                found = stored_rows(tensor, model, row, row + count)
                same, furthest = _compare(tensor, found, rows_of(tensor, parts))
                worst[tensor.name] = max(worst[tensor.name], furthest)
                if not same and tensor.name not in wrong:
                    unit = "expert" if "_exps." in tensor.name else "row"
                    where = f"{unit} {row}" if count == 1 else f"{unit}s {row} to {row + count - 1}"
                    wrong[tensor.name] = f"{tensor.name}: {where} differ, by {furthest:.3g} at most"
        if wrong and step.step.module is not None and not exactly:
            inexact += len(wrong)
        else:
            faults += wrong.values()
        for tensor in step.tensors:
            key = (kind_of(tensor.name), tensor.type)
            line = kinds.setdefault(key, KindReport(*key, 0, _HOW[tensor.type], 0.0))
            line.tensors += 1
            line.max_difference = max(line.max_difference, worst[tensor.name])
    detail = f"{sum(line.tensors for line in kinds.values())} tensors hold the values of the export"
    if inexact:
        detail += f"; {inexact} that an adapter changes are rounded otherwise, see changes"
    figures = {"kinds": [asdict(line) for line in kinds.values()]}
    return Check("values", not faults, said(faults) or detail, figures)


def _compare(tensor: GgufTensor, found: Tensor, parts: Sequence[Tensor]) -> tuple[bool, float]:
    """Return whether rows in the file hold the values of ``parts``, and the largest difference.

    Args:
        tensor: Whose rows they are.
        found: Them as ``stored_rows`` gives them.
        parts: The same rows as ``rows_of`` gives them.
    """
    if tensor.type != "MXFP4":
        wanted = parts[0].contiguous().to(found.dtype)
        if torch.equal(wanted.view(torch.uint8), found.view(torch.uint8)):
            return True, 0.0
        return False, (wanted.float() - found.float()).abs().max().item()
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as decode

    bands = found.flatten(0, 1).split(_BAND)
    blocks, scales = (part.flatten(0, 1).split(_BAND) for part in parts)
    same, furthest = True, 0.0
    for band, block, scale in zip(bands, blocks, scales, strict=True):
        values = torch.from_numpy(decode(band.numpy(), GGMLQuantizationType.MXFP4))
        wanted = dequantize(block.contiguous(), scale.contiguous(), dtype=torch.float32)
        if not torch.equal(values, wanted):
            same = False
            furthest = max(furthest, (values - wanted).abs().max().item())
    return same, furthest
