"""RMSNorm and rotary embedding of a loaded gpt-oss, swapped module by module for what costs less.

The swap is on the instance: ``model.model.layers[0].input_layernorm`` becomes another object with
the same ``weight`` under the same name, so checkpoints and adapters do not notice, and the classes
of transformers stay as they are. The rotation is a function inside the attention's forward, so with
Liger's kernels each attention layer gets a subclass whose forward calls another one; in torch it
stays transformers', for which autograd keeps nothing of size (cosines and sines are constants).

On a GPU both are Liger's. It is a dependency on Linux, its kernels are equal to gpt-oss's formulas
(``liger.py`` proves it at every start), and kernels of our own would be the same two passes over
the hidden states, to be tuned and proved a second time. Where Liger cannot be used on a GPU torch
computes, and the run says so in a warning with the price: never silently, and never an error, since
the result is the same.

H hidden, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from gptoss_kernels.rms_norm import rms_norm
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssAttention,
    GptOssRMSNorm,
    eager_attention_forward,
)

from gptoss_tune.model.liger import liger_obstacle, liger_rms_norm, liger_rotate

RowKernels = Literal["torch", "liger"]

PRICE = (
    "about 70 ms a step of 16,384 tokens of gpt-oss-20b on an H200, estimated from the bytes they "
    "move and not measured"
)
"""Of norms and rotation in torch: some ten passes over the hidden states where Liger's make two."""


@dataclass(frozen=True)
class RowKernelChoice:
    """Who computes norms and rotations.

    Attributes:
        kernels: For ``set_norms``.
        reason: The name, and why, for the log.
        warning: What it costs and what to do, where a GPU runs without Liger's kernels.
    """

    kernels: RowKernels
    reason: str
    warning: str | None = None


class RmsNorm(nn.Module):
    """``GptOssRMSNorm`` that keeps a quarter of the memory: torch's own bits, or Liger's kernel."""

    def __init__(self, weight: nn.Parameter, eps: float, *, kernels: RowKernels = "torch") -> None:
        """Share ``weight`` ``[H]`` with the module that this one replaces."""
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps
        self.kernels: RowKernels = kernels

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised ``[..., H]`` in the dtype of ``hidden_states``."""
        norm = liger_rms_norm if self.kernels == "liger" else rms_norm
        return norm(hidden_states, self.weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        """Return shape, eps and kernels for ``print(model)``."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}, {self.kernels}"


class LigerRotaryAttention(cast(type, GptOssAttention)):
    """``GptOssAttention`` whose queries and keys are rotated by Liger's kernel, in their memory."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the parent returns, see ``GptOssAttention.forward``.

        transformers hands the cache over as ``past_key_values`` up to 5.23, as ``cache`` from 5.24.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = liger_rotate(query, key, *position_embeddings)
        held = past_key_values if cache is None else cache
        if held is not None:
            key, value = held.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            s_aux=self.sinks,
            **kwargs,
        )
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def choose_row_kernels(
    backend: Literal["torch", "triton"], device: torch.device, dtype: torch.dtype
) -> RowKernelChoice:
    """Return who computes norms and rotations; Liger where it is proven on ``device``.

    Args:
        backend: Of the model; with ``torch`` Liger is not asked.
        device: Where the model is.
        dtype: Of the activations.
    """
    if backend == "torch":
        return RowKernelChoice("torch", "torch")
    obstacle = liger_obstacle(device, dtype)
    if obstacle is None:
        return RowKernelChoice("liger", "liger")
    warning = None
    if device.type == "cuda":
        warning = (
            f"warning: norms and rotation run in torch, because {obstacle}; this costs {PRICE}; "
            f"`pip install -U liger-kernel` brings kernels that do not"
        )
    return RowKernelChoice("torch", f"torch, because {obstacle}", warning)


def set_norms(model: nn.Module, kernels: RowKernels = "torch") -> int:
    """Let norms and rotations of ``model`` run on ``kernels``; return how many norms there are.

    Calling it again changes them.

    Args:
        model: A gpt-oss model, bare or inside PEFT.
        kernels: Who computes.

    Raises:
        ValueError: The model has no RMSNorm of gpt-oss.
    """
    swapped = 0
    for owner in list(model.modules()):
        if isinstance(owner, cast(type, GptOssAttention)):
            owner.__class__ = LigerRotaryAttention if kernels == "liger" else GptOssAttention
        for name, norm in list(owner.named_children()):
            if isinstance(norm, GptOssRMSNorm | RmsNorm):
                new = RmsNorm(norm.weight, norm.variance_epsilon, kernels=kernels)
                setattr(owner, name, new.train(norm.training))
                swapped += 1
    if not swapped:
        raise ValueError(f"{type(model).__name__} holds no GptOssRMSNorm; only gpt-oss has them")
    return swapped
