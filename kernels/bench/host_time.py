"""Host time and launches of a training step: everything but the GPU's work.

    python kernels/bench/host_time.py
    python kernels/bench/host_time.py --layers 4 --checkpointing full --profile 25

The model is gpt-oss as the trainer runs it: PEFT's adapters, autocast, our experts, attention and
loss on Triton. Its launches go the whole way to a driver that launches nothing, and its tensors are
small ones on the CPU, so what torch computes between them costs about as much as starting it on a
GPU would. Launches are counted exactly; milliseconds are CPU time of this machine's core, good for
comparing two commits in the same minutes. The optimizer is left out.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fake_driver import CARDS, FakeDriver, pretend_gpu  # isort: skip - before any kernel

import torch
from gptoss_kernels.attention.triton_engine import TritonEngine
from gptoss_kernels.experts import engines
from measure import environment
from ops_experts import random_mxfp4
from torch import Tensor, nn
from transformers import GptOssConfig

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
from gptoss_tune.model.norms import set_norms
from gptoss_tune.recipe import LoraSection

MODES = ("none", "selective", "full")
TOKENS, WIDTH, VOCABULARY = 8, 64, 512


@dataclass(frozen=True)
class HostTime:
    """One training step of one mode.

    Attributes:
        checkpointing: As in the recipe.
        layers: Of the model.
        forward_launches: Triton launches until the loss is there.
        backward_launches: Triton launches after it.
        forward_ms: CPU time, median of the repeats.
        backward_ms: Likewise.
        kernels: Launches of a step by the kernel's name.
    """

    checkpointing: str
    layers: int
    forward_launches: int
    backward_launches: int
    forward_ms: float
    backward_ms: float
    kernels: dict[str, int]

    def line(self) -> str:
        """Return the row of the table."""
        launches = self.forward_launches + self.backward_launches
        return (
            f"{self.checkpointing:<10}{self.forward_launches:>8} +{self.backward_launches:>4} ="
            f"{launches:>5} launches{self.forward_ms:>8.1f} +{self.backward_ms:>6.1f} ="
            f"{self.forward_ms + self.backward_ms:>6.1f} ms"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--architecture", choices=sorted(CARDS), default="sm_90")
    parser.add_argument("--checkpointing", choices=MODES, nargs="+", default=MODES)
    parser.add_argument("--repeats", type=int, default=9, help="steps that are timed")
    parser.add_argument("--profile", type=int, metavar="N", help="also print the N dearest calls")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    found = []
    with pretend_gpu(arguments.architecture, "cpu") as fake:
        model = build(arguments.layers)
        for mode in arguments.checkpointing:
            set_checkpointing(model, mode)
            found.append(measure(fake, model, mode, arguments.repeats))
            print(found[-1].line(), flush=True)
            if arguments.profile:
                profile(model, arguments.profile)
    print(json.dumps({"host_time": [asdict(row) for row in found]}))
    return 0


def build(layers: int) -> Any:
    """Return a small gpt-oss with the layers, experts and ranks of the 20b, ready to train."""
    # The launches of a large batch: few rows would decode their weights inside the product.
    engines.PACKED_MAX_ROWS = 0
    config = GptOssConfig(
        num_hidden_layers=layers,
        num_local_experts=32,
        num_experts_per_tok=4,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        vocab_size=VOCABULARY,
        head_dim=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=128,
        use_cache=False,
    )
    model = GptOssForTuning._from_config(
        config, dtype=torch.bfloat16, experts_implementation=EXPERTS_IMPLEMENTATION
    )
    for layer in model.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            experts, inner, out = getattr(layer.mlp.experts, name).shape
            packed = ExpertWeight(random_mxfp4(experts, out, inner))
            setattr(layer.mlp.experts, name, nn.Parameter(packed, requires_grad=False))
    adapted = add_adapters(model.requires_grad_(False), LoraSection(rank=16))
    set_expert_settings(adapted, ExpertSettings(backend="triton"))
    set_attention(adapted)
    for layer in model.model.layers:  # by hand: choosing it would first prove its numbers on a GPU
        layer.self_attn.attention_engine = TritonEngine()
    set_norms(adapted)
    adapted.get_base_model().loss_backend = "triton"
    return adapted.train()


def forward(model: Any) -> Tensor:
    """Return the loss of one row."""
    tokens = torch.arange(TOKENS)[None] % VOCABULARY
    weights = torch.ones((1, TOKENS))
    with torch.autocast("cpu", torch.bfloat16):
        return model(
            input_ids=tokens, shift_labels=tokens, loss_weights=weights, selected_rows=TOKENS
        ).loss_sum


def measure(fake: FakeDriver, model: Any, mode: str, repeats: int) -> HostTime:
    """Return launches and CPU time of a step; the first one, which compiles, is not timed."""
    forward(model).backward()
    forward_ms, backward_ms = [], []
    for _ in range(repeats):
        model.zero_grad()
        before, known = fake.launches, _launched(fake)
        spent, loss = _cpu_ms(lambda: forward(model))
        between = fake.launches
        forward_ms.append(spent)
        backward_ms.append(_cpu_ms(loss.backward)[0])
    return HostTime(
        mode,
        model.config.num_hidden_layers,
        between - before,
        fake.launches - between,
        statistics.median(forward_ms),
        statistics.median(backward_ms),
        dict(_launched(fake) - known),
    )


def _launched(fake: FakeDriver) -> Counter[str]:
    """Return the launches so far by the kernel's name."""
    counts: Counter[str] = Counter()
    for kernel in fake.compiled:
        counts[kernel.name] += kernel.launches
    return counts


def _cpu_ms(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = call()
    return 1e3 * (time.process_time() - started), result


def profile(model: Any, lines: int) -> None:
    """Print where a step spends its time, by own time of each function."""
    profiler = cProfile.Profile()
    profiler.enable()
    forward(model).backward()
    profiler.disable()
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(lines)


if __name__ == "__main__":
    sys.exit(main())
