"""Inputs and comparisons shared by the tests and the benchmarks.

Shipped with the package so that whoever changes an op or runs on a new GPU can repeat the proofs.
"""

# Legend: T tokens, K experts per token, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.mxfp4 import Mxfp4Weight, dequantize_reference, quantize_reference

BF16_ERRORS = {
    "out": 4.15e-3,
    "hidden_states": 4.52e-3,
    "routing_weights": 3.50e-3,
    "gate_up.lora_A": 4.15e-3,
    "gate_up.lora_B": 4.19e-3,
    "down.lora_A": 4.28e-3,
    "down.lora_B": 4.42e-3,
}
"""Relative RMS of a right layer in bf16 against fp32, for inputs of ``below_the_clamp``.

Simulated on a CPU at H = I = 2880 with 48 tokens, 4 experts and rank 16, every result rounded once
where the kernels round it; ``grouped_mm`` counts, which rounds a product once more before bias and
rank-r term (the others: 3.35e-3 to 4.29e-3). See tests/kernels/experts/test_bf16_bounds.py.
"""
BF16_ROOM = 1.4
"""How far above ``BF16_ERRORS`` a layer may be: other shapes and orders of addition."""


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise unless the relative RMS error of ``actual`` is at most ``tolerance``.

    A reference of zeros is refused, because everything is close to it in the wrong way: state that
    a result must vanish with ``assert not actual.any()``.

    Args:
        name: What is compared, for the message.
        actual: Any floating tensor.
        expected: Same shape, usually float64.
        tolerance: Bound of ``rms(actual - expected) / rms(expected)``.

    Raises:
        AssertionError: Another shape, a value that is not finite, an all-zero reference, or an
            error above the tolerance.
    """
    assert actual.shape == expected.shape, f"{name}: {actual.shape} is not {expected.shape}"
    expected = expected.double()
    assert torch.isfinite(actual).all(), f"{name}: not finite in {_count(actual)} values"
    scale = expected.square().mean().sqrt()
    assert expected.numel() == 0 or scale > 0, f"{name}: an all-zero reference proves nothing"
    error = relative_rms(actual, expected)
    assert error <= tolerance, f"{name}: relative RMS error {error:.3g} is above {tolerance:.3g}"


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return ``rms(actual - expected) / rms(expected)``, 0 for empty tensors."""
    if expected.numel() == 0:
        return 0.0
    expected = expected.detach().double()
    difference = actual.detach().double() - expected
    return float(difference.square().mean().sqrt() / expected.square().mean().sqrt())


def bf16_faults(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative RMS errors that no rounding to bf16 explains, by name.

    Args:
        actual: As ``outputs_and_gradients`` returns them.
        expected: The same names, in fp32 or wider; not all zero.

    Returns:
        The errors above ``BF16_ERRORS`` times ``BF16_ROOM``; a value that is not finite counts as
        infinitely wrong.
    """
    errors = {name: relative_rms(actual[name], value) for name, value in expected.items()}
    bounds = {name: BF16_ROOM * BF16_ERRORS[name] for name in errors}
    # Written so that NaN, which is above nothing, is a fault.
    return {
        name: error if error == error else float("inf")
        for name, error in errors.items()
        if not error <= bounds[name]
    }


def _count(tensor: Tensor) -> str:
    return f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()}"


@dataclass(frozen=True)
class LayerInputs:
    """One expert layer with inputs, as ``make_layer`` returns it."""

    hidden_states: Tensor
    router_indices: Tensor
    routing_weights: Tensor
    gate_up: ExpertProjection
    down: ExpertProjection

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, ExpertProjection, ExpertProjection]:
        """Return the positional arguments of ``experts``."""
        return (
            self.hidden_states,
            self.router_indices,
            self.routing_weights,
            self.gate_up,
            self.down,
        )

    def leaves(self) -> dict[str, Tensor]:
        """Return the tensors that want a gradient, by name."""
        named = {
            "hidden_states": self.hidden_states,
            "routing_weights": self.routing_weights,
            "gate_up.lora_A": self.gate_up.lora_A,
            "gate_up.lora_B": self.gate_up.lora_B,
            "down.lora_A": self.down.lora_A,
            "down.lora_B": self.down.lora_B,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> LayerInputs:
        """Return a copy in ``dtype`` with fresh leaves; packed weights stay packed."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype).clone().requires_grad_()

        def convert(projection: ExpertProjection) -> ExpertProjection:
            weight = projection.weight
            lora_A, lora_B = projection.lora_A, projection.lora_B
            if isinstance(weight, Mxfp4Weight):
                weight = Mxfp4Weight(weight.blocks.to(device), weight.scales.to(device))
            else:
                weight = weight.to(device, dtype)
            return replace(
                projection,
                weight=weight,
                bias=None if projection.bias is None else projection.bias.to(device, dtype),
                lora_A=None if lora_A is None else leaf(lora_A),
                lora_B=None if lora_B is None else leaf(lora_B),
            )

        return LayerInputs(
            leaf(self.hidden_states),
            self.router_indices.to(device),
            leaf(self.routing_weights),
            convert(self.gate_up),
            convert(self.down),
        )


def outputs_and_gradients(inputs: LayerInputs, **options: Any) -> dict[str, Tensor]:
    """Return the layer's output and the gradient of every leaf, by name.

    The gradient of the output is random, and the same numbers for all dtypes and devices: its
    rounding is no error of the layer.

    Args:
        inputs: The layer.
        options: Of ``experts``.
    """
    from gptoss_kernels.experts.experts import experts

    out = experts(*inputs.arguments(), **options)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).bfloat16().to(out)
    leaves = inputs.leaves()
    grads = torch.autograd.grad(out, list(leaves.values()), probe)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def below_the_clamp(inputs: LayerInputs) -> LayerInputs:
    """Scale X in place so that no pre-activation comes near a clamp; return the inputs.

    At a clamp the gradient jumps: a pre-activation of 6.99 that bf16 rounds to 7.02 loses its whole
    gradient. At the scale of ``make_layer`` such elements make a right dX wrong by 2.7e-2,
    which hides every fault below that.
    """
    with torch.no_grad():
        inputs.hidden_states.mul_(0.3)
    return inputs


