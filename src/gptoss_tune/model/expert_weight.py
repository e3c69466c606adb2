"""An expert stack as a parameter that can be adapted but never expanded.

PEFT adapts a bare ``nn.Parameter`` by asking for ``torch.baddbmm(W, lhs, rhs, alpha=s)``, that is
W + s A B for all experts at once: for gpt-oss-20b two gigabytes a layer, on every forward, and a
dense gradient of the same size. ``ExpertWeight`` is a tensor subclass with W's logical shape
``[E, in, out]`` whose storage is the packed MXFP4 bytes (or the dense stack); it answers exactly
that call, and with an unevaluated ``LowRankExpertWeight`` that remembers W, A, B and s. The expert
forward reads the factors from there and applies them to the routed rows.

So adapters are created, saved and loaded by PEFT itself, under its own names, while no path can
turn the stack into a dense tensor behind the user's back: any other operation raises. Training and
evaluation spare even this call: ``param_wrapper`` hands the factors to the expert forward. A model
that plain PEFT has wrapped, ``PeftModel.from_pretrained(load_base(...), ...)``, comes through here
and computes the same bits.

Worked example, 2 experts of 32 inputs and 64 outputs: ``blocks [2, 64, 1, 16]`` (2,048 bytes) and
``scales [2, 64, 1]`` (128 bytes) make an ``ExpertWeight`` of shape ``[2, 32, 64]`` that holds 2,176
bytes where bf16 would hold 8,192.

Its dtype says nothing about the storage: it is fp32, the dtype of the adapters, because PEFT casts
the factors to the dtype of the parameter they adapt, and merge-aware training needs them unrounded.

FSDP2 spreads such a parameter over ranks along its experts. It asks a tensor subclass to be cut
there, copied and gathered; the few operations of that are answered on the stored bytes, so what
travels between ranks is packed and what arrives is an ``ExpertWeight`` over the received buffers,
without a copy. Handing FSDP2 blocks and scales as two byte parameters beside a stack made from them
would need no such operations, but then PEFT finds no parameter to adapt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from gptoss_kernels import Mxfp4Weight
from torch import Tensor

_aten = torch.ops.aten


class ExpertWeight(Tensor):
    """A stack of expert weights ``[E, in, out]``, packed or dense, that no operation expands.

    Attributes:
        stored: ``Mxfp4Weight`` with blocks ``[E, out, in/32, 16]``, or a dense ``[E, in, out]``
            tensor of a floating dtype. Of a stack that was read as one rank's share: its experts
            alone.
        first_expert: Number of the first expert stored; not 0 only in such a share.
    """

    stored: Mxfp4Weight | Tensor
    first_expert: int

    @staticmethod
    def __new__(
        cls, stored: Mxfp4Weight | Tensor, dtype: torch.dtype = torch.float32
    ) -> ExpertWeight:
        """Wrap ``stored``; ``dtype`` is the one in which adapters hand over their factors."""
        return _wrap(stored, dtype, _logical_shape(stored))

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
        """Allow what moves, cuts or aliases the stack; refuse what would compute with it."""
        answer = _ANSWERS.get(func)
        if answer is None or not isinstance(args[0], ExpertWeight):
            raise _would_expand(func)
        result = answer(*args, **(kwargs or {}))
        if result is NotImplemented:
            raise _would_expand(func)
        return result

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: Any, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor, ...], None]:
        """Return the tensors of this rank's experts that FSDP2 gathers, as they are stored."""
        return _parts(self.stored), None

    def fsdp_post_all_gather(
        self,
        all_gather_outputs: tuple[Tensor, ...],
        metadata: None,
        param_dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> tuple[ExpertWeight, tuple[Tensor, ...]] | None:
        """Return a stack over the gathered tensors; nothing is copied and nothing decoded.

        FSDP2 frees and fills the same buffers again in later steps, so with ``out``, the stack made
        the first time, there is nothing left to do.
        """
        if out is not None:
            return None
        packed = isinstance(self.stored, Mxfp4Weight)
        stored = Mxfp4Weight(*all_gather_outputs) if packed else all_gather_outputs[0]
        return ExpertWeight(stored, self.dtype), ()


def expert_stack(stored: Mxfp4Weight | Tensor, experts: int, first_expert: int) -> ExpertWeight:
    """Return the stack of ``experts`` experts of which ``stored`` holds some, or all.

    Args:
        stored: As in ``ExpertWeight``.
        experts: E of the whole stack.
        first_expert: Number of the first expert stored.
    """
    return _wrap(stored, torch.float32, (experts, *_logical_shape(stored)[1:]), first_expert)


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


def _logical_shape(stored: Mxfp4Weight | Tensor) -> tuple[int, ...]:
    if isinstance(stored, Mxfp4Weight):
        experts, out_features, in_features = stored.shape
        return experts, in_features, out_features
    return tuple(stored.shape)


def _wrap(
    stored: Mxfp4Weight | Tensor,
    dtype: torch.dtype,
    shape: Sequence[int],
    first_expert: int = 0,
) -> ExpertWeight:
    """Return ``stored`` under a logical shape, which may say more experts than are stored."""
    device = stored.blocks.device if isinstance(stored, Mxfp4Weight) else stored.device
    weight: ExpertWeight = torch.Tensor._make_wrapper_subclass(
        ExpertWeight, tuple(shape), dtype=dtype, device=device
    )
    weight.stored, weight.first_expert = stored, first_expert
    return weight


def _parts(stored: Mxfp4Weight | Tensor) -> tuple[Tensor, ...]:
    if isinstance(stored, Mxfp4Weight):
        return stored.blocks, stored.scales
    return (stored,)


def _map_stored(
    stored: Mxfp4Weight | Tensor, change: Callable[[Tensor], Tensor]
) -> Mxfp4Weight | Tensor:
    if isinstance(stored, Mxfp4Weight):
        return Mxfp4Weight(change(stored.blocks), change(stored.scales))
    return change(stored)


def _alias(weight: ExpertWeight) -> ExpertWeight:
    return _wrap(weight.stored, weight.dtype, weight.shape, weight.first_expert)


def _to_copy(
    weight: ExpertWeight,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    non_blocking: bool = False,
    **layout: Any,
) -> ExpertWeight:
    stored = weight.stored
    if device is not None:
        stored = _map_stored(stored, lambda t: t.to(device, non_blocking=non_blocking))
    return _wrap(stored, dtype or weight.dtype, weight.shape, weight.first_expert)


def _clone(weight: ExpertWeight, **layout: Any) -> ExpertWeight:
    stored = _map_stored(weight.stored, torch.clone)
    return _wrap(stored, weight.dtype, weight.shape, weight.first_expert)


def _set(weight: ExpertWeight, source: Any) -> ExpertWeight:
    if not isinstance(source, ExpertWeight):
        return NotImplemented
    weight.stored, weight.first_expert = source.stored, source.first_expert
    return weight


def _experts(weight: ExpertWeight, first: int, stop: int) -> ExpertWeight:
    """Return experts ``first`` to ``stop``; those that a share lacks have a shape and no memory."""
    stored = weight.stored
    held = _logical_shape(stored)[0]
    start = first - weight.first_expert
    if start >= 0 and start + stop - first <= held:
        return ExpertWeight(
            _map_stored(stored, lambda t: t[start : start + stop - first]), weight.dtype
        )
    if first < weight.first_expert + held and weight.first_expert < stop:
        raise ValueError(
            f"experts {first} to {stop - 1} were asked for, and experts {weight.first_expert} to "
            f"{weight.first_expert + held - 1} are held here: the stack was read for another "
            "number of processes than it is spread over"
        )
    absent = _map_stored(
        stored, lambda t: torch.empty((stop - first, *t.shape[1:]), dtype=t.dtype, device="meta")
    )
    return ExpertWeight(absent, weight.dtype)


def _split(weight: ExpertWeight, size: int, dim: int = 0) -> list[ExpertWeight]:
    if dim != 0 or weight.dim() != 3:
        return NotImplemented
    total = weight.shape[0]
    return [_experts(weight, n, min(n + size, total)) for n in range(0, total, size)]


def _slice(
    weight: ExpertWeight, dim: int = 0, start: int | None = None, end: int | None = None, step=1
) -> ExpertWeight:
    if dim != 0 or step != 1 or weight.dim() != 3:
        return NotImplemented
    first, stop, _ = slice(start, end).indices(weight.shape[0])
    return _experts(weight, first, stop)


def _new_zeros(weight: ExpertWeight, size: Sequence[int], **options: Any) -> ExpertWeight:
    if len(size) != 3 or tuple(size[1:]) != tuple(weight.shape[1:]):
        return NotImplemented
    return ExpertWeight(
        _map_stored(weight.stored, lambda t: t.new_zeros((size[0], *t.shape[1:]))), weight.dtype
    )


def _copy(weight: ExpertWeight, source: Any, non_blocking: bool = False) -> ExpertWeight:
    if not isinstance(source, ExpertWeight) or source.shape != weight.shape:
        return NotImplemented
    for into, part in zip(_parts(weight.stored), _parts(source.stored), strict=True):
        into.copy_(part, non_blocking=non_blocking)
    return weight


def _view(weight: ExpertWeight, size: Sequence[int]) -> ExpertWeight:
    """Return the stack as it is, or under a flat shape: the handle FSDP2 has of a rank's share."""
    if list(size) == list(weight.shape):
        return _alias(weight)
    if list(size) not in ([-1], [weight.numel()]):
        return NotImplemented
    return _wrap(weight.stored, weight.dtype, (weight.numel(),))


def _as_strided(
    weight: ExpertWeight, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> ExpertWeight:
    same = (tuple(size), tuple(stride)) == (tuple(weight.shape), weight.stride())
    return _alias(weight) if same and not offset else NotImplemented


_ANSWERS: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: _alias,
    _aten.alias.default: _alias,
    _aten._to_copy.default: _to_copy,
    _aten.clone.default: _clone,
    _aten.set_.source_Tensor: _set,
    # What FSDP2 asks for, all of it along the experts.
    _aten.split.Tensor: _split,
    _aten.slice.Tensor: _slice,
    _aten.new_zeros.default: _new_zeros,
    _aten.copy_.default: _copy,
    _aten.view.default: _view,
    _aten.as_strided.default: _as_strided,
}
"""Operation -> what answers it on the stored tensors; the answer may still be NotImplemented."""


def _would_expand(func: Callable[..., Any]) -> NotImplementedError:
    return NotImplementedError(
        f"{func} on a stack of expert weights would expand it for all experts at once. Only one "
        "active LoRA adapter through PEFT >= 0.21 is supported here; to combine or merge adapters "
        "use `gptoss-tune merge`"
    )
