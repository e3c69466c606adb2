"""cuDNN's attention as an engine for the full layers, sinks added as for every stock kernel.

Published rates put its forward between FlashAttention 2 and 3, which nobody here has measured with
sinks, so it is used only where it is asked for by name. It knows neither a window nor documents,
and puts the diagonal at the top left where there are more keys than queries: windowed layers, rows
that hold several documents or padding, and parts of a row with keys before them go to torch's flash
kernels. Its
backward is planned from the layout of Q alone and takes O and the log-sum-exp as they would lie
then, so all of them are handed over with heads inside tokens.

Rejected: its variable-length form, which in torch excludes grouped heads.

B rows, S tokens of a row, Hq query heads, Hkv key-value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptoss_kernels.attention.interface import AttentionRule
from gptoss_kernels.attention.sinks import add_sinks, row_sums
from gptoss_kernels.attention.torch_flash import TorchFlashEngine
from gptoss_kernels.backend import Backend

OLDEST_VERSION = 90_100
"""cuDNN 9.1: the first with a backward for grouped heads that torch uses."""
HEAD_SIZES = (64, 128)


class CudnnEngine:
    """torch's ``_scaled_dot_product_cudnn_attention`` and its backward, with LSE'."""

    def __init__(self, backend: Backend) -> None:
        """Let ``backend`` add the sinks; torch's flash kernels compute what cuDNN does not know."""
        self.backend: Backend = backend
        self._flash = TorchFlashEngine(backend)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """See ``AttentionEngine``."""
        if not _whole(rule):
            return self._flash.forward(query, key, value, sinks, rule)
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *(_heads_inside(tensor) for tensor in (query, key, value)),
            None,
            True,
            0.0,
            True,
            False,
            scale=rule.scaling,
        )
        lse = lse.view(lse.shape[:3])
        return add_sinks(out.transpose(1, 2), lse, sinks, backend=self.backend)

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        rule: AttentionRule,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``AttentionEngine``."""
        if not _whole(rule):
            return self._flash.backward(grad_out, query, key, value, out, lse, rule)
        length = query.shape[2]
        unused = torch.zeros((), dtype=torch.int64, device=query.device)  # of no dropout
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad_out.contiguous().transpose(1, 2),
            *(_heads_inside(tensor) for tensor in (query, key, value)),
            out.transpose(1, 2),
            lse.unsqueeze(-1),
            unused,
            unused,
            None,
            None,
            None,
            length,
            length,
            0.0,
            True,
            scale=rule.scaling,
        )

    def row_sums(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """See ``AttentionEngine``."""
        return row_sums(grad_out, out, backend=self.backend)


def cudnn_obstacle(dtype: torch.dtype, head_size: int, capability: tuple[int, int]) -> str | None:
    """Return why cuDNN's attention cannot run on a GPU of ``capability``, or ``None``."""
    if torch.version.hip is not None:
        return "cuDNN runs on NVIDIA GPUs"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bf16 or fp16, got {dtype}"
    if capability < (8, 0):
        return "it needs compute capability 8.0, this GPU has " + ".".join(map(str, capability))
    version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if version is None or version < OLDEST_VERSION:
        return f"it needs cuDNN {OLDEST_VERSION}, torch has {version}"
    if head_size not in HEAD_SIZES:
        return f"it has head sizes {HEAD_SIZES}, got {head_size}"
    return None


def _whole(rule: AttentionRule) -> bool:
    return rule.window is None and rule.documents.whole_rows()


def _heads_inside(heads_first: Tensor) -> Tensor:
    """Return ``[B, heads, S, D]`` in the memory order ``[B, S, heads, D]``."""
    return heads_first.transpose(1, 2).contiguous().transpose(1, 2)
