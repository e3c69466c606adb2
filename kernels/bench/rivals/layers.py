"""The expert layer by torch's grouped product: transformers' own, with PEFT, and as split LoRA."""

# Legend: T tokens, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

from collections.abc import Callable

import torch
from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.routing import route
from gptoss_kernels.swiglu import swiglu_reference
from gptoss_kernels.testing import LayerInputs
from measure import Shape
from torch import Tensor, nn

Gradients = tuple[Tensor, ...]


def stock_layer(shape: Shape, dense: LayerInputs) -> nn.Module:
    """Return transformers' module on the dense weights, to run on torch's grouped product."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = GptOssConfig(
        num_local_experts=shape.num_experts,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_experts_per_tok=shape.top_k,
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        layer = GptOssExperts(config)
    for name, projection in (("gate_up_proj", dense.gate_up), ("down_proj", dense.down)):
        setattr(layer, name, nn.Parameter(projection.weight, requires_grad=False))
        setattr(layer, f"{name}_bias", nn.Parameter(projection.bias, requires_grad=False))
    return layer


def transformers_layer(
    shape: Shape, dense: LayerInputs, d_out: Tensor, *, peft: bool = False
) -> Callable[[], Gradients]:
    """Return a call of transformers' layer, as a user has it today; with PEFT, the same factors.

    Args:
        shape: Of the layer.
        dense: Inputs with a dense base.
        d_out: ``[T, H]``, the gradient of the output.
        peft: Adapt both projections with PEFT's ``target_parameters``.
    """
    model = nn.Module()
    model.experts = stock_layer(shape, dense)
    leaves = [dense.hidden_states, dense.routing_weights]
    if peft:
        from peft import LoraConfig, get_peft_model

        rank = dense.gate_up.rank
        names = ["experts.gate_up_proj", "experts.down_proj"]
        alpha = int(dense.gate_up.scaling * rank)
        settings = LoraConfig(r=rank, lora_alpha=alpha, target_parameters=names)
        settings.target_modules = []
        model = get_peft_model(model, settings, autocast_adapter_dtype=False).base_model.model
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                projection = dense.gate_up if _of_gate_up(name, model) else dense.down
                with torch.no_grad():
                    parameter.copy_(_as_peft_has_it(projection, "lora_A" in name))
                leaves.append(parameter)

    def call() -> Gradients:
        out = model.experts(dense.hidden_states, dense.router_indices, dense.routing_weights)
        return torch.autograd.grad(out, leaves, d_out)

    return call


def _of_gate_up(name: str, model: nn.Module) -> bool:
    """Return whether a factor of PEFT's wrappers, one inside the other, is gate_up's."""
    wrapper = model.get_submodule(name.partition(".lora_")[0])
    return wrapper.parameter_name == "gate_up_proj"


def _as_peft_has_it(projection: ExpertProjection, first: bool) -> Tensor:
    """Return A as ``[E*R, in]``, by expert, or B as ``[out, R*E]``, by rank."""
    assert projection.lora_A is not None and projection.lora_B is not None
    if first:
        return projection.lora_A.flatten(0, 1)
    return projection.lora_B.permute(1, 2, 0).flatten(1)


def split_lora(dense: LayerInputs, d_out: Tensor) -> Callable[[], Gradients]:
    """Return the layer as separate grouped products: base, X A^T, (X A^T) B^T and an addition."""
    grouped_mm = torch.nn.functional.grouped_mm
    routing = route(dense.router_indices, dense.gate_up.logical_shape[0], backend="triton")
    offsets, tokens = routing.expert_offsets[1:], routing.token_indices
    experts_of_rows = torch.bucketize(
        torch.arange(tokens.shape[0], device=tokens.device), offsets, right=True
    )
    gates_of_rows = routing.slot_indices.long()
    leaves = list(dense.leaves().values())

    def project(rows: Tensor, projection: ExpertProjection) -> Tensor:
        base = grouped_mm(rows, projection.weight, offs=offsets)
        low = grouped_mm(rows, projection.lora_A.mT, offs=offsets)
        update = grouped_mm(low, projection.lora_B.mT, offs=offsets)
        return base + projection.bias[experts_of_rows] + projection.scaling * update

    def call() -> Gradients:
        rows = dense.hidden_states[tokens]
        rows = project(swiglu_reference(project(rows, dense.gate_up)), dense.down)
        weighted = rows * dense.routing_weights.flatten()[gates_of_rows, None]
        out = torch.zeros_like(dense.hidden_states).index_add(0, tokens, weighted)
        return torch.autograd.grad(out, leaves, d_out)

    return call
