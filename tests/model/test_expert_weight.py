import pytest
import torch
from gptoss_kernels import quantize_reference

from gptoss_tune.model.expert_weight import ExpertWeight, LowRankExpertWeight

E, IN, OUT, R = 3, 32, 64, 4


@pytest.fixture
def packed():
    torch.manual_seed(0)
    return ExpertWeight(quantize_reference(torch.randn(E, OUT, IN)))


def test_logical_shape_and_held_bytes(packed):
    assert packed.shape == (E, IN, OUT)
    assert packed.stored_nbytes == E * OUT * IN // 2 + E * OUT * IN // 32


def test_baddbmm_keeps_the_factors_and_their_graph(packed):
    lhs = torch.randn(E, IN, R, requires_grad=True)
    rhs = torch.randn(E, R, OUT, requires_grad=True)
    update = torch.baddbmm(packed, lhs, rhs, alpha=0.5)
    assert isinstance(update, LowRankExpertWeight)
    assert update.lhs is lhs and update.rhs is rhs and update.scaling == 0.5
    assert update.base.stored is packed.stored
    assert update.shape == packed.shape and update.dtype == packed.dtype


def test_baddbmm_refuses_factors_of_another_shape(packed):
    with pytest.raises(ValueError, match=r"lhs \[E, in, r\]"):
        torch.baddbmm(packed, torch.randn(E, OUT, R), torch.randn(E, R, OUT))


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: w + 1,
        lambda w: w @ torch.randn(OUT, 2),
        lambda w: w[0],
        lambda w: w.transpose(1, 2),
        lambda w: w.mul_(2),
        lambda w: torch.bmm(torch.randn(E, 2, IN), w),
        lambda w: w.sum(),
        lambda w: torch.baddbmm(w, torch.ones(E, IN, R), torch.ones(E, R, OUT)) + 1,
        lambda w: torch.baddbmm(w, torch.ones(E, IN, R), torch.ones(E, R, OUT))[0],
    ],
)
def test_no_operation_expands_the_stack(packed, operation):
    with pytest.raises(NotImplementedError, match="would expand"):
        operation(packed)


def test_moving_copying_and_detaching_keep_the_bytes(packed):
    parameter = torch.nn.Parameter(packed, requires_grad=False)
    for copy in (parameter.to("cpu"), parameter.detach(), parameter.clone(), parameter.data):
        assert isinstance(copy, ExpertWeight)
        assert torch.equal(copy.stored.blocks, packed.stored.blocks)
        assert torch.equal(copy.stored.scales, packed.stored.scales)
    assert parameter.clone().stored.blocks.data_ptr() != packed.stored.blocks.data_ptr()
    assert parameter.to(torch.bfloat16).stored.blocks.dtype == torch.uint8
