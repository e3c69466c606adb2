"""A Triton driver for a GPU that is not here: compiles what is launched, launches nothing.

The kernels go through their real launch path, so what is compiled has the very signature, constants
and alignments of a real launch; ``compile_report.py`` inspects the machine code, ``precompile.py``
keeps it for the GPU, ``host_time.py`` counts launches. Rejected: signatures written by hand, which
stood here before and had other strides and integer widths than the launches have.

Tensors live on the meta device (shapes only: real sizes cost nothing) or on the CPU (host time).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # read when a kernel is defined, so before any import of one

import torch
from gptoss_kernels.tiles import gpu_of
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver


@dataclass(frozen=True)
class Card:
    """What a kernel may use on one kind of GPU.

    Attributes:
        name: Of the card that the numbers are of, as a file name.
        processors: Streaming multiprocessors (compute units).
        shared_bytes: Shared memory that one program may use.
        processor_shared_bytes: Shared memory of a processor, for all its programs.
        threads: A processor holds at a time.
    """

    name: str
    processors: int
    shared_bytes: int
    processor_shared_bytes: int
    threads: int


CARDS = {
    # CUDA C++ programming guide, specifications by compute capability; CDNA 3 white paper.
    "sm_80": Card("nvidia-a100", 108, 163 << 10, 164 << 10, 2048),
    "sm_90": Card("nvidia-h100", 132, 227 << 10, 228 << 10, 2048),
    "sm_100": Card("nvidia-b200", 148, 227 << 10, 228 << 10, 2048),
    "sm_120": Card("nvidia-rtx-5090", 170, 99 << 10, 100 << 10, 1536),
    "gfx942": Card("amd-mi300x", 304, 64 << 10, 64 << 10, 2048),
}


def target_of(architecture: str) -> GPUTarget:
    """Return Triton's name for an architecture of ``CARDS``."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


@dataclass
class Compiled:
    """One compiled kernel and how often it was launched.

    Attributes:
        name: Of the kernel's function.
        source: Triton's ``ASTSource``: signature, constants, alignments.
        metadata: Triton's: warps, stages, shared memory.
        seconds: From its first launch to machine code, or from the cache.
        launches: Number of launches.
        grid: Of the last launch.
    """

    name: str
    source: Any
    metadata: Any
    seconds: float = 0.0
    launches: int = 0
    grid: tuple[int, int, int] = (0, 0, 0)

    @property
    def constants(self) -> dict[str, Any]:
        """Constants of the kernel by parameter, strides of 1 and absent pointers among them."""
        names = self.source.fn.arg_names
        return {names[path[0]]: value for path, value in self.source.constants.items()}

    @property
    def signature(self) -> dict[str, str]:
        """Types of the kernel's parameters."""
        return dict(self.source.signature)

    def machine_code(self) -> Any:
        """Return Triton's ``CompiledKernel``, whose ``asm`` holds every stage by name."""
        for caches in self.source.fn.device_caches.values():
            for kernel in caches[0].values():
                if getattr(kernel, "src", None) is self.source:
                    return kernel
        raise LookupError(f"{self.name} is not in Triton's cache of this process any more")


@dataclass
class FakeDriver(DriverBase):
    """The driver: what Triton asks of one, answered for a GPU that is not here.

    Attributes:
        architecture: One of ``CARDS``.
        device: Where the tensors are: ``meta`` or ``cpu``.
        compiled: Every kernel that was launched, in the order of first launches.
    """

    architecture: str
    device: str = "meta"
    compiled: list[Compiled] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Offer Triton what it reads as attributes."""
        self.utils = _Utilities(CARDS[self.architecture])
        self.launcher_cls = self._launcher

    @classmethod
    def is_active(cls) -> bool:
        """Only by hand."""
        return False

    def get_current_target(self) -> GPUTarget:
        """Compile for this architecture."""
        return target_of(self.architecture)

    def get_current_device(self) -> int:
        """Return a number of its own for each architecture: Triton keeps its kernels by it."""
        return int(self.architecture.removeprefix("sm_").removeprefix("gfx"))

    def set_current_device(self, device: int) -> None:
        """There is one."""

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Say where the tensors are that stand for the GPU's."""
        return torch.device(self.device)

    def get_device_interface(self) -> Any:
        """Offer the CPU's; nothing here needs events."""
        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the type itself: no launcher is built."""
        return ty

    def get_benchmarker(self) -> Any:
        """Refuse: nothing runs."""
        raise RuntimeError("a driver that launches nothing has no times")

    @property
    def launches(self) -> int:
        """Launches so far."""
        return sum(kernel.launches for kernel in self.compiled)

    def _launcher(self, source: Any, metadata: Any) -> _Launcher:
        kernel = Compiled(source.fn.__name__, source, metadata)
        self.compiled.append(kernel)
        return _Launcher(kernel, zero_indices=self.device == "cpu")


class _Launcher:
    """Counts a kernel's launches."""

    def __init__(self, kernel: Compiled, zero_indices: bool) -> None:
        self._kernel, self._zero_indices = kernel, zero_indices

    def __call__(self, *arguments: Any) -> None:
        kernel = self._kernel
        kernel.launches += 1
        kernel.grid = arguments[:3]
        # Nothing is written, and torch indexes with what routing would have written: 0 is in range.
        if self._zero_indices and kernel.name.startswith(("_routing", "_tile_map")):
            for argument in arguments:
                if isinstance(argument, torch.Tensor) and argument.dtype == torch.int32:
                    argument.zero_()


class _Utilities:
    """What Triton reads of a device, and the module that it would load."""

    def __init__(self, card: Card) -> None:
        self._properties = {
            "name": card.name,
            "max_shared_mem": card.shared_bytes,
            "multiprocessor_count": card.processors,
            "warpSize": 32,
            "max_num_regs": 65536,
        }

    def get_device_properties(self, device: int) -> dict[str, Any]:
        return self._properties

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        """Return a module, a function, registers, spills and the most threads of a program."""
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


@contextlib.contextmanager
def pretend_gpu(architecture: str, device: str = "meta") -> Iterator[FakeDriver]:
    """Make Triton believe in a GPU for a while; kernels compile for it on their first launch.

    Args:
        architecture: One of ``CARDS``.
        device: Where the tensors are that are launched on: ``meta`` or ``cpu``.

    Yields:
        The driver, with what was compiled.
    """
    before, fake = driver._active, FakeDriver(architecture, device)
    driver.set_active(fake)
    gpu_of.cache_clear()
    try:
        yield fake
    finally:
        driver._active = before
        gpu_of.cache_clear()


def launch_and_time(fake: FakeDriver, call: Any) -> tuple[list[Compiled], float]:
    """Return the kernels that ``call`` launched for the first time, and its seconds."""
    known, started = len(fake.compiled), time.perf_counter()
    call()
    return fake.compiled[known:], time.perf_counter() - started
