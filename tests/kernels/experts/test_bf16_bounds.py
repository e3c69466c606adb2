"""The bounds of the bf16 tests: a right layer keeps them, a faulty one does not; without a GPU.

A GPU rounds to bf16 wherever a kernel writes. The layer here does the same roundings on fp32
tensors, expert by expert, and so shows what a right kernel's error is.
"""

# Legend: M rows, E experts, X XA Z H HA Y and the gradients as in kernels/README.md.

import pytest
import torch
from gptoss_kernels import dequantize_reference, swiglu_reference
from gptoss_kernels.routing import route_reference
from gptoss_kernels.swiglu import swiglu_backward_reference
from gptoss_kernels.testing import (
    below_the_clamp,
    beyond_the_clamp,
    bf16_faults,
    make_layer,
    make_routing,
    outputs_and_gradients,
    relative_rms,
)

ONE_BOUND_BEFORE = 1.2e-2


def bf16(tensor):
    return tensor.bfloat16().float()


class Rounded:
    """A layer whose every written tensor is rounded to bf16, with a fault on request."""

    def __init__(self, inputs, engine, fault=None):
        self.engine, self.fault = engine, fault
        self.hidden = inputs.hidden_states.detach().float()
        self.gates = inputs.routing_weights.detach().float()
        self.routing = route_reference(inputs.router_indices, inputs.gate_up.logical_shape[0])
        self.tokens = self.routing.token_indices.long()
        self.of_rows = self.gates.flatten()[self.routing.slot_indices.long()][:, None]
        self.scaling = inputs.gate_up.scaling
        self.weights = [self.dense(inputs.gate_up), self.dense(inputs.down)]
        # As in ``outputs_and_gradients``.
        probe = torch.randn(self.hidden.shape, generator=torch.Generator().manual_seed(9))
        self.d_out = bf16(probe)

    @staticmethod
    def dense(projection):
        packed = projection.weight
        factors = (projection.bias, projection.lora_A, projection.lora_B)
        matrix = dequantize_reference(packed.blocks, packed.scales, dtype=torch.float32)
        return matrix, *(factor.detach().float() for factor in factors)

    def by_expert(self, function, *tensors):
        """Return ``function(e, rows...)`` of every expert, one after the other."""
        counts = self.routing.expert_offsets.diff().tolist()
        parts = zip(*(tensor.split(counts) for tensor in tensors), strict=True)
        return [function(e, *part) for e, part in enumerate(parts)]

    def product(self, rows, matrices, low, factors, bias=None):
        """Return ``rows W^T + s low B^T + bias``; grouped_mm writes the first term by itself."""

        def one(e, rows, low):
            base = rows @ matrices[e].T
            base = bf16(base) if self.engine == "grouped_mm" else base
            term = self.scaling * (low @ factors[e].T)
            term = 0 if self.fault == "no rank-r term" else term
            return base + term + (0 if bias is None else bias[e])

        return bf16(torch.cat(self.by_expert(one, rows, low)))

    def skinny(self, rows, factors):
        return bf16(torch.cat(self.by_expert(lambda e, rows: rows @ factors[e].T, rows)))

    def outer(self, left, right):
        return bf16(
            torch.stack(self.by_expert(lambda e, a, b: self.scaling * a.T @ b, left, right))
        )

    def run(self):
        (w_gu, b_gu, a_gu, b_b_gu), (w_d, b_d, a_d, b_b_d) = self.weights
        rows = self.hidden[self.tokens]
        xa = self.skinny(rows, a_gu)
        z = self.product(rows, w_gu, xa, b_b_gu, b_gu)
        h = bf16(swiglu_reference(z))
        ha = self.skinny(h, a_d)
        y = self.product(h, w_d, ha, b_b_d, b_d)
        at = self.routing.row_indices.long()
        if self.fault == "two rows swapped":
            y[[0, 1]] = y[[1, 0]]
        out = bf16((y[at] * self.gates[..., None]).sum(1))
        d_y = self.d_out[self.tokens]
        d_yb = self.skinny(d_y, b_b_d.mT)
        against_bias = torch.cat(self.by_expert(lambda e, d: bf16(d @ b_d[e]), d_y))
        d_hu = self.product(d_y, w_d.mT, d_yb, a_d.mT)
        share = (d_hu * swiglu_reference(z)).sum(-1)
        share = share if self.fault == "no bias in dg" else share + against_bias
        limit = 1e9 if self.fault == "no clamp in backward" else 7.0
        d_z = bf16(swiglu_backward_reference(z, d_hu * self.of_rows, limit=limit))
        d_zb = self.skinny(d_z, b_b_gu.mT)
        d_x = self.product(d_z, w_gu.mT, d_zb, a_gu.mT)
        return {
            "out": out,
            "hidden_states": bf16(d_x[at].sum(1)),
            "routing_weights": bf16(share[at]),
            "gate_up.lora_A": self.outer(d_zb, rows),
            "gate_up.lora_B": self.outer(d_z, xa),
            "down.lora_A": self.outer(bf16(d_yb * self.of_rows), h),
            "down.lora_B": self.outer(d_y, bf16(ha * self.of_rows)),
        }


def layer(prepare):
    inputs = make_layer(
        make_routing(64, 4, 5),
        num_experts=5,
        hidden=256,
        intermediate=256,
        rank=16,
        dtype=torch.bfloat16,
    )
    return prepare(inputs)


@pytest.fixture(scope="module")
def below():
    inputs = layer(below_the_clamp)
    return inputs, outputs_and_gradients(inputs.to(torch.float32))


@pytest.fixture(scope="module")
def beyond():
    inputs = layer(beyond_the_clamp)
    return inputs, outputs_and_gradients(inputs.to(torch.float32))


@pytest.mark.parametrize("engine", ["fused", "grouped_mm"])
def test_a_right_layer_keeps_the_bounds(below, beyond, engine):
    for inputs, expected in (below, beyond):
        assert not bf16_faults(Rounded(inputs, engine).run(), expected)


@pytest.mark.parametrize("fault", ["no rank-r term", "two rows swapped", "no bias in dg"])
def test_a_faulty_layer_does_not(below, fault):
    inputs, expected = below
    assert bf16_faults(Rounded(inputs, "grouped_mm", fault).run(), expected)


def test_a_missing_clamp_is_seen_beyond_it_and_only_there(below, beyond):
    seen = []
    for inputs, expected in (below, beyond):
        actual = Rounded(inputs, "fused", "no clamp in backward").run()
        seen.append(bf16_faults(actual, expected))
    assert not seen[0] and seen[1]["hidden_states"] > 0.1


def test_nan_is_a_fault(below):
    inputs, expected = below
    actual = Rounded(inputs, "fused").run()
    actual["out"][3, 5] = float("nan")
    assert bf16_faults(actual, expected) == {"out": float("inf")}


def test_roundings_across_the_clamp_break_a_right_layer():
    """Why X is scaled: at the scale of ``make_layer`` one bound for all was red at every size."""
    inputs = layer(lambda inputs: inputs)
    expected = outputs_and_gradients(inputs.to(torch.float32))
    actual = Rounded(inputs, "fused").run()
    errors = {name: relative_rms(actual[name], value) for name, value in expected.items()}
    assert errors["hidden_states"] > ONE_BOUND_BEFORE
    # What no gradient of a clamp reaches stays as exact as below it.
    faults = bf16_faults(actual, expected)
    assert set(faults) == {"hidden_states", "gate_up.lora_A", "gate_up.lora_B"}
