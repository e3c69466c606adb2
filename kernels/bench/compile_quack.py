"""Compile QuACK's grouped products as the expert layer asks for them, without a GPU.

    python kernels/bench/compile_quack.py [--only gate_up]

For each form: registers, bytes of stack, spilled loads and stores, and how often the machine code
multiplies on tensor cores (HGMMA), copies by TMA (UTMALDG) and by threads (LDGSTS, gathered rows).
Exits with 0 and the reason where QuACK is not installed, with 1 when a form does not multiply on
tensor cores. Spills are QuACK's to fix; here they are counted.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from gptoss_kernels.experts.quack import ProductForm, make_product, package_obstacle
from torch._subclasses.fake_tensor import FakeTensorMode

HIDDEN = INTERMEDIATE = 2880
EXPERTS, TOKENS, TOP_K = 32, 16384, 4
CLUSTERS = 66
"""Clusters of two that an H100 holds; an argument of the launch, asked of the driver otherwise."""
_CUDA_MACHINE = 190  # EM_CUDA, the machine of an ELF file with GPU code

FORMS = {
    # name: (N, K, form)
    "gate_up": (2 * INTERMEDIATE, HIDDEN, ProductForm(True, True, True, True, False)),
    "down": (HIDDEN, INTERMEDIATE, ProductForm(False, True, True, False, False)),
    "d down": (INTERMEDIATE, HIDDEN, ProductForm(True, False, True, False, True)),
    "d gate_up": (HIDDEN, 2 * INTERMEDIATE, ProductForm(False, False, True, False, True)),
    "gate_up, merged": (2 * INTERMEDIATE, HIDDEN, ProductForm(True, True, False, True, False)),
    "down, merged": (HIDDEN, INTERMEDIATE, ProductForm(False, True, False, False, False)),
    "d down, merged": (INTERMEDIATE, HIDDEN, ProductForm(True, False, False, False, True)),
    "d gate_up, merged": (HIDDEN, 2 * INTERMEDIATE, ProductForm(False, False, False, False, True)),
}


@contextmanager
def pretend_hopper(cache: Path) -> Iterator[None]:
    """Let QuACK trace and compile for sm_90a; its kernels are written to ``cache``."""
    os.environ |= {"QUACK_ARCH": "90", "CUTE_DSL_ARCH": "sm_90a", "QUACK_CACHE_DIR": str(cache)}
    from quack.cache import async_compile
    from quack.gemm_runtime import host

    # As in QuACK's own compile workers, which see no GPU either.
    async_compile._install_gpu_blind_device_attrs()
    with mock.patch.object(host, "get_max_active_clusters", lambda *_, **__: CLUSTERS):
        yield


def compile_form(columns: int, inner: int, form: ProductForm) -> Any:
    """Compile one product at the shapes of gpt-oss-20b and return QuACK's tiles."""
    rows = TOKENS * TOP_K
    with FakeTensorMode():

        def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="cuda")

        stored = (EXPERTS, inner, columns) if form.turned else (EXPERTS, columns, inner)
        matrices = tensor(*stored).mT if form.turned else tensor(*stored)
        out = tensor(rows, columns)
        outputs = {"D": out}
        operands: dict[str, Any] = {"bias": tensor(EXPERTS, columns)} if form.biased else {}
        if form.added:
            operands["scaling"] = 2.0
        if form.activated:
            outputs["activation"] = tensor(rows, columns // 2)
        product = make_product(form.biased, form.added, (1.702, 7.0) if form.activated else None)
        plan = product.plan(
            tensor(TOKENS if form.gathered else rows, inner),
            matrices.mT,
            out if form.added else None,
            out=outputs,
            cu_seqlens_m=tensor(EXPERTS + 1, dtype=torch.int32),
            A_idx=tensor(rows, dtype=torch.int32) if form.gathered else None,
            **operands,
        )
    return plan.config


def gpu_code(file: Path) -> bytes:
    """Return the GPU's ELF file inside an object file of the host."""
    data, start = file.read_bytes(), 0
    while (start := data.find(b"\x7fELF", start)) >= 0:
        if struct.unpack_from("<H", data, start + 18)[0] == _CUDA_MACHINE:
            headers = struct.unpack_from("<QQ", data, start + 32)
            sizes = struct.unpack_from("<HHHH", data, start + 54)
            ends = (headers[0] + sizes[0] * sizes[1], headers[1] + sizes[2] * sizes[3])
            return data[start : start + max(ends)]
        start += 4
    raise RuntimeError(f"{file} holds no code for a GPU")


def inspect(cubin: bytes) -> tuple[int, int, Counter[str]]:
    """Return registers a thread, bytes of its stack, and how often each instruction stands."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            command = [str(tool), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage"))
        names = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", dump("-sass"))
    if usage is None:
        raise RuntimeError("cuobjdump printed no register count")
    return int(usage[1]), int(usage[2]), Counter(names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="forms whose name contains this")
    arguments = parser.parse_args()
    if why := package_obstacle():
        print(f"nothing compiled: {why}")
        return 0
    print(f"{'form':19}{'tile':10}{'regs':>5}{'stack':>6}{'spills':>7}{'HGMMA':>6}", end="")
    print(f"{'UTMALDG':>8}{'LDGSTS':>7}{'s':>5}")
    without = 0
    with tempfile.TemporaryDirectory() as folder, pretend_hopper(Path(folder)):
        known: set[Path] = set()
        for name, (columns, inner, form) in FORMS.items():
            if arguments.only not in name:
                continue
            started = time.perf_counter()
            tiles = compile_form(columns, inner, form)
            seconds = time.perf_counter() - started
            (file,) = set(Path(folder).rglob("*.o")) - known
            known.add(file)
            registers, stack, found = inspect(gpu_code(file))
            spills = found["STL"] + found["LDL"]
            print(f"{name:19}{f'{tiles.tile_m}x{tiles.tile_n}':10}{registers:5}{stack:6}", end="")
            print(f"{spills:7}{found['HGMMA']:6}{found['UTMALDG']:8}{found['LDGSTS']:7}", end="")
            print(f"{seconds:5.0f}", flush=True)
            without += not found["HGMMA"]
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
