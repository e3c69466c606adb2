"""Kernels that other projects publish for this layer, run from the environment, never copied.

Axolotl (0.19.0, kernels under Apache-2.0): ``scattermoe_experts_forward`` takes transformers'
gpt-oss module, biases and clamped activation included, and fuses the rank-r term into the product.
It is what its ``use_scattermoe`` calls. The folder of these kernels is imported by itself: the
package around it loads a trainer.

Unsloth (2026.10.9): the grouped products of ``unsloth.kernels.moe`` (AGPL-3.0) have neither bias
nor rank-r term, and gpt-oss does not train on them: its expert LoRA there is torch's grouped
product over stacked factors (unsloth_zoo), which "split LoRA on grouped_mm" stands for. Its import
replaces parts of transformers and PEFT in the process, so it is not run beside the others.
"""

# Legend: T tokens, E experts, R rank.

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.testing import LayerInputs
from measure import Shape
from rivals.layers import Gradients, stock_layer
from torch import Tensor

UNSLOTH = "its import replaces parts of transformers and PEFT; see split LoRA, which it computes"


def axolotl(shape: Shape, dense: LayerInputs, d_out: Tensor) -> Callable[[], Gradients] | str:
    """Return a call of Axolotl's layer with the same factors, or why there is none here.

    Args:
        shape: Of the layer.
        dense: Inputs with a dense base.
        d_out: ``[T, H]``, the gradient of the output.
    """
    if not torch.cuda.is_available():
        return "it needs a GPU"
    found = importlib.util.find_spec("axolotl")
    if found is None or not found.submodule_search_locations:
        return "not installed (axolotl==0.19.0, without its dependencies)"
    folder = Path(found.submodule_search_locations[0], "integrations", "kernels", "libs")
    sys.path.append(str(folder))
    try:
        from scattermoe_lora.experts import scattermoe_experts_forward
    except ImportError as error:
        return f"its kernels do not import: {error}"
    layer, leaves = stock_layer(shape, dense), list(dense.leaves().values())

    def call() -> Gradients:
        layer._scattermoe_lora = {
            "gate_up_proj": _factors(dense.gate_up),
            "down_proj": _factors(dense.down),
        }
        out = scattermoe_experts_forward(
            layer, dense.hidden_states, dense.router_indices, dense.routing_weights
        )
        return torch.autograd.grad(out, leaves, d_out)

    return call


def _factors(projection: ExpertProjection) -> tuple[Tensor, Tensor, float]:
    """Return A as ``[E*R, in]``, B as ``[out, E*R]``, both by expert, and the scaling."""
    assert projection.lora_A is not None and projection.lora_B is not None
    lora_B = projection.lora_B.transpose(0, 1).flatten(1)
    return projection.lora_A.flatten(0, 1), lora_B, projection.scaling
