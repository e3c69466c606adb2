"""The guard's watches by themselves, on a model without a run: gradients, losses, expert load."""

import json
from types import SimpleNamespace

import pytest
import torch
from gptoss_kernels import Mxfp4Weight
from rich.console import Console
from torch import nn

from gptoss_tune.errors import GuardError
from gptoss_tune.model.build import build
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.recipe import GuardSection
from gptoss_tune.train.guard.checksum import checksum
from gptoss_tune.train.guard.gradients import GradientCheck
from gptoss_tune.train.guard.warnings import CONSTANT_LOSSES, LossWarnings
from gptoss_tune.train.observers.expert_load import ExpertLoad, entropies
from gptoss_tune.train.observers.observer import GradientStep, MicroBatch
from gptoss_tune.train.run import _guard
from gptoss_tune.weights import open_checkpoint


def parameter(model, part):
    (found,) = (p for name, p in model.named_parameters() if part in name)
    return found


@pytest.fixture
def model(recipe, base):
    return build(recipe(), open_checkpoint(base), "cpu").model.train()


def step(model, watch, rate=1e-3, scored=30):
    """Train one step by hand, as the trainer would, on the first ``scored`` tokens of a row."""
    tokens = torch.arange(60).view(2, 30)
    weights = (torch.arange(30) < scored).float().expand(2, 30)
    model(
        input_ids=tokens, shift_labels=tokens, loss_weights=weights, use_cache=False
    ).loss_sum.backward()
    watch.observe(updates=True)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= rate * weight.grad.sign()
                weight.grad = None


def test_an_expert_without_a_gradient_is_named(model):
    watch = GradientCheck(model)
    name = "layers.0.mlp.experts.lora_B"

    def silence(grad):
        grad = grad.clone()
        grad.view(grad.shape[0], -1, 4)[:, :, 2] = 0  # PEFT's B is [out, R * E]
        return grad

    parameter(model, name).register_hook(silence)
    step(model, watch)
    step(model, watch)
    (line,) = watch.verdict()
    assert line.startswith(f"model.{name}") and line.endswith(
        "experts 2 got tokens and no gradient"
    )


@pytest.fixture
def compact(recipe, base):
    """Adapters on two of four experts of each layer, not the first ones."""
    settings = recipe("lora.experts={count: 2}")
    choice = {0: (1, 3), 1: (2, 3)}
    return build(settings, open_checkpoint(base), "cpu", choice=choice).model.train()


def test_experts_without_factors_are_not_asked_for_a_gradient(compact):
    watch = GradientCheck(compact)
    step(compact, watch)
    step(compact, watch)
    assert watch.verdict() == []
    asked = {w.layer: w.needy_experts for w in watch._trained.values() if w.experts is not None}
    assert not asked[0][[0, 2]].any() and not asked[1][[0, 1]].any()
    assert sum(int(needy.sum()) for needy in asked.values()) > 2


@pytest.mark.parametrize("name", ["layers.0.mlp.experts.lora_B", "layers.0.mlp.experts.lora_A"])
def test_a_chosen_expert_without_a_gradient_is_named_by_its_number(compact, name):
    watch = GradientCheck(compact)

    def silence(grad):
        grad = grad.clone()
        if name.endswith("B"):
            grad.view(grad.shape[0], -1, 2)[:, :, 1] = 0
        else:
            grad.view(2, -1, grad.shape[1])[1] = 0
        return grad

    parameter(compact, name).register_hook(silence)
    step(compact, watch)
    step(compact, watch)
    (line,) = watch.verdict()
    assert line.startswith(f"model.{name}") and line.endswith(
        "experts 3 got tokens and no gradient"
    )


def test_experts_without_tokens_are_not_asked_for_a_gradient(model):
    """Two experts per layer get every token: the others owe nothing."""
    for layer in model.get_base_model().model.layers:
        layer.mlp.router.top_k = 2
        layer.mlp.router.bias.data = torch.tensor([50.0, 50.0, 0.0, 0.0])
    watch = GradientCheck(model)
    step(model, watch)
    step(model, watch)
    assert watch.verdict() == []


def test_experts_of_unscored_tokens_are_not_asked_for_a_gradient(model):
    """In the last layer only the scored tokens have something to learn, as with padding."""
    model.get_base_model().model.layers[1].mlp.router.top_k = 1
    watch = GradientCheck(model)
    step(model, watch, scored=1)
    step(model, watch, scored=1)
    assert watch.verdict() == []
    asked = [w.needy_experts for w in watch._trained.values() if w.experts is not None]
    assert 0 < int(asked[-1].sum()) < 4, "some expert meets no scored token, or nothing is tested"


def test_a_tensor_with_a_gradient_that_does_not_move_is_named(model):
    watch = GradientCheck(model)
    step(model, watch, rate=0.0)
    lines = watch.verdict()
    assert len(lines) == 2 * 6 and all("lora_B" in line for line in lines)
    assert all(line.endswith("got a gradient and did not move") for line in lines)


def test_a_missing_A_is_named_once_its_B_is_open(model):
    watch = GradientCheck(model)
    parameter(model, "layers.1.self_attn.q_proj.lora_A").register_hook(torch.zeros_like)
    step(model, watch)
    assert watch.verdict() == [], "behind a B of zeros no A has a gradient"
    step(model, watch)
    (line,) = watch.verdict()
    assert line == "model.layers.1.self_attn.q_proj.lora_A.default.weight got no gradient"


@pytest.fixture
def alarms():
    return LossWarnings(GuardSection(), Console(quiet=True))


