"""Compile every kernel for GPUs that are not here, and check what the compiler made of it.

    python kernels/bench/compile_report.py [--arch sm_90 ...] [--only "in-loop"] [--skip fp32 ...]

The kernels are launched as training launches them (``launches.py``) into a driver that compiles and
runs nothing. For each architecture and kernel: registers, bytes spilled, shared memory, programs
that share a processor, tensor-core instructions, what stays in flight at each wait of the loop, and
the widths of loads and stores. Exits with 1 when one has a problem (``problems_of``).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from fake_driver import CARDS, Compiled, pretend_gpu  # first: it switches the interpreter off

# isort: split
import triton
from launches import name_of, scenarios
from machine_code import REGISTERS, TENSOR_CORES, WIDE, MachineCode, machine_code

TILED = (
    "_grouped_matmul_kernel",
    "_ragged_outer_kernel",
    "_attention_forward_kernel",
    "_attention_key_value_kernel",
    "_attention_query_kernel",
)
"""Kernels with a loop of products, whose copies have to run ahead."""
PACKED, GIVEN = 1, 2
"""``SOURCE`` of a grouped product: decoded in the loop; made elsewhere."""
OPERANDS = 2
"""Tiles that a product's loop copies at a step."""
HALVES = 2
"""Loads of one or two bytes that a product may have: a bias, once a tile."""


@dataclass(frozen=True)
class Result:
    """What the compiler made of one kernel."""

    name: str
    tile: str
    stages: int
    grid: tuple[int, ...]
    code: MachineCode
    problems: list[str]


def report(architecture: str, only: str = "", skip: tuple[str, ...] = ()) -> list[Result]:
    """Compile and inspect every kernel of an architecture.

    Args:
        architecture: One of ``CARDS``.
        only: Scenarios and kernels whose full name contains this.
        skip: Leave out whose name contains one of these.

    Returns:
        A result for each kernel, in the order of launches.
    """
    results = []
    with pretend_gpu(architecture) as fake:
        for scenario in scenarios():
            if any(part in scenario.name for part in skip):
                continue
            known = len(fake.compiled)
            scenario.call(architecture)
            for kernel in fake.compiled[known:]:
                name = ", ".join(part for part in (name_of(kernel), scenario.name) if part)
                if only in name and not any(part in name for part in skip):
                    results.append(_result(name, kernel, architecture))
    return results


