"""GPUs a run may be planned for: memory as torch sees it, and the data sheet's bf16 rate.

Memory is the total that torch names in its out-of-memory messages, rounded down, in GiB; a card
sold as 80 GB has 79.1. Public reports were looked up for H200 (139.72 to 139.81), B200 (178.35),
RTX PRO 6000 (94.97), RTX 5090 (31.36) and RTX 3060 (11.75 and 11.76; 12.00 on Windows); RTX 4070's
is from memory. The rate is dense bf16 with fp32 accumulation, half of
what a data sheet names with sparsity, and no training reaches it: a plan multiplies it by a stated
efficiency. Looked up for A100, H100, H200, B200, L4, L40S, RTX 3090, 4080, 4090 and 5090 in copies
of NVIDIA's data sheets and whitepapers; A10G, MI300X and RTX PRO 6000 (for which one source halves
it) are from memory, and so are the memories' rates. None of it was measured here.

Of V100 (31.75) and GB10 reports were looked up too: GB10 shares 121.69 GiB with its CPU, of which a
process found at most 102 free. T4, H100 NVL, GH200, B300 and all rates of these six are from
memory. T4 and V100 have no units for bf16: torch computes it at the rate of fp32, which stands here
(16-bit fp16, eight times as fast, is not trained in), and a plan never proposes them.

``card`` reads a name as people write it, ``detected_gpus`` asks the driver's own tools which cards
this machine has: torch would take seconds to import, and is not there before it is installed.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from gptoss_tune.errors import RecipeError


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: What ``--gpu`` takes.
        memory_gib: Memory a process can allocate on an idle card.
        tflops: Dense bf16 TFLOP/s of the data sheet.
        memory_tb_per_s: The memory's rate by the data sheet, in 1e12 bytes a second.
    """

    name: str
    memory_gib: float
    tflops: float
    memory_tb_per_s: float

    @property
    def model(self) -> str:
        """The name without its memory: ``a100`` of ``a100-80gb``."""
        return self.name.partition("-")[0]

    @property
    def sold_gb(self) -> int:
        """The memory that it is sold with, in GB: 80 of ``a100-80gb``."""
        return int(self.name.partition("-")[2].removesuffix("gb"))

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies in bf16, or emulates that in fp32."""
        return self.model not in ("t4", "v100")

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gib * 2**30)


GPUS = (
    Gpu("rtx4070-12gb", 11.6, 58, 0.504),
    Gpu("rtx3060-12gb", 11.7, 25, 0.36),
    Gpu("t4-16gb", 14.5, 8, 0.32),
    Gpu("rtx4080-16gb", 15.6, 97, 0.717),
    Gpu("v100-16gb", 15.7, 16, 0.9),
    Gpu("l4-24gb", 22.0, 121, 0.3),
    Gpu("a10g-24gb", 22.0, 70, 0.6),
    Gpu("rtx3090-24gb", 23.5, 71, 0.936),
    Gpu("rtx4090-24gb", 23.5, 165, 1.008),
    Gpu("rtx5090-32gb", 31.3, 209, 1.792),
    Gpu("v100-32gb", 31.7, 16, 0.9),
    Gpu("a100-40gb", 39.4, 312, 1.555),
    Gpu("l40s-48gb", 44.4, 362, 0.864),
    Gpu("a100-80gb", 79.1, 312, 2.039),
    Gpu("h100-80gb", 79.1, 989, 3.35),
    Gpu("h100nvl-94gb", 93.1, 835, 3.9),
    Gpu("gh200-96gb", 94.5, 989, 4),
    Gpu("rtxpro6000-96gb", 94.9, 503, 1.792),
    Gpu("gb10-128gb", 101.0, 125, 0.273),
    Gpu("h200-141gb", 139.7, 989, 4.8),
    Gpu("gh200-144gb", 139.7, 989, 4.9),
    Gpu("b200-180gb", 178.0, 2250, 8),
    Gpu("mi300x-192gb", 191.5, 1307, 5.3),
    Gpu("b300-288gb", 267.0, 2250, 8),
)
"""Known cards by memory."""

DEFAULT_GPU = "h100-80gb"

# Words of a driver's or a shop's name that tell no model apart here.
_NOISE = re.compile(
    r"nvidia|geforce|tesla|amd|instinct|radeon|gpu|pcie|oam|ac|sxm\d?|hbm\d?e?|blackwell|"
    r"workstation|server|edition|max|q|super|ti|d|generation"
)
_WITH_UNIT = re.compile(r"(\d{2,3})(?:g|gb|gib)")


def card(name: str) -> Gpu:
    """Return the card that ``name`` means: ``4090``, ``RTX 4090``, ``A100 80GB``, ``a100-80``.

    Raises:
        RecipeError: It is not known, or several cards have that name; the message says which.
    """
    model, gb = _read(name)
    found = _of_model(model)
    if gb is None and not found:  # written in one word: a10080gb
        squeezed = model.removesuffix("gb")
        found = [known for known in GPUS if f"{known.model}{known.sold_gb}" == squeezed]
    fitting = [known for known in found if gb in (None, known.sold_gb)]
    if len(fitting) == 1:
        return fitting[0]
    names = " or ".join(known.name for known in found)
    if fitting:
        raise RecipeError(
            f"--gpu: got {name!r}, which is sold with more than one size of memory; write {names}"
        )
    if found:
        raise RecipeError(
            f"--gpu: got {name!r}, expected the memory it is sold with; write {names}"
        )
    nearest = _nearest(model, gb)
    hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
    raise RecipeError(
        f"--gpu: got {name!r}, which is not listed{hint}; expected one of "
        f"{', '.join(known.name for known in GPUS)}; choose the one with the same memory "
        "if yours is not listed"
    )


def _read(name: str) -> tuple[str, int | None]:
    """Return the model in a name, in lower case without spaces, and the GB where it tells them."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    words = [word for word in words if not _NOISE.fullmatch(word)]
    model, gb = "", None
    for word in words:
        told = _WITH_UNIT.fullmatch(word)
        if told is None and re.search(r"\d", model):  # which "H 100" is not, and "A100 80" is
            told = re.fullmatch(r"(\d{2,3})", word)
        if told is not None:
            gb = int(told[1])
        elif gb is None or word not in ("g", "gb", "gib"):
            model += word
    return model, gb