def beyond_the_clamp(inputs: LayerInputs) -> LayerInputs:
    """Scale X in place and push a third of the pre-activations far beyond a clamp by their bias.

    Every clamp is decided without doubt, so the bounds of ``below_the_clamp`` hold, and a clamp
    that is missing in one direction is an error of order one.
    """
    below_the_clamp(inputs)
    with torch.no_grad():
        assert inputs.gate_up.bias is not None  # the clamp is reached through it
        inputs.gate_up.bias[:, 0::6].add_(20)  # a gate above, where it is clamped
        inputs.gate_up.bias[:, 3::12].add_(20)  # an up value above, and one below
        inputs.gate_up.bias[:, 9::12].sub_(20)
    return inputs


def make_routing(
    num_tokens: int, top_k: int, num_experts: int, *, kind: str = "random", seed: int = 0
) -> Tensor:
    """Return ``router_indices [T, K]`` int64, the K of a token distinct.

    Args:
        num_tokens: T.
        top_k: K.
        num_experts: E, at least K.
        kind: "random"; "first": every token takes experts 0 to K - 1; "last": the last K; "ends":
            experts are drawn from the first and the last K only, so those between stay empty.
        seed: Of the random draws.

    Returns:
        The indices.

    Raises:
        ValueError: An unknown ``kind``.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand((num_tokens, num_experts), generator=generator)
    if kind == "first":
        scores[:, :top_k] += 1
    elif kind == "last":
        scores[:, num_experts - top_k :] += 1
    elif kind == "ends":
        scores[:, :top_k] += 1
        scores[:, num_experts - top_k :] += 1
    elif kind != "random":
        raise ValueError(f'kind must be "random", "first", "last" or "ends", got {kind!r}')
    return scores.topk(top_k, dim=-1).indices


def make_layer(
    router_indices: Tensor,
    *,
    num_experts: int,
    hidden: int,
    intermediate: int,
    rank: int = 4,
    packed: bool = True,
    bias: bool = True,
    lora: tuple[bool, bool] = (True, True),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LayerInputs:
    """Return random inputs of a layer at the scale of a trained one; every leaf wants a gradient.

    Args:
        router_indices: ``[T, K]``.
        num_experts: E.
        hidden: H.
        intermediate: I.
        rank: R of both pairs; both factors are random, so that no gradient is trivially zero.
        packed: MXFP4 weights, else dense ones with the very same values.
        bias: Give both projections a bias.
        lora: Whether gate_up and down have a LoRA pair.
        seed: Of the random draws.
        dtype: Of everything that is not packed.
        device: Where it is drawn; another device draws other numbers from the same seed.

    Returns:
        The inputs.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator, device=device)

    def projection(out: int, inner: int, with_lora: bool, scale: float) -> ExpertProjection:
        # An expert at a time: the steps of quantising take many times the memory of the weight.
        drawn = draw(num_experts, out, inner, scale=scale)
        parts = [quantize_reference(expert) for expert in drawn]
        blocks, scales = (
            torch.stack([getattr(part, name) for part in parts]) for name in ("blocks", "scales")
        )
        lora_A, lora_B = draw(num_experts, rank, inner), draw(num_experts, out, rank)
        bias_value = draw(num_experts, out).to(dtype)
        return ExpertProjection(
            Mxfp4Weight(blocks, scales)
            if packed
            else dequantize_reference(blocks, scales, dtype=dtype).mT.contiguous(),
            bias_value if bias else None,
            (lora_A * inner**-0.5).to(dtype).requires_grad_() if with_lora else None,
            (lora_B * rank**-0.5).to(dtype).requires_grad_() if with_lora else None,
            scaling=1.5,
        )

    num_tokens, top_k = router_indices.shape
    # Large enough that both clamps of the activation are reached.
    gate_up = projection(2 * intermediate, hidden, lora[0], 3 * hidden**-0.5)
    down = projection(hidden, intermediate, lora[1], intermediate**-0.5)
    return LayerInputs(
        draw(num_tokens, hidden).to(dtype).requires_grad_(),
        router_indices.to(device),
        draw(num_tokens, top_k).softmax(-1).to(dtype).requires_grad_(),
        gate_up,
        down,
    )
