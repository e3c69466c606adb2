"""What sinks add to an attention kernel without them: O' and LSE' before, rowsum(dO * O') after.

With O and LSE of a stock kernel ``LSE' = logaddexp(LSE, sink)`` and ``O' = O * exp(LSE - LSE')``,
and the gradient of the sinks needs ``rowsum(dO * O')``; see ``attention.py``. As a chain of torch
operations the first reads and writes O in fp32 several times over; in Triton O is read once and
written once, over itself, and the sum reads dO and O' once.

Rejected: scaling O inside the autograd function of a library, which keeps O a second time.

B rows, S tokens of a row, Hq query heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptoss_kernels.backend import (
    Backend,
    launch,
    on_device,
    require_backend,
    require_triton,
    triton_obstacle,
)

__all__ = [
    "add_sinks",
    "add_sinks_reference",
    "row_sums",
    "row_sums_reference",
    "sinks_obstacle",
]

HEAD_SIZES = (16, 32, 64, 128, 256)
"""Of the Triton kernels."""
_ROWS_AT_A_TIME = 4096
_TILE = {"BLOCK_M": 64, "num_warps": 4}
"""Tokens and warps of a program: 16 KiB of a tensor in flight, and no spill on any architecture."""


def add_sinks(
    out: Tensor, lse: Tensor, sinks: Tensor, *, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Return ``O * exp(LSE - LSE')`` and ``LSE' = logaddexp(LSE, sink)``.

    O is multiplied in fp32 and rounded once. A contiguous ``out`` is overwritten: nobody may need
    it afterwards.

    Args:
        out: ``[B, S, Hq, D]``, floating, any strides with contiguous D.
        lse: ``[B, Hq, S]`` fp32, any strides.
        sinks: ``[Hq]``, floating.
        backend: Who computes; torch goes through O in pieces, since widened whole it takes 2 GiB
            at 131,072 tokens.

    Returns:
        ``[B, S, Hq, D]`` in the dtype of ``out`` and ``[B, Hq, S]`` fp32, both contiguous.

    Raises:
        ValueError: Shapes or dtypes do not fit, or Triton was asked for and cannot run.

    See ``add_sinks_reference``.
    """
    _validate(out, lse, sinks)
    require_backend(backend)
    scaled = out if out.is_contiguous() else out.new_empty(out.shape)
    if backend == "triton":
        _require_triton("add_sinks", out, lse, sinks)
        with_sink = torch.empty(lse.shape, dtype=torch.float32, device=lse.device)
        if out.numel():
            with on_device(out):
                _launch_add_sinks(out, lse, sinks, scaled, with_sink)
        return scaled, with_sink
    sinks = sinks.float()[:, None]
    with_sink = torch.logaddexp(lse, sinks)
    # exp(LSE - LSE') without the rounding of LSE'.
    share = torch.sigmoid(lse - sinks).transpose(1, 2).unsqueeze(-1)
    for target, rows, factor in zip(
        scaled.split(_ROWS_AT_A_TIME, dim=1),
        out.split(_ROWS_AT_A_TIME, dim=1),
        share.split(_ROWS_AT_A_TIME, dim=1),
        strict=True,
    ):
        target.copy_(rows.float() * factor)
    return scaled, with_sink.contiguous()