def test_a_loss_that_never_changes_stops_the_run(alarms):
    for number in range(CONSTANT_LOSSES - 1):
        alarms.note_loss(2.5, number + 1, updates=True)
    with pytest.raises(GuardError, match=r"exactly 2\.5 in each of 10 updates"):
        alarms.note_loss(2.5, CONSTANT_LOSSES, updates=True)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_loss_of_episodes_is_not_judged(recipe, tmp_path, method):
    """It lies around 0: no jump of it means anything, nor does the same value in each update."""
    more = ["method.max_new_tokens=64"] if method == "grpo" else []
    settings = recipe(f"method.name={method}", *more)
    context = SimpleNamespace(recipe=settings, run=tmp_path, console=Console(quiet=True))
    rows = SimpleNamespace(sources=lambda rows: [])

    def losses(*values, teaches=True):
        guard = _guard(context, rows)
        guard._optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
        for number, value in enumerate(values):
            batch = MicroBatch({"input_ids": torch.zeros(1, 4)}, [0], torch.zeros(1))
            guard.before_forward(batch)
            guard.after_forward(torch.tensor(value))
            none = torch.zeros(1, 4)
            guard.on_gradients(GradientStep(nn.Linear(1, 1), number + 1, none, teaches=teaches))
        return guard.alarms.warnings

    same, jump = [0.0] * CONSTANT_LOSSES, [*(0.1, 0.2) * 10, 2.0]
    assert losses(*same, teaches=False) == losses(*[-0.1] * 9, -0.2, 0.4) == []
    if method == "sft":
        assert len(losses(*jump)) == 1
        with pytest.raises(GuardError, match=r"exactly 0\.0 in each"):
            losses(*same)
    else:
        assert losses(*same) == losses(*jump) == []


def test_a_jump_of_the_loss_is_warned_of(alarms):
    for number in range(12):
        alarms.note_loss(2.0 + 0.1 * (number % 3), number + 1, updates=True)
    assert alarms.warnings == []
    alarms.note_loss(9.0, 13, updates=True)
    (warning,) = alarms.warnings
    assert warning.startswith("step 13: loss 9.0000 is 4.3 times the mean of the last 12 steps")


def test_a_resumed_run_compares_with_what_was_seen_before(alarms):
    for number in range(12):
        alarms.note_loss(2.0, number + 1, updates=number >= 3)
    alarms.note_entropies([1.0, 0.8])
    alarms.note_entropies([0.6, 0.8])
    resumed = LossWarnings(GuardSection(), Console(quiet=True))
    resumed.load(json.loads(json.dumps(alarms.state())))
    assert resumed.state() == alarms.state()
    resumed.note_entropies([0.6, 0.5])
    resumed.note_loss(9.0, 13, updates=False)
    assert [text.partition(",")[0].partition(" is ")[0] for text in resumed.warnings] == [
        "layer 0: its router uses few experts",
        "layer 1: its router uses few experts",
        "step 13: loss 9.0000",
    ]
    with pytest.raises(GuardError, match=r"exactly 2\.0 in each of 10 updates"):
        resumed.note_loss(2.0, 14, updates=True)


def test_router_load_counts_real_tokens_and_a_collapse_is_warned_of(model, alarms):
    load = ExpertLoad(model)
    tokens = torch.arange(40).view(1, 40)
    load.of_tokens((torch.arange(40) < 30).float())
    model(input_ids=tokens, use_cache=False)
    assert load.counts.sum(dim=1).tolist() == [30 * 4, 30 * 4]
    # 4 experts, all 4 chosen for every token: perfectly even.
    assert entropies(load.counts) == pytest.approx([1.0, 1.0])
    load.reset()
    assert load.counts.sum() == 0
    two_of_four = torch.tensor([[8.0, 8.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0]])
    assert entropies(two_of_four) == pytest.approx([0.5, 1.0])
    load.of_tokens(None)
    model(input_ids=tokens, use_cache=False)
    assert load.counts.sum() == 0
    alarms.note_entropies([1.0, 0.9])
    alarms.note_entropies([0.75, 0.9])
    assert alarms.warnings == []
    alarms.note_entropies([0.75, 0.5])
    alarms.note_entropies([0.75, 0.4])
    (warning,) = alarms.warnings
    assert warning.startswith("layer 1: its router uses few experts") and "0.90 to 0.50" in warning


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(300, 7),
        lambda: torch.randn(33, 5, dtype=torch.bfloat16),
        lambda: torch.randint(0, 255, (1001,), dtype=torch.uint8),
        lambda: torch.randn(64, 64).T,
    ],
    ids=["fp32", "odd bf16", "odd bytes", "transposed"],
)
def test_a_checksum_sees_one_changed_value(make):
    tensor = make()
    before = checksum(tensor)
    assert torch.equal(checksum(tensor.clone()), before)
    changed = tensor.clone()
    changed.view(torch.uint8 if tensor.dtype == torch.uint8 else tensor.dtype)[-1] += 1
    assert not torch.equal(checksum(changed), before)
    swapped = tensor.clone()
    swapped[0], swapped[1] = tensor[1], tensor[0]
    assert not torch.equal(checksum(swapped), before)


def test_a_checksum_reads_what_packed_experts_hold():
    blocks = torch.randint(0, 255, (2, 64, 1, 16), dtype=torch.uint8)
    scales = torch.full((2, 64, 1), 120, dtype=torch.uint8)
    weight = nn.Parameter(ExpertWeight(Mxfp4Weight(blocks, scales)), requires_grad=False)
    before = checksum(weight)
    scales[1, 3, 0] += 1
    assert not torch.equal(checksum(weight), before)
