"""What the compiler made of a kernel: registers, spills, waits of the pipeline, widths of accesses.

A loop is pipelined when it goes on while copies are in flight: it then waits until at most ``n``
are left, n > 0 (``async_wait`` in Triton's GPU dialect), and, on Hopper, until at most ``n``
products are (``wgmma.wait_group``). A loop that waits for zero of either runs copy and product one
after the other, which costs more than any tile size can bring.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from fake_driver import CARDS

REGISTERS = 65536
"""32-bit registers of an NVIDIA streaming multiprocessor, on all of these."""
TENSOR_CORES = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma.sync"}
TENSOR_CORES["gfx942"] = "mfma"
WIDE = 16
"""Bytes of the widest access of a thread."""

_BITS = r"(?:\.v(\d))?\.[bfsu](\d+)"
_QUALIFIERS = r"(?:\.(?:L1|L2|level|relaxed|gpu|nc)(?:::[\w:]+)?)*"


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel, counted.

    Attributes:
        architecture: That it was compiled for.
        registers: A thread holds.
        spilled: Bytes of a thread that went to memory.
        shared: Bytes of a program's shared memory.
        warps: Of a program.
        instructions: Tensor-core instructions found.
        copy_waits: Copies still in flight at each wait of the pipeline, from Triton's dialect.
        product_waits: Products still in flight at each wait on Hopper, from PTX.
        tma_copies: Copies by TMA in the code: one for each operand of the loop, and the ones before
            the loop that run ahead; their waits are barriers, which carry no number.
        copies: Asynchronous copies by bytes a thread.
        loads: Loads from global memory by bytes a thread.
        stores: Stores to global memory by bytes a thread.
    """

    architecture: str
    registers: int
    spilled: int
    shared: int
    warps: int
    instructions: list[str]
    copy_waits: list[int] = field(default_factory=list)
    product_waits: list[int] = field(default_factory=list)
    tma_copies: int = 0
    copies: dict[int, int] = field(default_factory=dict)
    loads: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)

    @property
    def programs(self) -> int:
        """Programs that fit on a processor at a time."""
        card = CARDS[self.architecture]
        # Registers are handed out to a warp in units of 256; a program's shared memory takes 1 KiB
        # more than it asks for.
        of_warp = -(-max(self.registers, 1) * 32 // 256) * 256
        fits = [
            REGISTERS // (of_warp * self.warps),
            card.threads // (32 * self.warps),
            32 if self.shared == 0 else card.processor_shared_bytes // (self.shared + 1024),
        ]
        return min(32, *fits)


def machine_code(kernel: Any, architecture: str) -> MachineCode:
    """Count a ``CompiledKernel`` of Triton."""
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    if not architecture.startswith("sm_"):
        assembly = kernel.asm["amdgcn"]
        found = ["mfma"] if "mfma" in assembly else []
        return MachineCode(architecture, *amd_usage(assembly), shared, warps, found)
    ptx, dialect = kernel.asm["ptx"], kernel.asm["ttgir"]
    return MachineCode(
        architecture,
        *cubin_usage(kernel.asm["cubin"]),
        shared,
        warps,
        [name for name in ("wgmma", "tcgen05", "mma.sync") if name in ptx],
        copy_waits=[int(n) for n in re.findall(r"ttg\.async_wait.*?num = (\d+)", dialect)],
        product_waits=[int(n) for n in re.findall(r"wgmma\.wait_group[\w.]* (\d+)", ptx)],
        tma_copies=dialect.count("ttng.async_tma_copy_global_to_local"),
        copies=_count(
            int(size, 16)
            for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?(0x[0-9a-f]+)[,; ]", ptx)
        ),
        loads=_accesses("ld", ptx),
        stores=_accesses("st", ptx),
    )


def _accesses(operation: str, ptx: str) -> dict[int, int]:
    found = re.findall(rf"\b{operation}\.global{_QUALIFIERS}{_BITS}", ptx)
    return _count(int(vector or 1) * int(bits) // 8 for vector, bits in found)


def _count(sizes: Any) -> dict[int, int]:
    return dict(sorted(Counter(sizes).items()))


def amd_usage(assembly: str) -> tuple[int, int]:
    """Return vector registers a thread and spilled registers, from the code's own notes."""
    counts = [
        re.search(rf"\.{name}:\s+(\d+)", assembly) for name in ("vgpr_count", "vgpr_spill_count")
    ]
    if None in counts:
        raise RuntimeError("the AMD assembly carries no register counts")
    return int(counts[0][1]), int(counts[1][1])


def cubin_usage(cubin: bytes) -> tuple[int, int]:
    """Return registers a thread and bytes of its stack, which is where spills go."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if match is None:
        raise RuntimeError(f"cuobjdump printed no register count:\n{report}")
    return int(match[1]), int(match[2])
