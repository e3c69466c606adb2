"""RMSNorm modules of a loaded gpt-oss, swapped one by one for the kernel that keeps less.

The swap is on the instance: ``model.model.layers[0].input_layernorm`` becomes another object with
the same ``weight`` under the same name, so checkpoints and adapters do not notice, and the classes
of transformers stay as they are. Rotary embeddings are left alone: autograd keeps nothing of size
for them (cosines and sines are constants), and in transformers they are a function and not a
module, which only a patch of the library could replace.

H hidden.
"""

from __future__ import annotations

from typing import Literal

from gptoss_kernels.rms_norm import rms_norm
from torch import Tensor, nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm


class RmsNorm(nn.Module):
    """``GptOssRMSNorm`` on ``gptoss_kernels.rms_norm``: the same bits, a quarter of the memory."""

    def __init__(
        self, weight: nn.Parameter, eps: float, *, backend: Literal["torch", "triton"] = "torch"
    ) -> None:
        """Share ``weight`` ``[H]`` with the module that this one replaces."""
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps
        self.backend: Literal["torch", "triton"] = backend

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised ``[..., H]`` in the dtype of ``hidden_states``."""
        return rms_norm(hidden_states, self.weight, self.variance_epsilon, backend=self.backend)

    def extra_repr(self) -> str:
        """Return shape, eps and backend for ``print(model)``."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}, backend={self.backend}"


def set_norms(model: nn.Module, backend: Literal["torch", "triton"] = "torch") -> int:
    """Swap every RMSNorm of ``model`` for ``RmsNorm`` on ``backend``; return how many there are.

    Calling it again changes the backend.

    Args:
        model: A gpt-oss model, bare or inside PEFT.
        backend: Which kernels run.

    Raises:
        ValueError: The model has no RMSNorm of gpt-oss.
    """
    swapped = 0
    for owner in list(model.modules()):
        for name, norm in list(owner.named_children()):
            if isinstance(norm, GptOssRMSNorm | RmsNorm):
                new = RmsNorm(norm.weight, norm.variance_epsilon, backend=backend)
                setattr(owner, name, new.train(norm.training))
                swapped += 1
    if not swapped:
        raise ValueError(f"{type(model).__name__} holds no GptOssRMSNorm; only gpt-oss has them")
    return swapped
