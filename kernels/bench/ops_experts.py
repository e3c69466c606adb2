"""``bench.py --op experts``: one expert layer, forward and backward, ours beside the others.

All candidates see the same routing and random numbers of the same scale. Those of transformers and
the split-LoRA way hold a dense bf16 base; ours are run on MXFP4 and on the same dense base.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from gptoss_kernels import Mxfp4Weight, dequantize, experts
from gptoss_kernels.grouped_mm import grouped_mm_obstacle
from gptoss_kernels.projection import ExpertProjection
from gptoss_kernels.routing import route
from gptoss_kernels.swiglu import swiglu_reference
from gptoss_kernels.testing import LayerInputs
from measure import SHAPES, Measured, Shape, copy_peak, device_of, matmul_peak, measure
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

TESTS = [
    "test_experts.py",
    "test_experts_in_use.py",
    "test_mxfp4.py",
    "test_routing.py",
    "test_stages.py",
    "test_gpu.py",
]
"""What must be green before a number is printed."""

Candidate = tuple[str, Callable[[], object]]


def run(arguments: argparse.Namespace) -> None:
    """Print one table for each number of tokens."""
    shape = SHAPES[arguments.model]
    peak, bandwidth = matmul_peak(), copy_peak()
    print(f"ceilings: {peak / 1e12:.0f} TFLOP/s bf16 product, {bandwidth / 1e9:.0f} GB/s copy")
    _decode(shape, bandwidth)
    for tokens in arguments.tokens:
        inputs = random_layer(shape, tokens, arguments.rank)
        flops = shape.layer_flops(tokens, arguments.rank)
        print(
            f"\n{shape.name}, {tokens} tokens, r {arguments.rank}: forward and backward of a layer"
        )
        least = shape.layer_bytes(tokens)
        print(f"{'':44}{'ms':>9}{'+-':>7}{'TFLOP/s':>9}{'of peak':>9}{'GB/s':>8}{'peak MiB':>10}")
        for name, call in candidates(shape, inputs):
            if arguments.only and arguments.only not in name:
                continue
            try:
                _print(name, measure(call, runs=arguments.runs), flops, least, peak)
            except torch.cuda.OutOfMemoryError:
                print(f"{name:44}  out of memory")
            torch.cuda.empty_cache()


def _print(name: str, measured: Measured, flops: float, least: float, peak: float) -> None:
    seconds = 1e-3 * measured.milliseconds
    rate = flops / seconds
    print(
        f"{name:44}{measured.milliseconds:9.2f}{measured.spread:7.2f}{rate / 1e12:9.1f}"
        f"{rate / peak:9.1%}{least / seconds / 1e9:8.0f}{measured.peak_bytes / 2**20:10.0f}",
        flush=True,
    )


def _decode(shape: Shape, bandwidth: float) -> None:
    """Print the rate at which one layer's gate_up is decoded."""
    out_features, in_features = 2 * shape.intermediate, shape.hidden
    weight = random_mxfp4(shape.num_experts, out_features, in_features)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    scratch = torch.empty(weight.shape, dtype=dtype, device=device_of())
    measured = measure(
        lambda: dequantize(weight.blocks, weight.scales, out=scratch, backend="triton"), runs=20
    )
    rate = (weight.nbytes + scratch.nbytes) / (1e-3 * measured.milliseconds)
    print(
        f"decode of gate_up: {measured.milliseconds:.3f} ms, {rate / 1e9:.0f} GB/s, "
        f"{rate / bandwidth:.0%} of the copy"
    )


def random_mxfp4(num_experts: int, out_features: int, in_features: int) -> Mxfp4Weight:
    """Return random codes with scales that give weights the size of a trained layer's."""
    shape = (num_experts, out_features, in_features // 32)
    device = device_of()
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
    """Yield a name and a call that runs forward and backward."""
    d_out = torch.randn_like(inputs.hidden_states)
    dtype = inputs.hidden_states.dtype
    engines = ["fused", "packed"]
    engines += [] if grouped_mm_obstacle(d_out.device, dtype) else ["grouped_mm"]

    def ours(layer: LayerInputs, **options: object) -> Callable[[], object]:
        leaves = list(layer.leaves().values())

        def call() -> object:
            out = experts(*layer.arguments(), backend="triton", **options)
            return torch.autograd.grad(out, leaves, d_out)

        return call

    for engine in engines:
        yield f"ours, MXFP4, {engine}", ours(inputs, engine=engine)
    yield "ours, MXFP4, fused, drop Z", ours(inputs, engine="fused", recompute_gate_up=True)
    yield "ours, MXFP4, merge-aware", ours(inputs, engine="fused", merge_aware=True)
    dense = replace(inputs, gate_up=_dense(inputs.gate_up, dtype), down=_dense(inputs.down, dtype))
    for engine in engines:
        if engine != "packed":
            yield f"ours, bf16 base, {engine}", ours(dense, engine=engine)
    yield "split LoRA on grouped_mm, bf16 base", split_lora(dense, d_out)
    yield "transformers grouped_mm, no LoRA (the floor)", transformers_layer(shape, dense, d_out)
    yield "transformers grouped_mm + PEFT", transformers_layer(shape, dense, d_out, peft=True)


def _dense(projection: ExpertProjection, dtype: torch.dtype) -> ExpertProjection:
    weight = projection.weight
    assert isinstance(weight, Mxfp4Weight)
    stack = dequantize(weight.blocks, weight.scales, dtype=dtype, backend="triton")
    return replace(projection, weight=stack.mT.contiguous())


def transformers_layer(
    shape: Shape, dense: LayerInputs, d_out: Tensor, *, peft: bool = False
) -> Callable[[], object]:
    """Return transformers' layer on torch's grouped product, as a user has it today."""
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
    model = nn.Module()
    model.experts = layer
    leaves = [dense.hidden_states, dense.routing_weights]
    if peft:
        rank = dense.gate_up.rank
        names = ["experts.gate_up_proj", "experts.down_proj"]
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_parameters=names)
        settings.target_modules = []
        model = get_peft_model(model, settings, autocast_adapter_dtype=False).base_model.model
        leaves += [p for p in model.parameters() if p.requires_grad]

    def call() -> object:
        out = model.experts(dense.hidden_states, dense.router_indices, dense.routing_weights)
        return torch.autograd.grad(out, leaves, d_out)

    return call


def split_lora(dense: LayerInputs, d_out: Tensor) -> Callable[[], object]:
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

    def call() -> object:
        rows = dense.hidden_states[tokens]
        rows = project(swiglu_reference(project(rows, dense.gate_up)), dense.down)
        weighted = rows * dense.routing_weights.flatten()[gates_of_rows, None]
        out = torch.zeros_like(dense.hidden_states).index_add(0, tokens, weighted)
        return torch.autograd.grad(out, leaves, d_out)

    return call
