"""Bytes of a real training step at real sizes, traced on tensors without values.

A layer of gpt-oss-20b, its adapters and its loss live on torch's meta device: every operation and
every kernel's launch path runs and allocates as on a GPU, and nothing is computed. What was alive,
and when most of it, is then a count and not an estimate, at 131,072 tokens as well as at 2,048.

Not seen: what CUDA's libraries take for a moment, what the allocator loses, host memory (inputs
that ``offload`` moves stay), and autocast's copies of attention's factors (11 MB a layer), for the
meta device has no autocast: these factors are in bf16 here.
"""

# Legend: T tokens of a row, H hidden, E experts.

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from gptoss_kernels import Mxfp4Weight
from gptoss_kernels.attention.documents import find_documents
from gptoss_kernels.attention.triton_engine import TritonEngine
from gptoss_kernels.backend import shapes_only
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GptOssConfig

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import ATTENTION_IMPLEMENTATION
from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION, ExpertSettings, set_expert_settings
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.model.norms import set_norms
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.weights.names import EXPERT_PROJECTIONS, MXFP4_BLOCK


class AliveBytes(TorchDispatchMode):
    """Bytes of the storages made inside and not yet freed, and their peak.

    Attributes:
        now: Bytes alive.
        peak: The most there were.
    """

    def __init__(self, own: list[Tensor] | None = None) -> None:
        """Follow every tensor but ``own``."""
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in own or []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and follow what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not isinstance(tensor, ExpertWeight):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class TracedStep:
    """Bytes of one step beyond the weights, the gradients and the input of the lowest layer.

    Attributes:
        kept: Between forward and backward, the gradient that the loss hands back among them.
        peak: The most at any time.
    """

    kept: int
    peak: int


def traced_step(setup: TrainingSetup) -> TracedStep:
    """Return the bytes of one step of ``setup``, whose architecture's layers are built.

    Args:
        setup: Of bf16 and MXFP4, with one row a micro-batch.
    """
    model, inputs = _ready(setup)
    with shapes_only(), AliveBytes([*_tensors(model), *inputs.values()]) as alive:
        out = _run(model, inputs)
        kept = alive.now
        out.loss_sum.backward()
    return TracedStep(kept, alive.peak)


def traced_pass(setup: TrainingSetup) -> int:
    """Return the most bytes of a pass without gradients, as ``TracedStep.peak`` counts."""
    model, inputs = _ready(setup)
    own = [*_tensors(model), *inputs.values()]
    with shapes_only(), torch.no_grad(), AliveBytes(own) as alive:
        _run(model.eval(), inputs)
    return alive.peak


def _ready(setup: TrainingSetup) -> tuple[Any, dict[str, Tensor]]:
    """Return the model and a row without values: states of the lowest layer, positions, weights."""
    model, length = _model(setup), setup.data.max_length
    asked = setup.train.expert_tile
    tile = None if asked == "auto" else asked  # as a run reads it, not as the plan does
    set_expert_settings(model, ExpertSettings(backend="triton", tile_tokens=tile))
    set_checkpointing(model, setup.train.activation_checkpointing)
    for module in model.modules():
        if (handle := getattr(module, "share_input_handle", None)) is not None:
            handle.remove()  # it asks for autocast
            module.cast_input_dtype_enabled = False
    with torch.device("meta"):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        width, half = setup.architecture.hidden, torch.bfloat16
        inputs = {
            "inputs_embeds": torch.empty(1, length, width, dtype=half, requires_grad=True),
            "position_ids": torch.empty(1, length, dtype=torch.int64),
            "loss_weights": torch.empty(1, length),
        }
    return model, inputs


def _run(model: Any, inputs: dict[str, Tensor]) -> Any:
    positions = inputs["position_ids"]
    length, device = positions.shape[1], positions.device
    return model(
        **inputs,
        shift_labels=positions,
        documents=find_documents(1, length, device, position_ids=positions),
        selected_rows=length,
        use_cache=False,
    )


def _model(setup: TrainingSetup) -> Any:
    a = setup.architecture
    config = GptOssConfig(
        num_hidden_layers=a.layers,
        num_local_experts=a.experts,
        vocab_size=a.vocabulary,
        layer_types=list(a.layer_types),
        use_cache=False,
    )
    with torch.device("meta"):
        model: Any = GptOssForTuning._from_config(
            config, dtype=torch.bfloat16, experts_implementation=EXPERTS_IMPLEMENTATION
        )
        for layer in model.model.layers:
            stacks = layer.mlp.experts
            for name in EXPERT_PROJECTIONS:
                experts, inner, out = getattr(stacks, name).shape
                blocks = (experts, out, inner // MXFP4_BLOCK, MXFP4_BLOCK // 2)
                packed = Mxfp4Weight(
                    torch.empty(blocks, dtype=torch.uint8),
                    torch.empty(blocks[:-1], dtype=torch.uint8),
                )
                setattr(stacks, name, nn.Parameter(ExpertWeight(packed), requires_grad=False))
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.requires_grad_(False)
    model.loss_backend = "triton"
    model.model.set_attn_implementation(ATTENTION_IMPLEMENTATION)
    adapted = add_adapters(model, setup.lora)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "experts" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    for module in adapted.modules():
        if type(module).__name__ == "GptOssAttention":
            module.attention_engine = TritonEngine()  # pyright: ignore[reportArgumentType]
    set_norms(adapted)
    return adapted.train()


def _tensors(model: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for tensor in (*model.parameters(), *model.buffers()):
        stored = getattr(tensor, "stored", tensor)
        found += [stored.blocks, stored.scales] if isinstance(stored, Mxfp4Weight) else [stored]
        if tensor.grad is not None:
            found.append(tensor.grad)
    return found
