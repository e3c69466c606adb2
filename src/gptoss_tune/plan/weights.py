"""Memory footprint and parameter counts of weights, adapters and optimizer state.

Counted shape by shape, in the words of the line that a run prints when its model is loaded:
experts, attention, embeddings, other, adapters. The tests compare each with what a loaded model
really holds.
"""

# Legend: H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

import math
from dataclasses import dataclass

from gptoss_tune.plan.architecture import Architecture
from gptoss_tune.recipe.recipe import chosen_count
from gptoss_tune.recipe.schema import LoraSection, ModelSection

FP32_BYTES = 4
_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
MXFP4_BLOCK = 32
"""Values that share a scale, along the input axis."""
MXFP4_BLOCK_BYTES = MXFP4_BLOCK // 2 + 1

# bitsandbytes: a byte for two weights, one for the maximum of each 64, and a float for each 256 of
# those; the two code books and a header of about 170 bytes come with every weight.
_NF4_BLOCK, _NF4_NESTED_BLOCK, _NF4_CONSTANT = 64, 256, 4 * 16 + 4 * 256 + 171

# A bf16 scale for each 64 values of a row; lm_head is packed in NF4, and decoded, by these rows.
_INT8_BLOCK, _INT8_SCALE, PACKED_TILE_ROWS = 64, 2, 8192

# bitsandbytes' 8-bit moments: two bytes a value and two floats for each 256; smaller tensors than
# 4,096 values keep both moments in fp32.
_EIGHT_BIT_BLOCK, _EIGHT_BIT_FROM = 256, 4096


@dataclass(frozen=True)
class Factors:
    """One adapted weight of one layer (for experts: of all experts of the layer).

    Attributes:
        layer: Number of the layer.
        target: ``q_proj`` ... ``down_proj``.
        rank: R.
        parameters_A: Values in ``lora_A``.
        parameters_B: Values in ``lora_B``.
        laid_out: Values of both for all experts of the layer, which its products see; 0 where the
            factors are of all experts anyway.
    """

    layer: int
    target: str
    rank: int
    parameters_A: int
    parameters_B: int
    laid_out: int = 0

    @property
    def parameters(self) -> int:
        """Values in both factors."""
        return self.parameters_A + self.parameters_B

    @property
    def on_experts(self) -> bool:
        """Whether the factors belong to experts."""
        return self.target in ("gate_up_proj", "down_proj")


def compute_bytes(model: ModelSection) -> int:
    """Return the bytes of one value in the compute dtype."""
    return _DTYPE_BYTES[model.dtype]


def adapted_layers(architecture: Architecture, lora: LoraSection) -> list[int]:
    """Return the numbers of the layers with adapters, ascending."""
    return list(range(architecture.layers)) if lora.layers is None else sorted(lora.layers)


def adapter_factors(architecture: Architecture, lora: LoraSection) -> list[Factors]:
    """Return every adapted weight, layer after layer.

    Raises:
        RecipeError: More experts are to be chosen than a layer has.
    """
    expert_rank, experts = lora.expert_rank or lora.rank, architecture.experts
    chosen = chosen_count(lora, experts)
    found = []
    for layer in adapted_layers(architecture, lora):
        for target in lora.target_modules:
            inner, out = architecture.attention_shapes[target]
            found.append(Factors(layer, target, lora.rank, lora.rank * inner, lora.rank * out))
        for target in lora.target_parameters:
            inner, out = architecture.expert_shapes[target]
            rows = (chosen or experts) * expert_rank
            every = 0 if chosen is None else experts * expert_rank * (inner + out)
            found.append(Factors(layer, target, expert_rank, rows * inner, rows * out, every))
    return found


def adapter_parameters(factors: list[Factors]) -> int:
    """Return how many values are trained."""
    return sum(factor.parameters for factor in factors)