def _of_model(model: str) -> list[Gpu]:
    """Return the cards of a model: ``4090`` means the RTX, ``h200nvl`` an H200."""
    for meant in (model, f"rtx{model}", model.removesuffix("nvl")):
        if found := [known for known in GPUS if known.model == meant]:
            return found
    return []


def _nearest(model: str, gb: int | None) -> list[str]:
    """Return the names of the cards that are most like an unknown one, by memory, else by name."""
    by_memory = [known.name for known in GPUS if known.sold_gb == gb]
    if by_memory:
        return by_memory
    by_name = {spelled: known.model for known in GPUS for spelled in _spellings(known.model)}
    close = difflib.get_close_matches(model, by_name, n=4, cutoff=0.5)
    models = list(dict.fromkeys(by_name[spelled] for spelled in close))[:3]
    return [known.name for wanted in models for known in _of_model(wanted)]


def _spellings(model: str) -> tuple[str, ...]:
    return (model, model.removeprefix("rtx"))


def smallest_with(peak: int) -> Gpu | None:
    """Return the bf16 card with the least memory that holds ``peak``, the fastest of equals."""
    fitting = [known for known in GPUS if known.memory_bytes >= peak and known.has_bf16]
    return min(fitting, key=lambda known: (known.memory_gib, -known.tflops), default=None)


