"""Compile every kernel for GPUs that are not here, and check what the compiler made of it.

    python kernels/bench/compile_report.py [--arch sm_90 ...] [--only gate_up] [--skip fp32 ...]

For each architecture and variant: registers, bytes spilled, shared memory, and the tensor-core
instruction found. Exits with 1 when a variant spills, needs more than the card has, or computes a
product without tensor cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # read when the kernels are defined, just below

import triton
from compile_variants import PROCESSORS, Variant, variants
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from variants_attention import attention_variants

# Shared memory one program may use, bytes (CUDA C++ Programming Guide, compute capabilities; CDNA 3
# instruction set reference).
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10}
SHARED_LIMIT["gfx942"] = 64 << 10
REGISTERS = 65536
"""32-bit registers of an NVIDIA streaming multiprocessor, on all of these."""
TENSOR_CORES = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma.sync"}
TENSOR_CORES["gfx942"] = "mfma"


@dataclass(frozen=True)
class Result:
    """What the compiler made of one variant."""

    architecture: str
    name: str
    tiles: str
    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int
    instructions: list[str]
    problems: list[str]


def compile_variant(variant: Variant, architecture: str) -> Result:
    parameters = variant.kernel.arg_names
    signature = {
        name: "constexpr" if name in variant.constants else variant.types.get(name, "i32")
        for name in parameters
    }
    # Pointers come from an allocator that aligns, sizes and strides are multiples of 16.
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(parameters)
        if signature[name] not in ("constexpr", "fp32")
    }
    constants = {name: variant.constants[name] for name in parameters if name in variant.constants}
    compiled = triton.compile(
        ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=target_of(architecture),
        options={"num_warps": variant.warps, "num_stages": variant.stages, **variant.options},
    )
    nvidia = architecture.startswith("sm_")
    text = compiled.asm["ptx" if nvidia else "amdgcn"]
    registers, spilled = cubin_usage(compiled.asm["cubin"]) if nvidia else amd_usage(text)
    found = [name for name in ("wgmma", "tcgen05", "mma.sync", "mfma") if name in text]
    shared = compiled.metadata.shared
    problems = []
    if spilled:
        problems.append(f"spills {spilled} bytes")
    if shared > SHARED_LIMIT[architecture]:
        problems.append(f"{shared} bytes of shared memory, {SHARED_LIMIT[architecture]} there are")
    if nvidia and registers * 32 * variant.warps > REGISTERS:
        problems.append(f"{registers} registers in {variant.warps} warps do not fit")
    # A tile of 16 rows is below what wgmma and tcgen05 take; there mma.sync is right.
    wanted = {TENSOR_CORES[architecture]} | (
        {"mma.sync"} if variant.constants.get("BLOCK_M", 64) < 64 else set()
    )
    if variant.tensor_cores and not wanted & set(found):
        problems.append(f"no {TENSOR_CORES[architecture]}, only {found}")
    cut = [variant.constants.get(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")]
    return Result(
        architecture,
        variant.name,
        "x".join(map(str, cut)) if all(cut) else "",
        variant.warps,
        variant.stages,
        registers,
        spilled,
        shared,
        found,
        problems,
    )


def target_of(architecture: str) -> GPUTarget:
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=sorted(PROCESSORS), default=list(PROCESSORS))
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--skip", nargs="+", default=[], help="leave these out, by part of a name")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    results = []
    print(f"{'arch':7}{'kernel':28}{'tile':14}{'warps':>6}{'stages':>7}", end="")
    print(f"{'regs':>6}{'spill':>6}{'KiB':>6}  tensor cores")
    for architecture in arguments.arch:
        for variant in [*variants(architecture), *attention_variants(architecture, Variant)]:
            if arguments.only not in variant.name:
                continue
            if any(part in variant.name for part in arguments.skip):
                continue
            result = compile_variant(variant, architecture)
            results.append(result)
            print(f"{architecture:7}{result.name:28}{result.tiles:14}{result.warps:6}", end="")
            print(f"{result.stages:7}{result.registers:6}{result.spilled:6}", end="")
            print(f"{result.shared / 1024:6.0f}  {', '.join(result.instructions)}", end="")
            print("".join(f"  PROBLEM: {problem}" for problem in result.problems), flush=True)
    wrong = sum(bool(result.problems) for result in results)
    print(f"{len(results)} compiled with triton {triton.__version__}, {wrong} with problems")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return 1 if wrong or not results else 0


if __name__ == "__main__":
    sys.exit(main())