def optimizer_bytes(factors: list[Factors], optim: str) -> int:
    """Return the bytes of the optimizer's moments, wherever they live."""
    sizes = [size for f in factors for size in (f.parameters_A, f.parameters_B)]
    if optim == "adamw":
        return 2 * FP32_BYTES * sum(sizes)
    total = 0
    for size in sizes:
        if size < _EIGHT_BIT_FROM:
            total += 2 * FP32_BYTES * size
        else:
            total += 2 * size + 2 * FP32_BYTES * -(-size // _EIGHT_BIT_BLOCK)
    return total


def expert_parameters(architecture: Architecture) -> int:
    """Return the weights of one layer's experts, biases left out."""
    shapes = architecture.expert_shapes.values()
    return architecture.experts * sum(inner * out for inner, out in shapes)


def layer_bytes(architecture: Architecture, model: ModelSection) -> dict[str, int]:
    """Return the bytes of one decoder layer: ``experts``, ``attention`` and ``other``."""
    value = compute_bytes(model)
    a = architecture
    if model.experts_precision == "mxfp4":
        experts = expert_parameters(a) * MXFP4_BLOCK_BYTES // MXFP4_BLOCK
    else:
        experts = expert_parameters(a) * value
    attention = a.heads * value  # the sinks
    for inner, out in a.attention_shapes.values():
        attention += out * value
        attention += _linear_bytes(out, inner, model.linear_precision, value)
    biases = a.experts * sum(out for _, out in a.expert_shapes.values())
    router = a.experts * (a.hidden + 1)
    norms = 2 * a.hidden
    return {
        "experts": experts,
        "attention": attention,
        "other": (biases + router + norms) * value,
    }


def nf4_bytes(values: int) -> int:
    """Return the bytes of one weight in bitsandbytes' NF4 with nested statistics."""
    blocks = -(-values // _NF4_BLOCK)
    nested = -(-blocks // _NF4_NESTED_BLOCK)
    return -(-values // 2) + blocks + FP32_BYTES * nested + _NF4_CONSTANT


def int8_bytes(rows: int, inputs: int) -> int:
    """Return the bytes of one weight in int8, its scales included."""
    return rows * inputs + _INT8_SCALE * rows * (inputs // math.gcd(inputs, _INT8_BLOCK))


def _linear_bytes(rows: int, inputs: int, precision: str, value: int) -> int:
    """Return the bytes of one frozen linear weight of ``rows`` outputs."""
    if precision == "int8":
        return int8_bytes(rows, inputs)
    return nf4_bytes(rows * inputs) if precision == "nf4" else rows * inputs * value


def head_bytes(architecture: Architecture, model: ModelSection) -> int:
    """Return the bytes of ``lm_head``; in NF4 each tile of its rows is packed by itself."""
    a, value = architecture, compute_bytes(model)
    if model.head_precision != "nf4":
        return _linear_bytes(a.vocabulary, a.hidden, model.head_precision, value)
    tiles, rest = divmod(a.vocabulary, PACKED_TILE_ROWS)
    whole = tiles * nf4_bytes(PACKED_TILE_ROWS * a.hidden)
    return whole + (nf4_bytes(rest * a.hidden) if rest else 0)


def base_bytes(architecture: Architecture, model: ModelSection) -> dict[str, int]:
    """Return the bytes of the frozen model by kind, as ``model.footprint`` names them."""
    value, a = compute_bytes(model), architecture
    kinds = {kind: size * a.layers for kind, size in layer_bytes(a, model).items()}
    kinds["embeddings"] = a.vocabulary * a.hidden * value + head_bytes(a, model)
    # The final norm, and the rotary frequencies twice (transformers keeps the original ones).
    kinds["other"] += a.hidden * value + 2 * FP32_BYTES * (a.head_dim // 2)
    return kinds


def gathered_bytes(architecture: Architecture, model: ModelSection) -> int:
    """Return the bytes of two layers' frozen weights, and of ``lm_head``, put together."""
    head = 0 if model.head == "cpu" else head_bytes(architecture, model)
    return 2 * sum(layer_bytes(architecture, model).values()) + head


def host_weight_bytes(architecture: Architecture, model: ModelSection) -> int:
    """Return the bytes of the token embeddings and of ``lm_head`` where they are moved."""
    a = architecture
    held = a.vocabulary * a.hidden * compute_bytes(model) if model.embeddings == "cpu" else 0
    return held + (head_bytes(a, model) if model.head == "cpu" else 0)


def parameters(architecture: Architecture) -> int:
    """Return all parameters of the base."""
    a = architecture
    attention = sum(inner * out + out for inner, out in a.attention_shapes.values()) + a.heads
    biases = a.experts * sum(out for _, out in a.expert_shapes.values())
    layer = attention + expert_parameters(a) + biases + a.experts * (a.hidden + 1) + 2 * a.hidden
    return a.layers * layer + 2 * a.vocabulary * a.hidden + a.hidden
