"""Which backend can run here, asked once and said once.

An op never falls back by itself: it is told ``backend="torch"`` or ``backend="triton"`` and raises
when that cannot be. ``choose_backend`` is where "auto" becomes one of the two.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["torch", "triton"]

REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError, ImportError)
"""How libraries say that they lack a kernel, an argument, a layout or a card."""

_LOGGER = logging.getLogger("gptoss_kernels")
_OLDEST_NVIDIA = (8, 0)


def choose_backend(
    requested: Literal["auto", "torch", "triton"], device: torch.device, dtype: torch.dtype
) -> Backend:
    """Return the backend for tensors of ``dtype`` on ``device``; the choice is logged once.

    Args:
        requested: "auto" takes Triton where it can run compiled, torch otherwise.
        device: Where the model is.
        dtype: Of the activations.

    Returns:
        "torch" or "triton".

    Raises:
        ValueError: "triton" was asked for and cannot run; the message says why.
    """
    if requested not in ("auto", "torch", "triton"):
        raise ValueError(f'backend must be "auto", "torch" or "triton", got {requested!r}')
    if requested == "torch":
        return "torch"
    obstacle = triton_obstacle(device, dtype)
    if requested == "triton":
        if obstacle:
            raise ValueError(f'backend "triton" cannot run here: {obstacle}; use backend "torch"')
        return "triton"
    if obstacle is None and device.type == "cpu":
        obstacle = "on a CPU Triton only has its interpreter, which is for tests"
    say_once(f"expert backend: {'torch, because ' + obstacle if obstacle else 'triton'}")
    return "torch" if obstacle else "triton"


def triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why Triton cannot run on ``device`` with ``dtype``, or None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"it needs bfloat16, float16 or float32, got {dtype}"
    if device.type == "meta" and _SHAPES_ONLY.get():
        return None
    if device.type != "cuda" and launched_on(device):
        return None
    if device.type == "cpu":
        if not interpreted():
            return "the tensors are on a CPU and TRITON_INTERPRET=1 was not set before the start"
        if dtype != torch.float32:
            return f"Triton's interpreter is wrong in {dtype}; use float32"
        return None
    if device.type != "cuda":
        return f"it runs on NVIDIA and AMD GPUs, got device {device}"
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < _OLDEST_NVIDIA:
            return (
                f"it needs compute capability {_OLDEST_NVIDIA[0]}.{_OLDEST_NVIDIA[1]} or later, "
                f"got {capability[0]}.{capability[1]} ({torch.cuda.get_device_name(device)})"
            )
    return None


def require_triton(name: str, *tensors: Tensor | None) -> None:
    """Raise ValueError unless Triton can run on every given tensor and all are on one device."""
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:
        dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
        obstacle = triton_obstacle(tensor.device, dtype)
        if obstacle:
            raise ValueError(f'{name}: backend "triton" cannot run: {obstacle}')
        if tensor.device != given[0].device:
            raise ValueError(
                f"{name}: needs all tensors on one device, got {given[0].device} and "
                f"{tensor.device}"
            )


def require_backend(backend: str) -> None:
    """Raise ValueError unless ``backend`` is a name we know."""
    if backend not in ("torch", "triton"):
        raise ValueError(f'backend must be "torch" or "triton", got {backend!r}')


@functools.cache
def interpreted() -> bool:
    """Return whether the kernels of this process run in Triton's interpreter."""
    import triton

    from gptoss_kernels._triton import _combine

    return not isinstance(_combine._combine_kernel, triton.JITFunction)


def launched_on(device: torch.device) -> bool:
    """Return whether Triton's active driver launches on this kind of device.

    Asked for devices that are no GPU: true only while a driver was set that stands for one, as the
    benchmarks do to compile and to count launches without a GPU.
    """
    from triton.runtime import driver

    try:
        active: Any = driver.active
        return active.get_active_torch_device().type == device.type
    except RuntimeError:  # Triton's word that there is no driver
        return False


@contextmanager
def shapes_only() -> Iterator[None]:
    """Let operations with backend "triton" take tensors on the meta device, and launch nothing.

    What they allocate, and when they free it, is what a GPU would see: bytes of a real step can be
    counted at real sizes on a machine that could not hold one of its tensors.
    """
    before = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(before)


_SHAPES_ONLY: ContextVar[bool] = ContextVar("shapes_only", default=False)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one, where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which fp32 products stay fp32."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Start a Triton kernel; the one place where type checkers meet its call syntax.

    Triton binds and inspects every argument anew, 30 to 50 us for a kernel with forty of them. Here
    a kernel is found again by what its code depends on, and started with the arguments as they are.

    Args:
        kernel: A ``triton.jit`` function.
        grid: Programs, up to three dimensions.
        arguments: Of the kernel, in order.
        options: Its ``constexpr`` parameters and the compiler's options.
    """
    if _SHAPES_ONLY.get():
        return
    key = None if interpreted() else _specialization(kernel, arguments, options)
    if key is None:
        kernel[grid](*arguments, **options)
        return
    compiled = _COMPILED.get(key)
    if compiled is None:
        _COMPILED[key] = kernel[grid](*arguments, **options)
        return
    rest = (options[name] for name in kernel.arg_names[len(arguments) :])
    compiled[(*grid, 1, 1)[:3]](*arguments, *rest)


_COMPILED: dict[tuple[object, ...], Any] = {}
"""Compiled kernels of this process by ``_specialization``: as many as Triton's own cache holds."""


def _specialization(
    kernel: Any, arguments: tuple[object, ...], options: dict[str, object]
) -> tuple[object, ...] | None:
    """Return what the code of a launch depends on, None where that is for Triton to say.

    As Triton has it: the type of a pointer, whether it is a multiple of 16 and, for AMD's buffer
    addresses, whether what it points into ends within 2^31 bytes; the width of an integer, whether
    it is 1 and whether it is a multiple of 16; the type of a float, and every constant; the device.
    """
    from triton.runtime import driver

    active: Any = driver.active
    # By identity: a kernel's own hash walks its source.
    key: list[object] = [id(kernel), active.get_current_device()]
    for argument in arguments:
        if isinstance(argument, Tensor):
            short = argument.untyped_storage().nbytes() < 2**31
            key.append((argument.dtype, argument.data_ptr() & 15 == 0, short))
        elif argument is None:
            key.append(None)
        elif type(argument) is int:
            width = 32 if -(2**31) <= argument < 2**31 else 64 if argument < 2**63 else 65
            key.append(1 if argument == 1 else (argument & 15 == 0, width))
        elif type(argument) is float:
            key.append(float)
        else:  # a TMA descriptor
            return None
    return (*key, *options.items())


@functools.cache
def say_once(message: str) -> None:
    """Log ``message`` at level INFO the first time it comes up in this process."""
    _LOGGER.info(message)
