"""Adapters on chosen experts: the same bits as an adapter on all experts that trains some."""

import pytest
import torch

from gptoss_tune.errors import RecipeError
from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.experts import ExpertSettings, set_expert_settings
from gptoss_tune.model.load import load_base
from gptoss_tune.model.lora import ParamWrapper, add_adapters, choice_of, place_experts
from gptoss_tune.model.norms import set_norms
from gptoss_tune.recipe import LoraSection, ModelSection

E, N, RANK = 6, 2, 3
# Neither the first experts nor the same in both layers, and the last one is among them.
CHOICE = {0: (1, 4), 1: (0, 5)}
SECTION = {"rank": 4, "expert_rank": RANK}
CHOSEN = LoraSection.model_validate(SECTION | {"experts": {"count": N}})
FULL = LoraSection.model_validate(SECTION)
TOKENS = torch.randint(0, 199_998, (2, 21), generator=torch.Generator().manual_seed(4))
STEPS = 4


def stacks(model):
    """Return the wrappers of expert stacks with the number of their layer."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, ParamWrapper)]
    return [(int(name.split(".layers.")[1].split(".")[0]), module) for name, module in found]


def by_expert(module, experts, gradients=False):
    """Return A ``[experts, R, in]`` and B ``[out, R, experts]`` of a stack, or their gradients."""
    a, b = (pair["default"].weight for pair in (module.lora_A, module.lora_B))
    a, b = (a.grad, b.grad) if gradients else (a, b)
    return a.view(experts, -1, a.shape[1]), b.view(b.shape[0], -1, experts)


def ready(model, mode, backend, merge_aware):
    set_expert_settings(model, ExpertSettings(backend=backend, merge_aware=merge_aware))
    set_attention(model)
    set_norms(model)
    set_checkpointing(model, mode)
    return model.train()


@pytest.fixture
def twins(opened, randomise_adapters):
    """Make a model with chosen experts, and one with all whose others start with B = 0."""

    def make(mode="none", backend="torch", merge_aware=False):
        section = ModelSection(name_or_path=str(opened.path), dtype="float32")
        compact = add_adapters(load_base(opened, section), CHOSEN, CHOICE)
        full = add_adapters(load_base(opened, section), FULL)
        randomise_adapters(compact)
        there = dict(compact.named_parameters())
        with torch.no_grad():
            for name, parameter in full.named_parameters():
                if parameter.requires_grad and ".experts." not in name:
                    parameter.copy_(there[name])
            for (layer, mine), (_, theirs) in zip(stacks(compact), stacks(full), strict=True):
                (a, b), (all_a, all_b) = by_expert(mine, N), by_expert(theirs, E)
                all_b.zero_()
                all_a[list(CHOICE[layer])] = a
                all_b[:, :, list(CHOICE[layer])] = b
        return [ready(model, mode, backend, merge_aware) for model in (compact, full)]

    return make


def backward(model, tokens):
    model.zero_grad()
    weights = torch.linspace(0.5, 1.5, tokens.numel()).view(tokens.shape)
    loss = model(input_ids=tokens, shift_labels=tokens, loss_weights=weights).loss_sum
    loss.backward()
    return loss.detach()


def mask(full):
    """Take the gradients of the experts away that were not chosen."""
    for layer, module in stacks(full):
        others = [e for e in range(E) if e not in CHOICE[layer]]
        a, b = by_expert(module, E, gradients=True)
        a[others] = 0
        b[:, :, others] = 0


def assert_same(compact, full, gradients):
    """Compare every factor, or gradient, of the chosen experts and of attention, bit by bit."""
    there = dict(full.named_parameters())
    seen = 0
    for name, parameter in compact.named_parameters():
        if parameter.requires_grad and ".experts." not in name:
            mine, theirs = parameter, there[name]
            mine, theirs = (mine.grad, theirs.grad) if gradients else (mine, theirs)
            assert torch.equal(mine, theirs), name
            seen += 1
    for (layer, mine), (_, theirs) in zip(stacks(compact), stacks(full), strict=True):
        (a, b), (all_a, all_b) = by_expert(mine, N, gradients), by_expert(theirs, E, gradients)
        assert a.any() and b.any()
        assert torch.equal(a, all_a[list(CHOICE[layer])])
        assert torch.equal(b, all_b[:, :, list(CHOICE[layer])])
        seen += 2
    assert seen == 2 * (4 + 2) * 2


CASES = [
    *(
        ("torch", mode, merged)
        for mode in ("none", "selective", "full")
        for merged in (False, True)
    ),
    *(
        pytest.param("triton", mode, merged, marks=[pytest.mark.interpreter, pytest.mark.slow])
        for mode, merged in (("none", False), ("full", True))
    ),
]


@pytest.mark.parametrize("backend, mode, merge_aware", CASES)
def test_outputs_gradients_and_steps_are_those_of_a_masked_adapter(
    twins, mode, backend, merge_aware
):
    compact, full = twins(mode, backend, merge_aware)
    pair = []
    for model in (compact, full):
        trained = [p for p in model.parameters() if p.requires_grad]
        pair.append(torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0))
    # The interpreter takes long: few tokens, and one step after the first update.
    steps, tokens = (STEPS, TOKENS) if backend == "torch" else (2, TOKENS[:1, :6])
    for _ in range(steps):
        losses = [backward(model, tokens) for model in (compact, full)]
        assert torch.equal(*losses)
        mask(full)
        assert_same(compact, full, gradients=True)
        for optimizer in pair:
            optimizer.step()
    assert_same(compact, full, gradients=False)
    # The moments are the factors' own size, and the same.
    sizes = [sum(s["exp_avg"].numel() for s in o.state.values()) for o in pair]
    attention = sum(
        p.numel() for n, p in compact.named_parameters() if p.requires_grad and "attn" in n
    )
    assert (sizes[0] - attention) * E == (sizes[1] - attention) * N


def test_factors_are_stored_of_chosen_experts_only(twins):
    compact, full = twins()
    for (_, mine), (_, theirs) in zip(stacks(compact), stacks(full), strict=True):
        assert mine.lora_A["default"].weight.shape[0] == N * RANK
        assert mine.lora_B["default"].weight.shape[1] == N * RANK
        assert theirs.lora_A["default"].weight.shape[0] == E * RANK
    assert choice_of(compact) == CHOICE and choice_of(full) is None


def test_placed_factors_have_the_gradient_of_an_index():
    factors = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([1, 4])
    placed = place_experts(factors, index, 5, 0)
    assert torch.equal(placed[index], factors) and not placed[[0, 2, 3]].any()
    torch.autograd.gradcheck(lambda f: place_experts(f, index, 5, 0), (factors,))
    columns = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda f: place_experts(f, index, 5, 2), (columns,))


@pytest.mark.parametrize(
    "section, choice, message",
    [
        (CHOSEN, None, "got a choice of no experts, as all have an adapter, expected 2 experts in"),
        (CHOSEN, {0: (1,), 1: (2,)}, "got a choice of 1 experts in each of 2 layers, expected 2"),
        (CHOSEN, {0: (1, 2)}, "2 experts in each of 1 layers, expected 2 experts in each of 2"),
        (FULL, CHOICE, "expected no experts, as all have an adapter"),
    ],
    ids=["none", "fewer", "a layer missing", "all"],
)
def test_another_choice_than_the_recipes_is_refused(opened, section, choice, message):
    base = load_base(opened, ModelSection(name_or_path=str(opened.path), dtype="float32"))
    with pytest.raises(RecipeError, match=message):
        add_adapters(base, section, choice)


def test_plain_merging_of_chosen_experts_is_refused(twins):
    compact, _ = twins()
    with pytest.raises(NotImplementedError, match="gptoss-tune merge"):
        stacks(compact)[0][1].get_delta_weight("default")
