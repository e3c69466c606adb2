"""Whole training steps of a random gpt-oss, built on the GPU in MXFP4 without a file.

    python kernels/bench/step.py --model gpt-oss-20b --length 16384
    python kernels/bench/step.py --model gpt-oss-120b --layers 4 --checkpointing full

Prints the median step, tokens a second, MFU and peak memory; with fewer ``--layers`` than the model
has, also what the layers alone would take for the whole model, so that a smaller card can measure.
MFU counts useful work only: forward, gradients of activations, adapters and attention, not what
checkpointing computes again.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from measure import SHAPES, Shape, device_of, environment, matmul_peak, median_ms
from ops_experts import random_mxfp4
from torch import nn
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.experts import (
    EXPERTS_IMPLEMENTATION,
    ExpertSettings,
    set_expert_settings,
)
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.model.memory import set_checkpointing
from gptoss_tune.model.norms import choose_row_kernels, set_norms
from gptoss_tune.recipe import LoraSection

VOCABULARY, HEADS, KEY_VALUE_HEADS, HEAD, WINDOW = 201_088, 64, 8, 64, 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="gpt-oss-20b")
    parser.add_argument("--layers", type=int, help="build this many layers instead of all")
    parser.add_argument("--length", type=int, default=16384, help="tokens of the one sequence")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--backend", choices=("torch", "triton"), default="triton")
    parser.add_argument("--attention", default="auto")
    parser.add_argument(
        "--checkpointing", choices=("none", "selective", "full", "offload"), default="full"
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--cpu", action="store_true", help="check the script without a GPU")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu:
        print("no GPU: nothing to measure (--cpu --model tiny checks the script)", file=sys.stderr)
        return 3
    shape = SHAPES[arguments.model]
    layers = arguments.layers or shape.layers
    print(environment())
    model, engine = build(shape, layers, arguments)
    print(f"{shape.name}, {layers} of {shape.layers} layers, attention: {engine}")
    step = training_step(model, shape, arguments.length)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    full, spread = median_ms(step, warmup=min(3, arguments.runs), runs=arguments.runs)
    peak_memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    report(shape, layers, arguments, full, spread, peak_memory)
    return 0


def report(
    shape: Shape,
    layers: int,
    arguments: argparse.Namespace,
    milliseconds: float,
    spread: float,
    peak_memory: int,
) -> None:
    """Print the figures of one configuration."""
    length, seconds = arguments.length, 1e-3 * milliseconds
    useful = step_flops(shape, layers, length, arguments.rank)
    print(
        f"step {milliseconds:.1f} ms (+- {spread:.1f}), {length / seconds:,.0f} tokens/s, ", end=""
    )
    print(f"MFU {useful / seconds / matmul_peak():.1%} of the measured bf16 peak, ", end="")
    print(f"peak memory {peak_memory / 2**30:.1f} GiB")


def step_flops(shape: Shape, layers: int, length: int, rank: int) -> float:
    """Return the useful operations of one step: no gradient of the frozen base."""
    queries, keys = HEADS * HEAD, KEY_VALUE_HEADS * HEAD
    projections = 2 * length * shape.hidden * (2 * queries + 2 * keys)
    router = 2 * length * shape.hidden * shape.num_experts
    # Half of the layers look at WINDOW keys, half at all before: 2 products forward, 4 backward.
    seen = length * (min(WINDOW, length) + length / 2) / 2
    attention = 6 * 2 * queries * seen
    experts = shape.layer_flops(length, rank)
    head = 2 * 2 * length * shape.hidden * VOCABULARY
    return layers * (2 * projections + 2 * router + attention + experts) + head


def build(shape: Shape, layers: int, arguments: argparse.Namespace) -> tuple[nn.Module, str]:
    """Return a model with random weights on the device, ready to train, and its attention."""
    device, cuda = device_of(), torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    config = GptOssConfig(
        num_hidden_layers=layers,
        num_local_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        vocab_size=VOCABULARY if cuda else 512,
        head_dim=HEAD,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        sliding_window=WINDOW,
        use_cache=False,
    )
    with torch.device("meta"):
        model = GptOssForTuning._from_config(
            config, dtype=dtype, experts_implementation=EXPERTS_IMPLEMENTATION
        )
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, random_parameter(name, parameter, dtype))
    model.model.rotary_emb = GptOssRotaryEmbedding(config).to(device)
    adapted = add_adapters(model.requires_grad_(False), LoraSection(rank=arguments.rank))
    set_expert_settings(adapted, ExpertSettings(backend=arguments.backend))
    engine = set_attention(adapted, arguments.attention)
    set_checkpointing(adapted, arguments.checkpointing)
    row_wise = choose_row_kernels(arguments.backend, device, dtype)
    set_norms(adapted, row_wise.kernels)
    adapted.get_base_model().loss_backend = arguments.backend
    return adapted.train(), f"{engine.reason}; norms and rotation: {row_wise.reason}"


def random_parameter(name: str, like: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """Return random values on the device; expert stacks are packed from the start."""
    if name in ("gate_up_proj", "down_proj"):
        experts, in_features, out_features = like.shape
        packed = ExpertWeight(random_mxfp4(experts, out_features, in_features))
        return nn.Parameter(packed, requires_grad=False)
    values = torch.randn(like.shape, device=device_of(), dtype=dtype)
    values *= 1.0 if like.dim() < 2 else like.shape[-1] ** -0.5
    return nn.Parameter(values, requires_grad=False)


def training_step(model: nn.Module, shape: Shape, length: int):
    """Return a call that does one optimizer step on random tokens, every token with loss."""
    vocabulary = model.get_base_model().config.vocab_size
    tokens = torch.randint(0, vocabulary, (1, length + 1), device=device_of())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=torch.cuda.is_available())
    weights = torch.ones((1, length), device=device_of())

    def step() -> None:
        # As the trainer does: the factors are fp32, the products bf16.
        with torch.autocast(device_of().type, torch.bfloat16, enabled=torch.cuda.is_available()):
            output = model(
                input_ids=tokens[:, :-1],
                shift_labels=tokens[:, 1:],
                loss_weights=weights,
                selected_rows=length,
            )
        (output.loss_sum / length).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    sys.exit(main())
