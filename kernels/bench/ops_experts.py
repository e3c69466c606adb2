"""``bench.py --op experts``: one expert layer, forward and backward, ours beside the others.

All candidates see the same routing and random numbers of the same scale. Those of transformers and
the split-LoRA way hold a dense bf16 base; ours are run on MXFP4 and on the same dense base.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gptoss_kernels import Mxfp4Weight, dequantize
from gptoss_kernels.experts import experts
from gptoss_kernels.experts.engines import Engine, find_obstacle
from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.testing import LayerInputs, relative_rms
from measure import SHAPES, Shape, copy_peak, device_of, matmul_peak, measure, no_figure
from rivals.layers import Gradients, split_lora, transformers_layer
from rivals.published import UNSLOTH, axolotl
from torch import Tensor

TESTS = [
    "experts/test_experts.py",
    "experts/test_experts_in_use.py",
    "test_mxfp4.py",
    "test_routing.py",
    "experts/test_stages.py",
    "experts/test_bf16_bounds.py",
    "test_gpu.py",
]
"""What must be green before a number is printed."""

Candidate = tuple[str, Callable[[], Gradients] | str]
Figure = dict[str, Any]
NO_LORA, MERGE_AWARE = "no LoRA", "merge-aware"
RIGHT = 3e-2
"""Relative RMS of dX above which a candidate computes something else: roundings across the clamps
of the activation explain 2.7e-2 (tests/kernels/experts/test_bf16_bounds.py)."""


def run(arguments: argparse.Namespace) -> None:
    """Print one table for each number of tokens."""
    shape = SHAPES[arguments.model]
    peak, bandwidth = matmul_peak(), copy_peak()
    print(f"ceilings: {peak / 1e12:.0f} TFLOP/s bf16 product, {bandwidth / 1e9:.0f} GB/s copy")
    print(decode_figure(shape, bandwidth))
    for tokens in arguments.tokens:
        print(f"\n{shape.name}, {tokens} tokens, r {arguments.rank}: a layer, both directions")
        print(f"{'':44}{'ms':>9}{'+-':>7}{'TFLOP/s':>9}{'of peak':>9}{'GB/s':>8}", end="")
        print(f"{'peak MiB':>10}{'dX off':>9}")
        least = shape.layer_bytes(tokens)
        for figure in figures(shape, tokens, arguments.rank, arguments.runs, arguments.only):
            if "not_run" in figure:
                print(f"{figure['name']:44}  {figure['not_run']}", flush=True)
                continue
            rate = 1e12 * figure["tflops"]
            print(
                f"{figure['name']:44}{figure['ms']:9.2f}{figure['spread']:7.2f}"
                f"{figure['tflops']:9.1f}{rate / peak:9.1%}{least / figure['ms'] / 1e6:8.0f}"
                f"{figure['peak_mib']:10.0f}{figure['dx_off']:9.1e}",
                flush=True,
            )


def figures(
    shape: Shape, tokens: int, rank: int, runs: int, only: str = "", leave_out: tuple[str, ...] = ()
) -> Iterator[Figure]:
    """Yield the figures of each candidate, or why there are none.

    ``dx_off`` is the relative RMS of the gradient of X against the layer in plain torch on the same
    weights, with or without the factors as the candidate has it. A candidate that is far off
    computes something else, and its time says nothing.
    """
    inputs = random_layer(shape, tokens, rank)
    flops = shape.layer_flops(tokens, rank)
    truths: dict[tuple[bool, bool], Tensor] = {}
    for name, call in candidates(shape, inputs):
        if only not in name or any(part in name for part in leave_out):
            continue
        figure: Figure = {"name": name, "tokens": tokens, "rank": rank, "model": shape.name}
        if isinstance(call, str):
            yield figure | {"not_run": call}
            continue
        kind = (NO_LORA not in name, MERGE_AWARE in name)
        try:
            if kind not in truths:
                truths[kind] = _true_gradient(inputs, *kind)
            off = relative_rms(call()[0], truths[kind])
            found = measure(call, runs=runs)
        except Exception as error:
            yield figure | no_figure(name, error)
        else:
            yield figure | {
                "ms": round(found.milliseconds, 4),
                "spread": round(found.spread, 4),
                "tflops": round(flops / found.milliseconds / 1e9, 1),
                "peak_mib": round(found.peak_bytes / 2**20, 1),
                "dx_off": off,
                "right": off <= RIGHT,
            }
        del call
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _true_gradient(inputs: LayerInputs, with_lora: bool, merge_aware: bool) -> Tensor:
    if not with_lora:
        plain = {"lora_A": None, "lora_B": None}
        inputs = replace(
            inputs, gate_up=replace(inputs.gate_up, **plain), down=replace(inputs.down, **plain)
        )
    out = experts(*inputs.arguments(), backend="torch", merge_aware=merge_aware)
    return torch.autograd.grad(out, inputs.hidden_states, gradient_of(inputs))[0]


def gradient_of(inputs: LayerInputs) -> Tensor:
    """Return the output's gradient that all candidates get."""
    device = inputs.hidden_states.device
    generator = torch.Generator(device).manual_seed(1)
    shape = inputs.hidden_states.shape
    drawn = torch.randn(shape, generator=generator, device=device)
    return drawn.to(inputs.hidden_states.dtype)


