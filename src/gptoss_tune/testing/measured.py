"""What a model really holds and keeps, in bytes: the other side of every figure of a plan.

Used by the tests and by ``kernels/bench/plan_measured.py``, so that the table that is shown and the
assertion that guards it count with the same code. Counted on a CPU, from tensors: what autograd
saves does not depend on the device. What the allocator loses to fragments does, and is not here.

H hidden, E experts.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gptoss_kernels import Mxfp4Weight
from gptoss_kernels.experts.records import KeptExperts
from torch import Tensor, nn
from transformers import GptOssConfig

from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION
from gptoss_tune.model.footprint import footprint
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.model.norms import set_norms
from gptoss_tune.model.routing import RouterChoice
from gptoss_tune.plan.architecture import RELEASED
from gptoss_tune.recipe.schema import LoraSection
from gptoss_tune.weights.names import EXPERT_PROJECTIONS, MXFP4_BLOCK

RELEASED_LAYER = replace(
    RELEASED["openai/gpt-oss-20b"], layer_types=("sliding_attention",), vocabulary=32
)
"""One layer of gpt-oss-20b under a vocabulary that costs nothing."""


def resident_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes held by kind, as ``memory`` of a plan names them."""
    totals: dict[str, int] = {}
    for row in footprint(model):
        totals[row.kind] = totals.get(row.kind, 0) + row.nbytes
    return totals


class _Kept:
    """What a graph holds in place of a tensor; gone when the graph no longer needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(
    model: Any, length: int, *, dtype: str, hidden: Callable[[int], Tensor] | None = None
) -> int:
    """Return the bytes that one row keeps for its backward pass, parameters and buffers left out.

    That is what its graph saves, and the indices that checkpointing keeps beside it. Every storage
    counts once. The row has ``length`` tokens, all of them trained.

    Args:
        model: A ``GptOssForTuning`` with adapters, on a CPU.
        length: Tokens.
        dtype: ``model.dtype`` of the recipe; bfloat16 runs under autocast, as the trainer does.
        hidden: Makes ``[1, length, H]`` to start from instead of the embeddings.
    """
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in [*model.parameters(), *model.buffers()]
        if not isinstance(tensor, ExpertWeight)
    }
    boxes: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        boxes.add(box := _Kept(tensor))
        return box

    tokens = torch.arange(length)[None] % model.config.vocab_size
    inputs = {"input_ids": tokens} if hidden is None else {"inputs_embeds": hidden(length)}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        weights = torch.ones(1, length)
        out = model(**inputs, shift_labels=tokens, loss_weights=weights, use_cache=False)
    storages = [
        tensor.untyped_storage() for tensor in [*(box.tensor for box in boxes), *_indices()]
    ]
    assert out.loss_sum.requires_grad, "or nothing would have been kept"
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values())


def _indices() -> list[Tensor]:
    """Return what a forward pass that is to run again holds beside its graph.

    That is what routers chose and experts sorted, and the table of cosines and sines.
    """
    found: list[Tensor | None] = []
    for one in gc.get_objects():
        if type(one) is RouterChoice:
            found.append(one.indices)
        elif type(one) is KeptExperts:
            for routing, _ in one.rows or ():
                found += [routing.token_indices, routing.slot_indices, routing.row_indices]
                found.append(routing.expert_offsets)
        elif type(one) is partial and "position_embeddings" in one.keywords:
            found += one.keywords["position_embeddings"]  # of a layer that is to run again
    return [tensor for tensor in found if tensor is not None]


def released_layer(lora: LoraSection) -> Any:
    """Return ``RELEASED_LAYER`` as a model in bf16 and MXFP4, adapted, ready to train.

    Every token meets the same 4 experts, so that four are decoded and not thirty-two; the bytes do
    not depend on the choice.
    """
    config = GptOssConfig(num_hidden_layers=1, num_local_experts=32, vocab_size=32, use_cache=False)
    with torch.device("meta"):
        model = GptOssForTuning._from_config(
            config, dtype=torch.bfloat16, experts_implementation=EXPERTS_IMPLEMENTATION
        )
        # Dense stacks of these shapes are 1.5 GiB that nothing would read.
        layer: Any = model.model.layers[0]
        stacks = layer.mlp.experts
        shapes = {name: getattr(stacks, name).shape for name in EXPERT_PROJECTIONS}
        for name in shapes:
            setattr(stacks, name, None)
    rotary = type(model.model.rotary_emb)(config)
    model = model.to_empty(device="cpu").requires_grad_(False)
    model.model.rotary_emb = rotary
    for parameter in model.parameters():
        parameter.fill_(0.01)
    layer.mlp.router.bias.copy_(torch.arange(32) % 8 == 0)
    generator = torch.Generator().manual_seed(2)
    for name, (num_experts, inner, out) in shapes.items():
        blocks = torch.randint(
            0,
            256,
            (num_experts, out, inner // MXFP4_BLOCK, MXFP4_BLOCK // 2),
            dtype=torch.uint8,
            generator=generator,
        )
        scales = torch.full(blocks.shape[:-1], 118, dtype=torch.uint8)
        weight = nn.Parameter(ExpertWeight(Mxfp4Weight(blocks, scales)), requires_grad=False)
        setattr(stacks, name, weight)
    adapted = add_adapters(model, lora)
    set_attention(adapted)
    set_norms(adapted)
    return adapted.train()


def released_hidden(length: int) -> Tensor:
    """Return hidden states ``[1, length, H]`` that ask for a gradient, as from a layer below."""
    return torch.randn(1, length, RELEASED_LAYER.hidden, dtype=torch.bfloat16, requires_grad=True)