def add_sinks_reference(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``add_sinks`` returns, in the dtype of ``lse`` and in memory of its own."""
    with_sink = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    share = torch.exp(lse - with_sink).transpose(1, 2).unsqueeze(-1)
    return out.to(lse.dtype) * share, with_sink


def row_sums(grad_out: Tensor, out: Tensor, *, backend: Backend) -> Tensor:
    """Return ``rowsum(dO * O)``, the products not rounded before they are summed.

    Args:
        grad_out: ``[B, S, Hq, D]``, dO, any strides.
        out: As ``grad_out``, O or O'.
        backend: Who computes; torch goes through both in pieces, since widened whole they take
            4 GiB at 131,072 tokens.

    Returns:
        ``[B, Hq, S]``, contiguous, fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: Shapes differ, or Triton was asked for and cannot run.

    See ``row_sums_reference``.
    """
    if grad_out.shape != out.shape or out.ndim != 4:
        raise ValueError(
            f"row_sums needs two tensors [B, S, Hq, D], got {tuple(grad_out.shape)} and "
            f"{tuple(out.shape)}"
        )
    require_backend(backend)
    if backend == "triton":
        _require_triton("row_sums", out, grad_out)
        with on_device(out):
            return _launch_row_sums(grad_out, out)
    wide = torch.promote_types(out.dtype, torch.float32)
    pieces = [
        (grad.to(wide) * rows.to(wide)).sum(dim=-1)
        for grad, rows in zip(
            grad_out.split(_ROWS_AT_A_TIME, dim=1), out.split(_ROWS_AT_A_TIME, dim=1), strict=True
        )
    ]
    return torch.cat(pieces, dim=1).transpose(1, 2).contiguous()


def row_sums_reference(grad_out: Tensor, out: Tensor) -> Tensor:
    """Return what ``row_sums`` returns, in the dtype of the inputs."""
    return (grad_out * out).sum(dim=-1).transpose(1, 2)


def sinks_obstacle(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Return why the Triton kernels of this file cannot run, or ``None`` when they can."""
    obstacle = triton_obstacle(device, dtype)
    if obstacle is None and head_size not in HEAD_SIZES:
        return f"its kernels for sinks have head sizes {HEAD_SIZES}, got {head_size}"
    return obstacle


def _validate(out: Tensor, lse: Tensor, sinks: Tensor) -> None:
    if out.ndim != 4 or lse.shape != (out.shape[0], out.shape[2], out.shape[1]):
        raise ValueError(
            f"add_sinks needs out [B, S, Hq, D] and lse [B, Hq, S], got {tuple(out.shape)} and "
            f"{tuple(lse.shape)}"
        )
    if sinks.shape != out.shape[2:3]:
        raise ValueError(f"sinks need shape [{out.shape[2]}], got {tuple(sinks.shape)}")
    if lse.dtype != torch.float32:
        raise ValueError(f"add_sinks needs an fp32 lse, got {lse.dtype}")


def _require_triton(name: str, out: Tensor, *others: Tensor) -> None:
    require_triton(name, out, *others)
    if out.shape[-1] not in HEAD_SIZES:
        raise ValueError(
            f'{name}: backend "triton" has head sizes {HEAD_SIZES}, got {out.shape[-1]}; use '
            f'backend "torch"'
        )


def _launch_add_sinks(
    out: Tensor, lse: Tensor, sinks: Tensor, scaled: Tensor, with_sink: Tensor
) -> None:
    from gptoss_kernels._triton._attention_sinks import _add_sinks_kernel

    batch, length, heads, size = out.shape
    out = out if out.stride(-1) == 1 else out.contiguous()
    launch(
        _add_sinks_kernel,
        (-(-length // _TILE["BLOCK_M"]) * batch * heads,),
        out,
        lse,
        sinks,
        scaled,
        with_sink,
        *out.stride()[:3],
        *lse.stride(),
        length,
        heads,
        batch * heads,
        HEAD_SIZE=size,
        **_TILE,
    )


def _launch_row_sums(grad_out: Tensor, out: Tensor) -> Tensor:
    from gptoss_kernels._triton._attention_backward import _attention_delta_kernel

    batch, length, heads, size = out.shape
    sums = torch.empty(batch, heads, length, dtype=torch.float32, device=out.device)
    if out.numel() == 0:
        return sums.zero_()
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    launch(
        _attention_delta_kernel,
        (-(-length // _TILE["BLOCK_M"]) * batch * heads,),
        grad_out,
        out.contiguous(),
        sums,
        *grad_out.stride()[:3],
        length,
        heads,
        batch * heads,
        HEAD_SIZE=size,
        **_TILE,
    )
    return sums
