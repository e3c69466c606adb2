"""Whole training steps of a random gpt-oss, built on the GPU in MXFP4 without a file.

    python kernels/bench/step.py --model gpt-oss-20b --length 16384 --documents 4096 --profile 30
    python kernels/bench/step.py --model gpt-oss-120b --layers 12 --checkpointing full

Prints the median step, the host's part of it, tokens a second, MFU and peak memory. ``--documents``
packs the row, which is what training does. MFU counts useful work only: forward, gradients of
activations, adapters and attention between tokens that see each other, not what checkpointing
computes again. Needs torch, triton, transformers, PEFT, pydantic and what these need; Liger's norms
where it is installed. No trainer, no tokenizer, no data.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from measure import (
    SHAPES,
    Shape,
    attended_pairs,
    device_of,
    environment,
    host_and_device_ms,
    kernel_times,
    matmul_peak,
)
from ops_experts import random_mxfp4
from torch import Tensor, nn
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.causal_lm import GptOssForTuning
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.experts import (
    EXPERTS_IMPLEMENTATION,
    ExpertSettings,
    set_expert_settings,
)
from gptoss_tune.model.lora import add_adapters
from gptoss_tune.model.norms import choose_row_kernels, set_norms
from gptoss_tune.recipe import LoraSection

Figure = dict[str, Any]
DEFAULT_RANK = {"gpt-oss-120b": 8}
"""16 elsewhere; at 16 the factors of 120b with their optimizer state take 16 GiB."""
VOCABULARY, HEADS, KEY_VALUE_HEADS, HEAD, WINDOW = 201_088, 64, 8, 64, 128


@dataclass(frozen=True)
class Step:
    """What is measured.

    Attributes:
        layers: Built; the model's own number or fewer.
        tokens: Of the one row.
        documents: Tokens of each document packed into the row; None for one document.
        rank: Of all LoRA pairs.
        backend: Of experts and loss.
        attention: An engine's name or "auto".
        checkpointing: As in a recipe.
        expert_tile: Tokens that go through the experts at a time; None for all.
    """

    layers: int
    tokens: int
    documents: int | None = None
    rank: int = 16
    backend: Literal["torch", "triton"] = "triton"
    attention: str = "auto"
    checkpointing: Literal["none", "selective", "full", "offload"] = "full"
    expert_tile: int | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="gpt-oss-20b")
    parser.add_argument("--layers", type=int, help="build this many layers instead of all")
    parser.add_argument("--length", type=int, default=16384, help="tokens of the one row")
    parser.add_argument("--documents", type=int, help="pack the row with documents of this length")
    parser.add_argument("--rank", type=int, help="default: 16, and 8 for gpt-oss-120b")
    parser.add_argument("--backend", choices=("torch", "triton"), default="triton")
    parser.add_argument("--attention", default="auto")
    parser.add_argument(
        "--checkpointing", choices=("none", "selective", "full", "offload"), default="full"
    )
    parser.add_argument("--expert-tile", type=int, help="tokens of a tile; default: all")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--profile", type=int, default=0, help="also list this many kernels")
    parser.add_argument("--cpu", action="store_true", help="check the script without a GPU")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu:
        print("no GPU: nothing to measure (--cpu --model tiny checks the script)", file=sys.stderr)
        return 3
    shape = SHAPES[arguments.model]
    settings = Step(
        layers=arguments.layers or shape.layers,
        tokens=arguments.length,
        documents=arguments.documents,
        rank=arguments.rank or DEFAULT_RANK.get(shape.name, 16),
        backend=arguments.backend,
        attention=arguments.attention,
        checkpointing=arguments.checkpointing,
        expert_tile=arguments.expert_tile,
    )
    print(environment())
    for figure in figures(shape, settings, arguments.runs, arguments.profile):
        print(figure, flush=True)
    return 0


def figures(shape: Shape, settings: Step, runs: int, profile: int = 0) -> Iterator[Figure]:
    """Yield what was built, the step's figures, and the kernels that take the longest.

    ``host_ms`` is how long the host is busy launching: where it comes near ``step_ms``, the GPU
    waits for it.
    """
    started = time.perf_counter()
    model, choices = build(shape, settings)
    yield {
        "built": shape.name,
        "layers": f"{settings.layers} of {shape.layers}",
        "seconds": round(time.perf_counter() - started, 1),
        "choices": choices,
    }
    step = training_step(model, settings)
    first = float(step())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found = host_and_device_ms(step, warmup=min(2, runs - 1), runs=runs)
    last = float(step())
    seconds = 1e-3 * found.milliseconds
    useful = step_flops(shape, settings)
    yield {
        "model": shape.name,
        **asdict(settings),
        "step_ms": round(found.milliseconds, 1),
        "spread": round(found.spread, 1),
        "host_ms": round(found.host_milliseconds, 1),
        "tokens_s": round(settings.tokens / seconds),
        "tflops": round(useful / seconds / 1e12, 1),
        "mfu": round(useful / seconds / matmul_peak(), 4),
        "peak_gib": round(peak_gib(), 2),
        "loss": [first, last],
        "right": first == first and last < first,
    }
    if profile:
        yield from kernel_times(step, profile)


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def step_flops(shape: Shape, settings: Step) -> float:
    """Return the useful operations of one step: no gradient of the frozen base."""
    length, queries, keys = settings.tokens, HEADS * HEAD, KEY_VALUE_HEADS * HEAD
    projections = 2 * length * shape.hidden * (2 * queries + 2 * keys)
    router = 2 * length * shape.hidden * shape.num_experts
    # Half of the layers look at WINDOW keys, half at all before: 2 products forward, 4 backward.
    pairs = [attended_pairs(length, window, settings.documents) for window in (WINDOW, None)]
    attention = 6 * 2 * queries * sum(pairs) / 2
    experts = shape.layer_flops(length, settings.rank)
    head = 2 * 2 * length * shape.hidden * VOCABULARY
    return settings.layers * (2 * projections + 2 * router + attention + experts) + head


def build(shape: Shape, settings: Step) -> tuple[nn.Module, str]:
    """Return a model with random weights on the device, ready to train, and its attention."""
    device, cuda = device_of(), torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    config = GptOssConfig(
        num_hidden_layers=settings.layers,
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
    adapted = add_adapters(model.requires_grad_(False), LoraSection(rank=settings.rank))
    tile = settings.expert_tile
    set_expert_settings(adapted, ExpertSettings(backend=settings.backend, tile_tokens=tile))
    engine = set_attention(adapted, settings.attention)
    set_checkpointing(adapted, settings.checkpointing)
    row_wise = choose_row_kernels(settings.backend, device, dtype)
    set_norms(adapted, row_wise.kernels)
    adapted.get_base_model().loss_backend = settings.backend
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


def training_step(model: nn.Module, settings: Step) -> Callable[[], Tensor]:
    """Return a call of one optimizer step on random tokens, every token with loss."""
    device, length = device_of(), settings.tokens
    vocabulary = model.get_base_model().config.vocab_size
    tokens = torch.randint(0, vocabulary, (1, length + 1), device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=torch.cuda.is_available())
    weights = torch.ones((1, length), device=device)
    packed: dict[str, Any] = {}
    if settings.documents:
        # What the collator hands over for packed rows.
        starts = list(range(0, length, settings.documents))
        packed = {
            "position_ids": (torch.arange(length, device=device) % settings.documents)[None],
            "cu_seq_lens_q": torch.tensor([*starts, length], dtype=torch.int32, device=device),
            "max_length_q": min(settings.documents, length),
        }

    def step() -> Tensor:
        # As the trainer does: the factors are fp32, the products bf16.
        with torch.autocast(device.type, torch.bfloat16, enabled=torch.cuda.is_available()):
            output = model(
                input_ids=tokens[:, :-1],
                shift_labels=tokens[:, 1:],
                loss_weights=weights,
                selected_rows=length,
                **packed,
            )
        loss = output.loss_sum / length
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


if __name__ == "__main__":
    sys.exit(main())
