"""Who computes attention: what can run where, and the proof that its gradients are right.

An engine is picked by a plain function of the device, the dtype and the head size, said once by the
caller, and believed only after it has computed a small problem in front of us: two documents, a
window, grouped heads, outputs and all four gradients against the exact engine in fp32. Libraries
with a sink forward and no sink backward exist in several versions under one name; the proof costs
milliseconds and asks what the library computes instead of what its version promises.

Rejected: trying the next engine when one fails in the middle of a run. A choice is made before the
first step, and a later failure is an error.

The same bits in every run on one GPU: ``eager`` and ``flex`` where torch is told so, and ``triton``
always, because none of them adds atomically. ``torch_flash`` and ``fa4`` have a second backward for
it, which torch's kernels take under ``torch.use_deterministic_algorithms(True)`` and ``fa4`` by an
argument; it holds up to three fp32 copies of dQ where a micro-batch is one document. torch does not
ask cuDNN for its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptoss_kernels.attention.attention import Documents, attention, find_documents
from gptoss_kernels.attention.cudnn import CudnnEngine, cudnn_obstacle
from gptoss_kernels.attention.eager import EagerEngine
from gptoss_kernels.attention.fa4 import CAPABILITIES, FlashAttention4Engine, installed
from gptoss_kernels.attention.flex import FlexEngine
from gptoss_kernels.attention.interface import AttentionEngine, DifferentiableEngine
from gptoss_kernels.attention.sinks import sinks_obstacle
from gptoss_kernels.attention.torch_flash import TorchFlashEngine
from gptoss_kernels.attention.triton_engine import HEAD_SIZES, TritonEngine
from gptoss_kernels.backend import REFUSALS, Backend, triton_obstacle

AUTO_ORDER = ("fa4", "torch_flash", "triton", "flex", "eager")
"""In the order in which ``auto`` tries them on a GPU: published rates at head size 64."""
ENGINE_NAMES = (*AUTO_ORDER, "cudnn")
"""All that can be asked for; ``cudnn`` waits for a measurement before ``auto`` may take it."""

_PROOF_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5}
"""Relative RMS. Inputs rounded to bf16 (2^-9) alone move the gradients by about 4e-3."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine and why it was taken.

    Attributes:
        name: One of ``ENGINE_NAMES``.
        engine: What computes.
        reason: The name, and engines that were passed over and why, for the log.
    """

    name: str
    engine: AttentionEngine | DifferentiableEngine
    reason: str


def choose_engine(
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    *,
    deterministic: bool = False,
) -> EngineChoice:
    """Return the engine to use.

    Args:
        wanted: ``auto``, or one of ``ENGINE_NAMES``.
        device: Where attention will run.
        dtype: Of query, key and value.
        head_size: D.
        deterministic: Only engines whose gradients have the same bits in every run, under
            ``torch.use_deterministic_algorithms(True)``.

    Returns:
        The choice, proven on ``device``. ``auto`` on anything but a GPU is ``eager``.

    Raises:
        ValueError: ``wanted`` is unknown, cannot run here, or fails the proof.
    """
    if wanted == "auto":
        return _first_that_works(device, dtype, head_size, deterministic)
    if wanted not in ENGINE_NAMES:
        names = ", ".join(ENGINE_NAMES)
        raise ValueError(f"attention must be auto or one of {names}, got {wanted!r}")
    obstacle = find_obstacle(wanted, device, dtype, head_size, deterministic)
    if obstacle is None:
        engine, sinks = _make(wanted, device, dtype, head_size, deterministic)
        obstacle = find_fault(engine, device, dtype, head_size)
        if obstacle is None:
            asked = _AS_ASKED.get(wanted, f"{wanted}, as asked")
            return EngineChoice(wanted, engine, asked + sinks)
    raise ValueError(f"attention {wanted} cannot be used: {obstacle}; use auto or another engine")


def _first_that_works(
    device: torch.device, dtype: torch.dtype, head_size: int, deterministic: bool
) -> EngineChoice:
    names = AUTO_ORDER if device.type == "cuda" else ("eager",)
    passed_over = []
    for name in names:
        obstacle = find_obstacle(name, device, dtype, head_size, deterministic)
        if obstacle is None:
            engine, sinks = _make(name, device, dtype, head_size, deterministic)
            obstacle = find_fault(engine, device, dtype, head_size)
            if obstacle is None:
                rest = f" (passed over: {'; '.join(passed_over)})" if passed_over else ""
                return EngineChoice(name, engine, f"{name}{sinks}{rest}")
        passed_over.append(f"{name}: {obstacle}")
    raise ValueError(f"no attention engine works on {device}: {'; '.join(passed_over)}")


def find_obstacle(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    deterministic: bool = False,
) -> str | None:
    """Return why engine ``name`` cannot run here, or ``None`` when nothing speaks against it."""
    if name == "eager":
        return None
    if device.type != "cuda":
        return f"it needs a GPU, the model is on {device.type}"
    if deterministic and (obstacle := _indeterminism(name)):
        return obstacle
    half = dtype in (torch.bfloat16, torch.float16)
    major, minor = torch.cuda.get_device_capability(device)
    if name in ("fa4", "torch_flash") and not half:
        return f"it needs bf16 or fp16, got {dtype}"
    if name == "torch_flash" and torch.version.hip is None and major < 8:
        return f"it needs compute capability 8.0, this GPU has {major}.{minor}"
    if name == "triton" and (obstacle := triton_obstacle(device, dtype)):
        return obstacle
    if name == "triton" and head_size not in HEAD_SIZES:
        return f"it has head sizes {HEAD_SIZES}, got {head_size}"
    if name == "cudnn":
        return cudnn_obstacle(dtype, head_size, (major, minor))
    if name == "fa4" and not installed():
        return "flash_attn.cute is not installed"
    if name == "fa4" and major not in CAPABILITIES:
        return f"it needs compute capability 9, 10 or 11, this GPU has {major}.{minor}"
    return None


def _indeterminism(name: str) -> str | None:
    """Return why the gradients of engine ``name`` may differ from run to run, or ``None``."""
    if name == "cudnn":
        return "torch does not ask cuDNN for a deterministic backward (train.deterministic)"
    if name == "torch_flash" and torch.version.hip is not None:
        return "its backward is not known to be deterministic on AMD GPUs (train.deterministic)"
    return None


def _make(
    name: str, device: torch.device, dtype: torch.dtype, head_size: int, deterministic: bool
) -> tuple[AttentionEngine | DifferentiableEngine, str]:
    """Return the engine, and for the log what adds the sinks where it is not what should."""
    if name == "eager":
        return EagerEngine(), ""
    if name == "triton":
        return TritonEngine(), ""
    if name == "flex":
        return FlexEngine(), ""
    obstacle = sinks_obstacle(device, dtype, head_size)
    backend: Backend = "torch" if obstacle else "triton"
    told = f", sinks added by torch in several passes over O, because {obstacle}"
    if name == "fa4":
        engine = FlashAttention4Engine(backend, deterministic=deterministic)
    else:
        engine = {"torch_flash": TorchFlashEngine, "cudnn": CudnnEngine}[name](backend)
    return engine, told if obstacle else ""


def find_fault(
    engine: AttentionEngine | DifferentiableEngine,
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
) -> str | None:
    """Return what ``engine`` computes wrongly on a small problem, or ``None``.

    The problem: 2 rows of 192 tokens, documents of 70, 1 and 121 tokens, 4 query heads on 2
    key-value heads, once with a window of 64 and once without; and once as whole rows.
    """
    positions = torch.cat([torch.arange(n, device=device) for n in (70, 1, 121)])[None]
    documents = find_documents(2, 192, device, position_ids=positions)
    problems = ((64, documents), (None, documents), (None, None))
    return _fault(engine, problems, *_proof_inputs(2, 192, 192, head_size, device, dtype))


def find_part_fault(
    engine: AttentionEngine, device: torch.device, dtype: torch.dtype, head_size: int
) -> str | None:
    """Return what ``engine`` computes wrongly for a part of a row, or ``None``.

    The problem: the tokens 100 to 191 of a row with documents of 110, 1 and 81 tokens, on all of
    its keys and, with a window of 64, on the 63 before the part.
    """
    positions = torch.cat([torch.arange(n, device=device) for n in (110, 1, 81)])[None]
    documents = find_documents(1, 192, device, position_ids=positions)
    for window, first_key in ((64, 37), (None, 0)):
        problems = ((window, documents.part(0, 100, 192, first_key)),)
        inputs, grad = _proof_inputs(1, 92, 192 - first_key, head_size, device, dtype)
        fault = _fault(engine, problems, inputs, grad)
        if fault is not None:
            return f"{fault}, for a part of a row with keys before it"
    return None


def _proof_inputs(
    batch: int, queries: int, keys: int, head_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Return query, key, value and sinks, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    pair = (batch, 2, keys, head_size)
    shapes = ((batch, 4, queries, head_size), pair, pair, (4,), (batch, queries, 4, head_size))
    *inputs, grad = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    return inputs, grad


def _fault(
    engine: AttentionEngine | DifferentiableEngine,
    problems: Sequence[tuple[int | None, Documents | None]],
    inputs: list[Tensor],
    grad: Tensor,
) -> str | None:
    tolerance = _PROOF_TOLERANCE.get(grad.dtype, 1e-5)
    for window, runs in problems:
        settings = {"scaling": grad.shape[-1] ** -0.5, "window": window, "documents": runs}

        def results(
            leaves: list[Tensor],
            engine: AttentionEngine | DifferentiableEngine,
            settings: dict = settings,
        ) -> list[Tensor]:
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            with torch.enable_grad():
                out = attention(*leaves, engine=engine, **settings)
            return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

        expected = results([leaf.float() for leaf in inputs], EagerEngine())
        try:
            actual = results(inputs, engine)
        except REFUSALS as error:
            return f"it raised {type(error).__name__}: {error}"
        for name, got, truth in zip(_RESULTS, actual, expected, strict=True):
            error = float((got.float() - truth).norm() / truth.norm())
            if not error <= tolerance:
                return f"its {name} is wrong by {error:.1e} with window {window} on {grad.device}"
    return None


_RESULTS = ("output", "query gradient", "key gradient", "value gradient", "sink gradient")
_AS_ASKED = {
    "cudnn": "cudnn, as asked, in full layers of rows that hold one document; torch_flash elsewhere"
}
