"""The expert layer against fp32, every engine, on real shapes; and the same bits twice.

A result that is not finite, or further off than roundings to bf16 explain
(``gptoss_kernels.testing``), is wrong; so is an engine that raises. One of another library that
fails its proof on this device is not run: no layer takes it there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gptoss_kernels.experts.engines import find_obstacle
from gptoss_kernels.testing import (
    LayerInputs,
    below_the_clamp,
    beyond_the_clamp,
    bf16_faults,
    make_layer,
    make_routing,
    outputs_and_gradients,
    relative_rms,
)
from lines import Lines, dry
from measure import device_of, failure, proof_failed

# (tokens, experts, rank, routing, whether clamps are active)
CASES = (
    (777, 32, 16, "random", False),
    (1, 8, 16, "random", False),
    (4096, 32, 16, "random", True),
    (512, 128, 8, "random", False),
    (300, 8, 64, "ends", False),
)
DRY_CASES = ((3, 4, 4, "random", True),)


def run(name: str, lines: Lines) -> None:
    size = 32 if dry() else 2880
    dtype = torch.float32 if dry() else torch.bfloat16
    for tokens, num_experts, rank, kind, clamped in DRY_CASES if dry() else CASES:
        for packed in (True,) if dry() else (True, False):
            inputs = make_layer(
                make_routing(tokens, 4, num_experts, kind=kind),
                num_experts=num_experts,
                hidden=size,
                intermediate=size,
                rank=rank,
                packed=packed,
                dtype=dtype,
                device=device_of(),
            )
            (beyond_the_clamp if clamped else below_the_clamp)(inputs)
            case = {"tokens": tokens, "experts": num_experts, "rank": rank, "clamped": clamped}
            for figure in engines(inputs, packed):
                lines.say(**case, base="MXFP4" if packed else "bf16", **figure)
            del inputs
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def engines(inputs: LayerInputs, packed: bool) -> Iterator[dict[str, object]]:
    """Yield each engine's errors and whether it is right."""
    truth = outputs_and_gradients(inputs.to(torch.float32, device_of()))
    for engine in ("fused", "grouped_mm", *(["packed"] if packed else []), "quack"):
        obstacle = find_obstacle(engine, device_of(), inputs.hidden_states.dtype)
        if obstacle:
            yield {"engine": engine, "not_run": obstacle}
            continue
        try:
            first, second = (
                outputs_and_gradients(inputs, backend="triton", engine=engine) for _ in range(2)
            )
            faults = bf16_faults(first, truth)
            same = all(torch.equal(first[name], second[name]) for name in first)
        except Exception as error:
            if proof_failed(error):  # "auto" does not take it here
                yield {"engine": engine, "not_run": failure(error)}
                continue
            yield {"engine": engine, "right": False, "raised": failure(error)}
            continue
        errors = {name: float(f"{relative_rms(first[name], truth[name]):.2e}") for name in truth}
        yield {
            "engine": engine,
            "right": not faults and same,
            "same_bits_twice": same,
            "errors": errors,
            "faults": faults,
        }