def _result(name: str, kernel: Compiled, architecture: str) -> Result:
    code = machine_code(kernel.machine_code(), architecture)
    cut = [kernel.constants.get(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")]
    return Result(
        name,
        "x".join(map(str, cut)) if all(cut) else "",
        kernel.metadata.num_stages,
        kernel.grid,
        code,
        problems_of(kernel, code),
    )


def problems_of(kernel: Compiled, code: MachineCode) -> list[str]:
    """Return what must not be: spills, a loop that waits for everything, narrow accesses."""
    card = CARDS[code.architecture]
    problems = [f"spills {code.spilled} bytes"] if code.spilled else []
    if code.shared > card.shared_bytes:
        problems.append(f"{code.shared} bytes of shared memory, {card.shared_bytes} there are")
    if not code.architecture.startswith("sm_"):
        return problems
    if code.registers * 32 * code.warps > REGISTERS:
        problems.append(f"{code.registers} registers in {code.warps} warps do not fit")
    if kernel.name == "_grouped_matmul_kernel":
        asked = kernel.grid[0] // card.processors
        if asked > code.programs:
            problems.append(f"{asked} programs a processor, {code.programs} fit")
    if kernel.name.startswith(TILED) and kernel.constants.get("SOURCE") != GIVEN:
        problems += _loop_problems(kernel, code)
    if "fp32" not in _element(kernel):
        problems += _width_problems(kernel, code)
    return problems


def _loop_problems(kernel: Compiled, code: MachineCode) -> list[str]:
    """Return what is wrong with a loop of products."""
    problems = []
    if "fp32" not in _element(kernel):
        # A tile of 16 rows is below what wgmma and tcgen05 take; there mma.sync is right.
        wanted = {TENSOR_CORES[code.architecture]}
        wanted |= {"mma.sync"} if kernel.constants.get("BLOCK_M", 64) < 64 else set()
        if not wanted & set(code.instructions):
            problems.append(f"no {' or '.join(sorted(wanted))}, only {code.instructions}")
        if max(code.copy_waits, default=0) == 0 and code.tma_copies <= OPERANDS:
            problems.append(f"no copy runs ahead: waits for {code.copy_waits}")
        # Attention's second product needs the softmax of its first, and a factor's gradient takes
        # an operand from registers: there a product cannot run ahead of the next.
        if (
            kernel.name == "_grouped_matmul_kernel"
            and "wgmma" in code.instructions
            and max(code.product_waits) == 0
        ):
            problems.append(f"no product runs ahead: waits for {code.product_waits}")
    return problems


def _width_problems(kernel: Compiled, code: MachineCode) -> list[str]:
    """Return accesses that are narrower than they could be."""
    problems = []
    narrow = {size: n for size, n in code.stores.items() if size <= 2}
    if narrow:
        problems.append(f"stores of {narrow} (bytes: number)")
    if not kernel.name.startswith(TILED):
        return problems
    halves = sum(n for size, n in code.loads.items() if size <= 2)
    if halves > HALVES:
        problems.append(f"{halves} loads of one or two bytes")
    # Triton 3.9 copies packed bytes, half a row of 32 at a time, by 8: whole sectors all the same.
    least = WIDE // 2 if kernel.constants.get("SOURCE") == PACKED else WIDE
    slow = {size: n for size, n in code.copies.items() if size < least}
    if slow and kernel.name == "_grouped_matmul_kernel":
        problems.append(f"copies of {slow} (bytes: number)")
    return problems


def _element(kernel: Compiled) -> str:
    """Return the type of the first pointer, that of the activations."""
    return next(kind for kind in kernel.signature.values() if kind.startswith("*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=sorted(CARDS), default=list(CARDS))
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--skip", nargs="+", default=[], help="leave these out, by part of a name")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    results = []
    print(
        f"{'arch':7}{'kernel':32}{'tile':13}{'warps':>6}{'stages':>7}{'regs':>6}{'spill':>6}",
        end="",
    )
    print(
        f"{'KiB':>5}{'progs':>6}  in flight         loads                 stores      tensor cores"
    )
    for architecture in arguments.arch:
        for result in report(architecture, arguments.only, tuple(arguments.skip)):
            results.append(result)
            print(_line(architecture, result), flush=True)
    wrong = sum(bool(result.problems) for result in results)
    print(f"{len(results)} compiled with triton {triton.__version__}, {wrong} with problems")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return 1 if wrong or not results else 0


def _line(architecture: str, result: Result) -> str:
    code = result.code
    copies = _numbers(code.copy_waits) + (f" TMA {code.tma_copies}" if code.tma_copies else "")
    flight = f"{copies}; {_numbers(code.product_waits)}"
    loads = _sizes({size: code.loads.get(size, 0) + code.copies.get(size, 0) for size in WIDTHS})
    line = (
        f"{architecture:7}{result.name:32}{result.tile:13}{code.warps:6}{result.stages:7}"
        f"{code.registers:6}{code.spilled:6}{code.shared / 1024:5.0f}{code.programs:6}"
        f"  {flight:18}{loads:22}{_sizes(code.stores):12}{', '.join(code.instructions)}"
    )
    return line.rstrip() + "".join(f"  PROBLEM: {problem}" for problem in result.problems)


WIDTHS = (1, 2, 4, 8, 16)


def _numbers(values: list[int]) -> str:
    return ",".join(map(str, dict.fromkeys(values))) or "-"


def _sizes(counts: dict[int, int]) -> str:
    return " ".join(f"{size}Bx{counts[size]}" for size in sorted(counts) if counts[size]) or "-"


if __name__ == "__main__":
    sys.exit(main())