@dataclass(frozen=True)
class DetectedGpu:
    """A card of this machine, or a part of one.

    Attributes:
        name: As the driver calls it.
        memory_gib: As the driver tells it, of which a process gets 1 to 3 % less; 0 where it shares
            the host's and tells none.
        known: The card of ``GPUS`` that it is; ``None`` where none has its model and memory.
    """

    name: str
    memory_gib: float
    known: Gpu | None

    @property
    def planned_as(self) -> Gpu | None:
        """The card to plan with: itself, or the slowest known one that has no more memory."""
        if self.known is not None:
            return self.known
        below = [gpu for gpu in GPUS if gpu.memory_gib <= self.memory_gib and gpu.has_bf16]
        return max(below, key=lambda gpu: (gpu.memory_gib, -gpu.tflops), default=None)


def known_gpu(name: str, memory_gib: float) -> Gpu | None:
    """Return the card that a driver's name and memory mean; ``None`` for one that is not listed.

    The memory decides, not the name: a laptop's 4090 has 16 GB, and a GH200 is named by its CPU's.
    """
    found = _of_model(_read(name)[0])
    if not memory_gib:
        return found[0] if len(found) == 1 else None
    near = min(found, key=lambda gpu: abs(gpu.memory_gib - memory_gib), default=None)
    apart = abs(near.memory_gib - memory_gib) if near else 0.0
    return near if near and apart <= 0.08 * near.memory_gib else None


def detected_gpus() -> list[DetectedGpu]:
    """Return the cards that a process started here would see, in the driver's order.

    ``nvidia-smi`` is asked, then ``rocm-smi``; a machine with neither has none, and so has one
    whose driver does not answer. ``CUDA_VISIBLE_DEVICES`` and ``HIP_VISIBLE_DEVICES`` count.
    """
    return _nvidia() or _amd()


def _nvidia() -> list[DetectedGpu]:
    fields = "uuid,mig.mode.current,name,memory.total"
    told = _said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines()]
    rows = [row for row in rows if len(row) == 4]
    entries: list[tuple[str, DetectedGpu]] = []
    for uuid, mig, name, mib in rows:
        if mig == "Enabled":  # torch sees its parts, which take the card's place
            entries += _parts(uuid, name)
            continue
        memory = int(mib) / 1024 if mib.isdigit() else 0.0
        entries.append((uuid, DetectedGpu(name, memory, known_gpu(name, memory))))
    return _visible(entries, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _parts(uuid: str, name: str) -> list[tuple[str, DetectedGpu]]:
    """Return the MIG devices of one card; a profile of 40gb has 4 % less than 40 GiB."""
    found, ours = [], False
    for line in _said("nvidia-smi", "-L").splitlines():
        if line.startswith("GPU "):
            ours = uuid in line
        told = re.search(r"MIG (\d+g\.(\d+)gb\S*).*UUID: (MIG-[\w/-]+)", line)
        if ours and told:
            part = DetectedGpu(f"{name} MIG {told[1]}", int(told[2]) * 0.96, None)
            found.append((told[3], part))
    return found


def _amd() -> list[DetectedGpu]:
    told = _said("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
    entries: list[tuple[str, DetectedGpu]] = []
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        for place, facts in json.loads(told).items():
            if not re.fullmatch(r"card\d+", place):
                continue
            facts = {key.lower(): value for key, value in facts.items()}
            name = facts.get("card series") or facts.get("card model") or "AMD GPU"
            memory = int(facts.get("vram total memory (b)", 0)) / 2**30
            entries.append((place, DetectedGpu(name, memory, known_gpu(name, memory))))
    shown = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return _visible(entries, shown)


def _visible(entries: list[tuple[str, DetectedGpu]], shown: str | None) -> list[DetectedGpu]:
    """Return what a list of numbers or UUIDs leaves to be seen; it ends at what is neither."""
    if shown is None:
        return [gpu for _, gpu in entries]
    found = []
    for word in shown.split(","):
        word = word.strip()
        if word.isdigit():
            named = entries[int(word) : int(word) + 1]
        else:
            named = [entry for entry in entries if word and entry[0].startswith(word)][:1]
        if not named:
            break
        found.append(named[0][1])
    return found


def _said(program: str, *arguments: str) -> str:
    """Return what a program prints; nothing where it is missing, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
