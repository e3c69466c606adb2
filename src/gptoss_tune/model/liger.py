"""Liger's kernels for the row-wise parts of a layer, where they compute what gpt-oss does.

Two of them do. RMSNorm in the casting mode that Liger calls ``gemma``, with offset 0, multiplies by
the weight in fp32 and rounds once, as gpt-oss does; the mode ``llama`` rounds before the weight.
The rotary embedding with ``rotary_dim`` given takes gpt-oss's cosines of half a head; in fp32 it
equals transformers' bit by bit, and in bf16 its compiled code fuses a product with the difference
(``fma.rn.bf16``), which leaves two roundings where torch makes three.

The kernels are called on the model's own modules; Liger's way, replacing classes and functions of
transformers for the whole process, was the alternative. A library is believed only after it has
computed a small problem in front of us: its error against float64 may not exceed that of torch.

B rows, S tokens of a row, H hidden, D head size.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from gptoss_kernels.rms_norm import rms_norm, rms_norm_reference
from torch import Tensor
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb

Norm = Callable[[Tensor, Tensor, float], Tensor]
Rotation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

WORST_RATIO = 1.2
"""Largest error beside torch's, both against float64; another order of sums moves it by 0.01, and
rounding once more, as Llama's norm does, by 1.4."""
_UNIT_ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12, torch.float32: 2.0**-24}


def liger_rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return what ``gptoss_kernels.rms_norm`` returns, by Liger's kernel.

    A frozen weight costs no gradient. The gradient of the input is written beside that of the
    output, not over it, which Liger would do: others may hold it.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(hidden, weight, eps, 0.0, "gemma", False, None)


def liger_rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``apply_rotary_pos_emb`` returns, written over ``query`` and ``key``.

    Their memory is reused where it lies as ``[B, S, heads, D]``, as behind a projection, so nobody
    may need them afterwards; and so is that of their gradients.

    Args:
        query: ``[B, Hq, S, D]``.
        key: ``[B, Hkv, S, D]``.
        cos: ``[B or 1, S, D / 2]``, scaled as YaRN asks, dtype of ``query``.
        sin: As ``cos``.
    """
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply(query, key, cos, sin, None, 1, query.shape[-1])


def liger_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why Liger's kernels cannot be used on ``device``, or ``None`` when they are proven."""
    if device.type != "cuda":
        return f"Liger's kernels need a GPU, the model is on {device.type}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return find_fault(liger_rms_norm, liger_rotate, device, dtype)


def find_fault(
    norm: Norm, rotation: Rotation, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return what ``norm`` or ``rotation`` computes worse than torch on a small problem, or None.

    The problem: 24 rows of 320 values; 2 rows of 12 tokens, 4 query heads on 2, head size 64, one
    table of cosines for both rows. Outputs and gradients.
    """
    from triton.errors import TritonError

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    angle = torch.rand((1, 12, 32), generator=generator, dtype=torch.float64) * 6.28
    cos, sin = (f(angle).to(dtype).to(device) for f in (torch.cos, torch.sin))
    weight = draw(320)
    problems: dict[str, tuple[Any, Any, Any, list[Tensor]]] = {
        "RMSNorm": (
            lambda x: (norm(x, weight, 1e-5),),
            lambda x: (rms_norm(x, weight, 1e-5),),
            lambda x: (rms_norm_reference(x, weight.double(), 1e-5),),
            [draw(24, 320)],
        ),
        "rotary embedding": (
            lambda q, k: rotation(q.clone(), k.clone(), cos, sin),
            lambda q, k: apply_rotary_pos_emb(q, k, cos, sin),
            lambda q, k: apply_rotary_pos_emb(q, k, cos.double(), sin.double()),
            [draw(2, 12, 4, 64).transpose(1, 2), draw(2, 12, 2, 64).transpose(1, 2)],
        ),
    }
    for name, (candidate, usual, exact, inputs) in problems.items():
        grads = [draw(*t.shape) for t in inputs]
        truth = _differentiated(exact, [t.double() for t in inputs], [g.double() for g in grads])
        try:
            found = _differentiated(candidate, inputs, grads)
        except (RuntimeError, TypeError, AttributeError, ImportError, TritonError) as error:
            return f"Liger's {name} raised {type(error).__name__}: {error}"
        known = _differentiated(usual, inputs, grads)
        for got, reference, expected in zip(found, known, truth, strict=True):
            error = float((got.double() - expected).norm() / expected.norm())
            allowed = float((reference.double() - expected).norm() / expected.norm())
            if not error <= WORST_RATIO * allowed + _UNIT_ROUNDING[dtype] / 16:
                version = importlib.metadata.version("liger-kernel")
                return f"Liger's {name} ({version}) is off by {error:.1e}, torch by {allowed:.1e}"
    return None


def _differentiated(function: Any, inputs: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Return the outputs of ``function`` and the gradients of its inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        outputs = function(*leaves)
        found = torch.autograd.grad(outputs, leaves, [grad.clone() for grad in grads])
    return [*(output.detach() for output in outputs), *found]
