"""``layers.jsonl``: against gradients and routing computed apart, bounded, right after a resume."""

import json

import pytest
import torch

from gptoss_tune.train.metrics import layers
from gptoss_tune.train.metrics.layers import LayerFigures, layer_norms
from gptoss_tune.train.run import train


def lines(run):
    return [json.loads(line) for line in (run / "layers.jsonl").read_text().splitlines()]


def test_norms_and_loads_are_those_of_the_step(recipe, tmp_path, monkeypatch):
    """Norms in float64 from the gradients; loads from what the routers return, counted by hand."""
    from gptoss_tune.train.metrics.step_metrics import StepMetrics

    norms, loads = {}, {}

    original = StepMetrics.on_gradients

    def measured(self, step):
        squares = {}
        for name, parameter in step.model.named_parameters():
            if parameter.grad is not None:
                key = ("experts" if "experts" in name else "attention", name.split(".")[4])
                square = float((parameter.grad.double() ** 2).sum())
                squares[key] = squares.get(key, 0.0) + square
        norms[step.number] = {key: value**0.5 for key, value in squares.items()}
        original(self, step)

    monkeypatch.setattr(StepMetrics, "on_gradients", measured)
    from gptoss_tune.train import run as run_module

    build = run_module._model

    def watched(*args):
        model = build(*args)
        for number, layer in enumerate(model.get_base_model().model.layers):
            layer.mlp.router.register_forward_hook(
                lambda router, inputs, output, number=number: loads.setdefault(number, []).append(
                    torch.bincount(output[2].flatten(), minlength=4)
                )
            )
        return model

    monkeypatch.setattr(run_module, "_model", watched)
    # One row per batch and no padding but to a multiple of 8, taken off below.
    train(recipe("train.per_device_train_batch_size=1", "train.activation_checkpointing=full"))
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for line in found:
        for kind in ("attention", "experts"):
            expected = [norms[line["step"]][kind, str(layer)] for layer in (0, 1)]
            assert line["grad_norm"][kind] == pytest.approx(expected, rel=1e-4)
        assert line["load_steps"] == 1
    metrics = [
        json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    read = [row["tokens"] for row in metrics if "loss" in row]
    per_step = [now - before for before, now in zip([0, *read], read, strict=False)]
    for line, tokens in zip(found, per_step, strict=True):
        for layer, load in enumerate(line["expert_load"]):
            # top 2 or 4 of 4 experts; the last token of a row predicts nothing and is padding.
            forward = loads[layer][2 * (line["step"] - 1)]
            padding = int(forward.sum()) - sum(load)
            assert 0 < padding <= 8 * 4 and sum(load) % (tokens - 1) == 0
            assert all(mine <= all_of for mine, all_of in zip(load, forward.tolist(), strict=True))


@pytest.mark.slow
def test_the_load_of_step_1_is_kept_apart_and_a_resume_drops_what_is_written_again(
    recipe, tmp_path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    every = "train.logging_steps=2"
    train(recipe(f"train.output_dir={whole}", "train.max_steps=6", every))
    assert [line["step"] for line in lines(whole)] == [1, 2, 4, 6]
    assert lines(whole)[0].keys() == {"step", "expert_load", "load_steps"}
    first, second = (sum(lines(whole)[n]["expert_load"][0]) for n in (0, 1))
    assert 0 < first < second

    class Killed(BaseException):
        """Stands for a process that dies between two steps."""

    from gptoss_tune.train import sft

    original = sft.WeightedSftTrainer.log

    def dies(self, logs, start_time=None):
        original(self, logs, start_time)
        if self.state.global_step == 4:
            raise Killed

    settings = recipe(f"train.output_dir={parts}", "train.max_steps=6", every, "train.save_steps=2")
    sft.WeightedSftTrainer.log = dies
    try:
        with pytest.raises(Killed):
            train(settings)
    finally:
        sft.WeightedSftTrainer.log = original
    assert [line["step"] for line in lines(parts)] == [1, 2, 4]
    train(settings)
    assert lines(parts) == lines(whole)


def test_a_long_run_keeps_a_bounded_number_of_lines(tmp_path):
    figures = LayerFigures(tmp_path / "l.jsonl", layers=2, logging_steps=3, max_steps=300_001)
    figures.open(0)
    model = torch.nn.Module()
    load = torch.ones(2, 4)
    for step in (*range(3, 300_001, 3), 300_001):
        figures.on_gradients(model, step)
        figures.log(step, load, 3)
    figures.close()
    found = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    with_norms = [line for line in found if "grad_norm" in line]
    with_load = [line for line in found if "expert_load" in line]
    assert len(with_norms) <= layers.MOST_NORMS + 2 and len(with_load) <= layers.MOST_LOADS + 2
    assert found[0]["step"] == 3 and found[-1]["step"] == 300_001
    assert found[0]["grad_norm"] == {"attention": [None, None], "experts": [None, None]}


def test_a_layer_without_adapters_and_a_gradient_of_nan_have_no_norm():
    model = torch.nn.Module()
    for name in ("layers.0.self_attn.lora_A", "layers.2.mlp.experts.lora_B"):
        parent = model
        *path, last = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.register_parameter(last, torch.nn.Parameter(torch.ones(2)))
    for parameter in model.parameters():
        parameter.grad = torch.tensor([3.0, 4.0])
    model.get_parameter("layers.2.mlp.experts.lora_B").grad[0] = float("nan")
    found = layers._rounded(layer_norms(model, 3))
    assert found == [[5.0, None, None], [None, None, None]]
