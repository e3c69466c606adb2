"""An expert stack as a parameter that can be adapted but never expanded.

PEFT adapts a bare ``nn.Parameter`` by asking for ``torch.baddbmm(W, lhs, rhs, alpha=s)``, that is
W + s A B for all experts at once: for gpt-oss-20b two gigabytes a layer, on every forward, and a
dense gradient of the same size. ``ExpertWeight`` is a tensor subclass with W's logical shape
``[E, in, out]`` whose storage is the packed MXFP4 bytes (or the dense stack); it answers exactly
that call, and with an unevaluated ``LowRankExpertWeight`` that remembers W, A, B and s. The expert
forward reads the factors from there and applies them to the routed rows.

So adapters are created, saved and loaded by PEFT itself, under its own names, while no path can
turn the stack into a dense tensor behind the user's back: any other operation raises. The rejected
alternative, replacing PEFT's ``ParamWrapper`` by a class of ours, would have to follow each of its
releases.

Worked example, 2 experts of 32 inputs and 64 outputs: ``blocks [2, 64, 1, 16]`` (2,048 bytes) and
``scales [2, 64, 1]`` (128 bytes) make an ``ExpertWeight`` of shape ``[2, 32, 64]`` that holds 2,176
bytes where bf16 would hold 8,192.

Its dtype says nothing about the storage: it is fp32, the dtype of the adapters, because PEFT casts
the factors to the dtype of the parameter they adapt, and merge-aware training needs them unrounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gptoss_kernels import Mxfp4Weight
from torch import Tensor

_aten = torch.ops.aten


class ExpertWeight(Tensor):
    """A stack of expert weights ``[E, in, out]``, packed or dense, that no operation expands.

    Attributes:
        stored: ``Mxfp4Weight`` with blocks ``[E, out, in/32, 16]``, or a dense ``[E, in, out]``
            tensor of a floating dtype.
    """

    stored: Mxfp4Weight | Tensor

    @staticmethod
    def __new__(
        cls, stored: Mxfp4Weight | Tensor, dtype: torch.dtype = torch.float32
    ) -> ExpertWeight:
        """Wrap ``stored``; ``dtype`` is the one in which adapters hand over their factors."""
        if isinstance(stored, Mxfp4Weight):
            experts, out_features, in_features = stored.shape
            device = stored.blocks.device
        else:
            experts, in_features, out_features = stored.shape
            device = stored.device
        weight = torch.Tensor._make_wrapper_subclass(
            cls, (experts, in_features, out_features), dtype=dtype, device=device
        )
        weight.stored = stored
        return weight

    @property
    def stored_nbytes(self) -> int:
        """Bytes really held, unlike ``nbytes``, which tells of the logical shape."""
        return self.stored.nbytes

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Name the logical shape and how it is held."""
        held = "MXFP4" if isinstance(self.stored, Mxfp4Weight) else str(self.stored.dtype)
        return f"ExpertWeight(shape={tuple(self.shape)}, dtype={self.dtype}, stored as {held})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer PEFT's ``baddbmm`` with factors; let everything else reach the dispatcher."""
        kwargs = kwargs or {}
        if func is torch.baddbmm and isinstance(args[0], ExpertWeight):
            base, lhs, rhs = args
            return LowRankExpertWeight(base, lhs, rhs, float(kwargs.get("alpha", 1.0)))
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Allow what moves or aliases the stack; refuse what would compute with it."""
        kwargs = kwargs or {}
        if func in (_aten.detach.default, _aten.alias.default):
            return cls(args[0].stored, args[0].dtype)
        if func is _aten._to_copy.default:
            return args[0]._moved(kwargs)
        if func is _aten.clone.default:
            return cls(_map_stored(args[0].stored, torch.clone), args[0].dtype)
        if func is _aten.set_.source_Tensor and isinstance(args[1], ExpertWeight):
            args[0].stored = args[1].stored
            return args[0]
        raise _would_expand(func)

    def _moved(self, kwargs: Mapping[str, Any]) -> ExpertWeight:
        device = kwargs.get("device")
        dtype = kwargs.get("dtype") or self.dtype
        stored = self.stored
        if device is not None:
            non_blocking = kwargs.get("non_blocking", False)
            stored = _map_stored(stored, lambda t: t.to(device, non_blocking=non_blocking))
        return ExpertWeight(stored, dtype)


class LowRankExpertWeight(Tensor):
    """``W + scaling * lhs @ rhs`` for a stack of experts, kept as its four parts.

    Gradients flow through ``lhs`` and ``rhs``, which are ordinary tensors; this wrapper itself is
    outside autograd.

    Attributes:
        base: The frozen ``ExpertWeight`` ``[E, in, out]``.
        lhs: ``[E, in, r]``, PEFT's A transposed.
        rhs: ``[E, r, out]``, PEFT's B transposed.
        scaling: ``alpha / rank``.
    """

    base: ExpertWeight
    lhs: Tensor
    rhs: Tensor
    scaling: float

    @staticmethod
    def __new__(
        cls, base: ExpertWeight, lhs: Tensor, rhs: Tensor, scaling: float
    ) -> LowRankExpertWeight:
        """Hold the four parts of an update."""
        experts, in_features, out_features = base.shape
        rank = lhs.shape[-1]
        if lhs.shape != (experts, in_features, rank) or rhs.shape != (experts, rank, out_features):
            raise ValueError(
                f"an update of a {tuple(base.shape)} stack needs lhs [E, in, r] and rhs "
                f"[E, r, out], got {tuple(lhs.shape)} and {tuple(rhs.shape)}"
            )
        update = torch.Tensor._make_wrapper_subclass(
            cls, base.shape, dtype=base.dtype, device=base.device
        )
        update.base, update.lhs, update.rhs, update.scaling = base, lhs, rhs, scaling
        return update

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Name the shape and rank of the update."""
        return f"LowRankExpertWeight(shape={tuple(self.shape)}, rank={self.lhs.shape[-1]})"

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Refuse to compute with the unevaluated sum."""
        if func in (_aten.detach.default, _aten.alias.default):
            update = args[0]
            return cls(update.base, update.lhs, update.rhs, update.scaling)
        raise _would_expand(func)


def _map_stored(
    stored: Mxfp4Weight | Tensor, change: Callable[[Tensor], Tensor]
) -> Mxfp4Weight | Tensor:
    if isinstance(stored, Mxfp4Weight):
        return Mxfp4Weight(change(stored.blocks), change(stored.scales))
    return change(stored)


def _would_expand(func: Callable[..., Any]) -> NotImplementedError:
    return NotImplementedError(
        f"{func} on a stack of expert weights would expand it for all experts at once. Only one "
        "active LoRA adapter through PEFT >= 0.21 is supported here; to combine or merge adapters "
        "use `gptoss-tune merge`"
    )
