"""GPUs a run may be planned for: memory as torch sees it, and the data sheet's bf16 rate.

Memory is the total that torch names in its out-of-memory messages, rounded down, in GiB; a card
sold as 80 GB has 79.1. Public reports were looked up for H200 (139.72 to 139.81), B200 (178.35),
RTX PRO 6000 (94.97) and RTX 5090 (31.36). The rate is dense bf16 with fp32 accumulation, half of
what a data sheet names with sparsity, and no training reaches it: a plan multiplies it by a stated
efficiency. Looked up for A100, H100, H200, B200, L4, L40S, RTX 3090, 4080, 4090 and 5090 in copies
of NVIDIA's data sheets and whitepapers; A10G, MI300X and RTX PRO 6000 (for which one source halves
it) are from memory, and so are the memories' rates. None of it was measured here.

Of V100 (31.75) and GB10 reports were looked up too: GB10 shares 121.69 GiB with its CPU, of which a
process found at most 102 free. T4, H100 NVL, GH200, B300 and all rates of these six are from
memory. T4 and V100 have no units for bf16: torch computes it at the rate of fp32, which stands here
(16-bit fp16, eight times as fast, is not trained in), and a plan never proposes them.
"""

from __future__ import annotations

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
    def has_bf16(self) -> bool:
        """Whether it multiplies in bf16, or emulates that in fp32."""
        return not self.name.startswith(("t4-", "v100-"))

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gib * 2**30)


GPUS = (
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


def card(name: str) -> Gpu:
    """Return the card ``name``.

    Raises:
        RecipeError: It is not known.
    """
    for known in GPUS:
        if known.name == name.lower():
            return known
    raise RecipeError(
        f"--gpu: got {name!r}, expected one of {', '.join(known.name for known in GPUS)}; choose "
        "the one with the same memory if yours is not listed"
    )


def smallest_with(peak: int) -> Gpu | None:
    """Return the bf16 card with the least memory that holds ``peak``, the fastest of equals."""
    fitting = [known for known in GPUS if known.memory_bytes >= peak and known.has_bf16]
    return min(fitting, key=lambda known: (known.memory_gib, -known.tflops), default=None)
