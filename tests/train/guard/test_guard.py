"""Runs that train nothing, move what is frozen or compute NaN are stopped, and say which tensor."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from gptoss_tune.errors import GuardError, RecipeError
from gptoss_tune.train import finish
from gptoss_tune.train import run as run_module
from gptoss_tune.train.run import train


@pytest.fixture
def broken(monkeypatch):
    """Let a function spoil the model of the next run, as a fault in a library would."""

    def spoil(change):
        original = run_module._model

        def spoiled(*args):
            model = original(*args)
            change(model)
            return model

        monkeypatch.setattr(run_module, "_model", spoiled)

    return spoil


def parameter(model, part):
    (found,) = (p for name, p in model.named_parameters() if part in name)
    return found


def test_a_sound_run_passes_and_writes_down_what_was_checked(recipe, tmp_path):
    train(recipe("train.warmup_steps=1"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    guard, tokens = record["guard"], record["tokens"]
    assert guard["updates_checked"] == 2 and guard["skipped_steps"] == 0
    assert guard["warnings"] == []
    assert all(0 < entropy <= 1 for layer in guard["router_entropy_by_layer"] for entropy in layer)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in metrics if "loss" in json.loads(line)]
    total = sum(line["trained_tokens"] for line in logged)
    assert sum(tokens["trained_by_channel"].values()) == tokens["trained"] == total > 0
    assert (
        tokens["trained_by_channel"]["analysis"] > 0 and tokens["trained_by_channel"]["final"] > 0
    )
    assert all(0 < line["router_entropy_lowest"] <= line["router_entropy"] <= 1 for line in logged)


class NoRate(TrainerCallback):
    """Stands for a schedule whose every step has learning rate 0."""

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = 0.0


NOTHING = {
    "no rate": (("train.max_steps=3",), [NoRate()], "none of the 3 steps"),
    "no rate, unwatched": (("guard.check_steps=0",), [NoRate()], "none of the 4 steps"),
    "too small": (
        ("guard.check_steps=0", "train.learning_rate=1e-60"),
        (),
        "after 4 updates every lora_B is still zero",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "callbacks", "said"), NOTHING.values(), ids=NOTHING)
def test_a_run_that_trained_nothing_is_none(recipe, tmp_path, overrides, callbacks, said):
    with pytest.raises(GuardError, match=said):
        train(recipe(*overrides), callbacks=callbacks)
    assert not (tmp_path / "run" / "adapter").exists()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "stopped by the guard" and said in record["reason"]


def test_a_warm_up_as_long_as_the_epochs_is_refused_before_a_weight_is_read(recipe, tmp_path):
    """Six rows, all in one step: what no check knows without the data."""
    epoch = ("train.max_steps=null", "train.num_train_epochs=1", "train.warmup_steps=1")
    rows = "train.per_device_train_batch_size=6"
    with pytest.raises(RecipeError, match=r"warmup_steps: got 1"):
        train(recipe(*epoch, rows))
    assert not (tmp_path / "run" / "run.json").exists()
    assert train(recipe(*epoch)).steps == 3


def test_disconnected_experts_stop_the_run_by_name(recipe, monkeypatch, tmp_path):
    from gptoss_tune.model import experts

    original = experts._projection

    def detached(weight, bias, dtype):
        found = original(weight, bias, dtype)
        return type(found)(found.weight, found.bias)

    monkeypatch.setattr(experts, "_projection", detached)
    with pytest.raises(GuardError) as stopped:
        train(recipe("train.max_steps=20", "train.activation_checkpointing=full"))
    lines = str(stopped.value).splitlines()
    named = [line.strip() for line in lines if "got no gradient" in line]
    # Two layers, two stacks, B of each; an A has to wait for its B.
    assert len(named) == 4 and all("mlp.experts" in line and "lora_B" in line for line in named)
    assert {(line.split(".")[2], line.split("(")[1].split(")")[0]) for line in named} == {
        (layer, stack) for layer in "01" for stack in ("gate_up_proj", "down_proj")
    }
    assert "after 2 updates" in lines[0]
    assert not (tmp_path / "run" / "adapter").exists()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "stopped by the guard" and "lora_B" in record["reason"]


def test_an_adapter_whose_gradient_is_cut_is_named(recipe, broken):
    def cut(model):
        parameter(model, "layers.1.self_attn.v_proj.lora_B").register_hook(torch.zeros_like)

    broken(cut)
    with pytest.raises(
        GuardError, match=r"layers\.1\.self_attn\.v_proj\.lora_B\S* got no gradient"
    ):
        train(recipe())


def test_a_frozen_tensor_that_moves_is_named(recipe, broken):
    def move(model):
        frozen = parameter(model, "layers.1.post_attention_layernorm")

        def nudge(*_):
            frozen.data[7] += 1e-3

        model.register_forward_hook(nudge)

    broken(move)
    message = r"model\.layers\.1\.post_attention_layernorm\.weight is frozen and has changed"
    with pytest.raises(GuardError, match=message) as stopped:
        train(recipe())
    assert str(stopped.value).count("has changed") == 1


def test_a_frozen_tensor_that_moves_late_is_found_at_the_end(recipe, broken):
    def move(model):
        frozen, calls = parameter(model, "layers.0.mlp.router.bias"), []

        def nudge(*_):
            calls.append(1)
            if len(calls) == 4:
                frozen.data[0] += 1

        model.register_forward_hook(nudge)

    broken(move)
    with pytest.raises(GuardError, match=r"layers\.0\.mlp\.router\.bias is frozen and has changed"):
        train(recipe())


def test_nan_in_the_base_stops_the_run_and_keeps_the_batches(recipe, broken, tmp_path):
    def poison(model):
        parameter(model, "layers.1.self_attn.o_proj.base_layer.weight").data[3, 5] = math.nan

    broken(poison)
    with pytest.raises(GuardError) as stopped:
        train(recipe("train.max_steps=20", "guard.max_nonfinite_steps=2"))
    message = str(stopped.value)
    assert message.startswith(
        "step 3, rank 0: the loss is not finite; not finite: the gradients of"
    )
    assert "model.layers.0.self_attn.q_proj.lora_A" in message and "rows.jsonl:" in message
    assert "3 steps in a row without an update" in message
    run = tmp_path / "run"
    kept = sorted((run / "nonfinite").iterdir())
    assert [path.name for path in kept] == [f"step-{n}-rank-0.json" for n in (1, 2, 3)]
    body = json.loads(kept[0].read_text())
    assert len(body["rows"]) == len(body["sources"]) == 2
    assert all(source.split(":")[-1].isdigit() for source in body["sources"])
    assert not (run / "adapter").exists() and not list(run.glob("checkpoint-*"))


def test_a_run_without_a_single_update_is_no_success(recipe, broken, tmp_path):
    def poison(model):
        parameter(model, "layers.0.self_attn.k_proj.lora_B").register_hook(lambda g: g * math.nan)

    broken(poison)
    with pytest.raises(GuardError, match="all 2 steps of this run were left out"):
        train(recipe("train.max_steps=2"))
    assert not (tmp_path / "run" / "adapter").exists()


class Killed(BaseException):
    """Stands for a process that dies."""


def test_one_nan_is_left_out_without_an_update(recipe, broken, monkeypatch, tmp_path):
    seen = {}

    def poison(model):
        weight = parameter(model, "layers.0.self_attn.k_proj.lora_B")
        steps = []

        def once(grad):
            steps.append(1)
            seen[len(steps)] = {n: p.detach().clone() for n, p in model.named_parameters()}
            return grad.index_fill(0, torch.tensor([4]), math.inf) if len(steps) == 3 else grad

        weight.register_hook(once)

    def killed(*_):
        raise Killed

    broken(poison)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finish, "publish_adapter", killed)
        train(recipe("train.max_steps=5", "train.save_steps=5"))
    run = tmp_path / "run"
    guard = json.loads((run / "run.json").read_text())["guard"]
    # A process that trains no step any more knows what the one before it saw.
    train(recipe("train.max_steps=5", "train.save_steps=5"))
    trained = [name for name in seen[3] if "lora_" in name]
    assert all(torch.equal(seen[3][name], seen[4][name]) for name in trained)
    assert not all(torch.equal(seen[4][name], seen[5][name]) for name in trained)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {row["step"]: row for row in logged if "loss" in row}
    assert logged[3]["loss"] is None and logged[3]["skipped_steps"] == 1
    assert all(logged[step]["loss"] > 0 for step in (1, 2, 4, 5))
    body = json.loads((run / "nonfinite" / "step-3-rank-0.json").read_text())
    assert body["tensors_not_finite"] == ["model.layers.0.self_attn.k_proj.lora_B.default.weight"]
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["guard"]["skipped_steps"] == 1
    assert "no update was made" in record["guard"]["warnings"][0]
    assert record["guard"] == guard and guard["updates_checked"] == 2
    assert len(guard["router_entropy_by_layer"]) == 2
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", [2, 3], ids=["at a save", "in the last update"])
def test_an_update_that_is_not_finite_is_never_written_down(recipe, tmp_path, spoiled):
    """Every gradient is finite: as when a divisor vanishes in fp32, or memory fails."""
    updates = []

    def spoil(optimizer, args, kwargs):
        updates.append(1)
        if len(updates) == spoiled:
            optimizer.param_groups[0]["params"][0].data.flatten()[3] = math.inf

    hook = register_optimizer_step_post_hook(spoil)
    try:
        with pytest.raises(
            GuardError, match=rf"after step {spoiled} .*q_proj\.lora_A\.default"
        ) as e:
            train(recipe("train.max_steps=3", "train.save_steps=1"))
    finally:
        hook.remove()
    run = tmp_path / "run"
    assert "train.learning_rate" in str(e.value)
    assert not (run / "adapter").exists()
    kept = sorted(run.glob("checkpoint-*"))
    assert [path.name for path in kept] == [f"checkpoint-{n}" for n in range(1, spoiled)]
    for tensor in load_file(kept[-1] / "adapter_model.safetensors").values():
        assert torch.isfinite(tensor).all()
    assert json.loads((run / "run.json").read_text())["status"] == "stopped by the guard"


def test_a_divisor_that_vanishes_in_fp32_publishes_nothing(recipe, tmp_path):
    """1e-50 is above 0 and 0 in fp32: A, whose first gradient is 0, becomes 0 / 0."""
    settings = ["train.adam_epsilon=1e-50", "train.max_steps=1", "guard.check_steps=0"]
    with pytest.raises(GuardError, match=r"raise train\.adam_epsilon"):
        train(recipe(*settings))
    assert not (tmp_path / "run" / "adapter").exists()


ON_ONE_RANK = """
import math, sys, torch
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train import sft
from gptoss_tune.train.run import train

original = sft.WeightedSftTrainer.compute_loss

def compute_loss(self, model, inputs, **options):
    loss = original(self, model, inputs, **options)
    poisoned = self.accelerator.process_index == 1 and self.state.global_step == 1
    if poisoned:
        self.observers.after_forward(torch.tensor(math.nan))
        loss = loss * math.nan
    return loss

sft.WeightedSftTrainer.compute_loss = compute_loss
train(load_recipe(sys.argv[1], sys.argv[2:]))
"""


@pytest.mark.slow
def test_nan_on_one_rank_is_left_out_on_all(recipe_file, forked_python, losses, tmp_path):
    options = ["train.per_device_train_batch_size=1", "train.max_steps=3"]
    done = forked_python(["-c", ON_ONE_RANK, recipe_file, *options], ranks=2)
    assert done.returncode == 0, done.stderr
    assert "step 2, rank 1: the loss is not finite" in done.stdout
    assert losses(tmp_path / "run")[2] is None
    assert all(losses(tmp_path / "run")[step] > 0 for step in (1, 3))
    assert {p.name for p in (tmp_path / "run" / "nonfinite").iterdir()} == {
        "step-2-rank-0.json",
        "step-2-rank-1.json",
    }