def decode_figure(shape: Shape, bandwidth: float) -> Figure:
    """Return the rate at which one layer's gate_up is decoded."""
    out_features, in_features = 2 * shape.intermediate, shape.hidden
    weight = random_mxfp4(shape.num_experts, out_features, in_features)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    scratch = torch.empty(weight.shape, dtype=dtype, device=device_of())
    found = measure(
        lambda: dequantize(weight.blocks, weight.scales, out=scratch, backend="triton"), runs=20
    )
    rate = (weight.nbytes + scratch.nbytes) / (1e-3 * found.milliseconds)
    return {
        "name": "decode of gate_up",
        "ms": round(found.milliseconds, 4),
        "gb_s": round(rate / 1e9),
        "of_copy": round(rate / bandwidth, 3),
    }


def random_mxfp4(
    num_experts: int, out_features: int, in_features: int, device: torch.device | None = None
) -> Mxfp4Weight:
    """Return random codes with scales that give weights the size of a trained layer's."""
    shape = (num_experts, out_features, in_features // 32)
    device = device or device_of()
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, device=device)
    scales = torch.randint(118, 121, shape, dtype=torch.uint8, device=device)
    return Mxfp4Weight(blocks, scales)


def random_layer(shape: Shape, tokens: int, rank: int) -> LayerInputs:
    """Return a layer with MXFP4 weights, bf16 activations (fp32 on a CPU) and a random routing."""
    device = device_of()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    e, h, i = shape.num_experts, shape.hidden, shape.intermediate

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, device=device)).to(dtype)

    def projection(out_features: int, in_features: int) -> ExpertProjection:
        return ExpertProjection(
            random_mxfp4(e, out_features, in_features),
            draw(e, out_features),
            draw(e, rank, in_features, scale=in_features**-0.5).requires_grad_(),
            draw(e, out_features, rank, scale=rank**-0.5).requires_grad_(),
            scaling=2.0,
        )

    scores = torch.rand((tokens, e), device=device)
    return LayerInputs(
        draw(tokens, h).requires_grad_(),
        scores.topk(shape.top_k).indices,
        draw(tokens, shape.top_k).softmax(-1).detach().requires_grad_(),
        projection(2 * i, h),
        projection(h, i),
    )


def candidates(shape: Shape, inputs: LayerInputs) -> Iterator[Candidate]:
    """Yield a name and a call of forward and backward that returns the gradients, X's first.

    Instead of the call comes a line where a candidate cannot run here. Ours come first, so that
    a time limit takes the others.
    """
    d_out, dtype = gradient_of(inputs), inputs.hidden_states.dtype
    engines: list[Engine] = ["fused", "grouped_mm", "quack", "packed"]
    obstacles = {engine: find_obstacle(engine, d_out.device, dtype) for engine in engines}

    def ours(layer: LayerInputs, **options: Any) -> Callable[[], Gradients]:
        leaves = list(layer.leaves().values())

        def call() -> Gradients:
            out = experts(*layer.arguments(), backend="triton", **options)
            return torch.autograd.grad(out, leaves, d_out)

        return call

    for engine in engines:
        yield f"ours, MXFP4, {engine}", obstacles[engine] or ours(inputs, engine=engine)
    yield "ours, MXFP4, fused, drop Z", ours(inputs, engine="fused", recompute_gate_up=True)
    yield f"ours, MXFP4, fused, {MERGE_AWARE}", ours(inputs, engine="fused", merge_aware=True)
    dense = replace(inputs, gate_up=_dense(inputs.gate_up, dtype), down=_dense(inputs.down, dtype))
    for engine in engines[:2]:
        yield f"ours, bf16 base, {engine}", obstacles[engine] or ours(dense, engine=engine)
    yield "split LoRA on grouped_mm, bf16 base", split_lora(dense, d_out)
    yield f"transformers grouped_mm, {NO_LORA} (the floor)", transformers_layer(shape, dense, d_out)
    yield "transformers grouped_mm + PEFT", transformers_layer(shape, dense, d_out, peft=True)
    yield "Axolotl scattermoe_lora", axolotl(shape, dense, d_out)
    yield "Unsloth", UNSLOTH


def _dense(projection: ExpertProjection, dtype: torch.dtype) -> ExpertProjection:
    weight = projection.weight
    assert isinstance(weight, Mxfp4Weight)
    stack = dequantize(weight.blocks, weight.scales, dtype=dtype, backend="triton")
    return replace(projection, weight=stack.mT.contiguous())
