"""Optimizer, schedule and random generators through files that hold no pickle."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from gptoss_tune.errors import CheckpointError
from gptoss_tune.train.resume.state import (
    FACTS,
    TENSORS,
    load_random_state,
    load_state,
    random_state,
    save_random_states,
    save_state,
)


def adamw(parameters, **options):
    return torch.optim.AdamW(parameters, **{"lr": 1e-2, "betas": (0.8, 0.95), **options})


def eight_bit(parameters, **options):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # The wide weight has 4,096 values, from which on the moments are quantized.
    return bitsandbytes.optim.AdamW8bit(parameters, **{"lr": 1e-2, **options})


class Run:
    """Two weights in two groups, one of which gets no gradient at first."""

    def __init__(self, make=adamw, seed=0, reverse=False, **options):
        torch.manual_seed(seed)
        self.model = nn.ModuleDict(
            {
                "wide": nn.Linear(64, 64, bias=False),
                "narrow": nn.Linear(64, 3),
                "late": nn.Linear(3, 1),
            }
        )
        named = dict(self.model.named_parameters())
        groups = [
            {"params": [named["wide.weight"]], "weight_decay": 0.1},
            {"params": [p for name, p in named.items() if name != "wide.weight"]},
        ]
        if reverse:
            groups = [{**g, "params": g["params"][::-1]} for g in groups[::-1]]
        self.optimizer = make(groups, **options)
        self.scheduler = LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def train(self, steps, first=0, late=True):
        losses = []
        for step in range(first, first + steps):
            inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(step))
            hidden = self.model["narrow"](self.model["wide"](inputs))
            loss = self.model["late"](hidden).square().mean() if late else hidden.square().mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def save(self, folder, writes=True):
        save_state(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            writes=writes,
        )

    def load(self, folder):
        load_state(folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)


@pytest.mark.parametrize("make", [adamw, eight_bit])
def test_training_goes_on_bit_for_bit_in_another_order_of_parameters(tmp_path, make):
    run = Run(make)
    run.train(3)
    run.save(tmp_path)
    resumed = Run(make, seed=1, reverse=True)
    resumed.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    resumed.load(tmp_path)
    assert resumed.scheduler.get_last_lr()[::-1] == run.scheduler.get_last_lr()
    assert resumed.train(3, first=3) == run.train(3, first=3)
    for name, weight in run.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_a_parameter_that_no_step_has_reached_has_no_state(tmp_path):
    run = Run()
    run.train(2, late=False)
    run.save(tmp_path)
    resumed = Run(seed=1)
    resumed.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    resumed.load(tmp_path)
    assert resumed.model["late"].weight not in resumed.optimizer.state
    assert resumed.train(2, first=2) == run.train(2, first=2)


def test_a_learning_rate_that_was_changed_on_purpose_takes_effect(tmp_path):
    run = Run()
    run.train(3)
    run.save(tmp_path)
    resumed = Run(lr=4e-2)
    resumed.load(tmp_path)
    assert resumed.scheduler.get_last_lr() == [4e-2 / 4, 4e-2 / 4]
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [4e-2 / 4, 4e-2 / 4]


def test_a_rank_that_does_not_write_leaves_nothing(tmp_path):
    run = Run()
    run.train(1)
    run.save(tmp_path, writes=False)
    assert not list(tmp_path.iterdir())


def rename(facts):
    facts["parameters"]["other"] = facts["parameters"].pop("wide.weight")


def drop(facts):
    del facts["parameters"]["wide.weight"]


def other_optimizer(facts):
    facts["optimizer"] = "Lion"


def no_schedule(facts):
    facts["schedule"] = {}


@pytest.mark.parametrize(
    "change, message",
    [
        (rename, "parameters are not the run's"),
        (drop, "parameters are not the run's"),
        (other_optimizer, "state of Lion, the run's optimizer is AdamW"),
        (no_schedule, "cannot be read"),
    ],
)
def test_state_of_something_else_is_refused(tmp_path, change, message):
    run = Run()
    run.train(1)
    run.save(tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    change(facts)
    (tmp_path / FACTS).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=message):
        Run().load(tmp_path)


def test_state_of_other_shapes_is_refused(tmp_path):
    run = Run()
    run.train(1)
    run.save(tmp_path)
    resumed = Run()
    resumed.model["wide"].weight.data = torch.zeros(32, 64)
    with pytest.raises(CheckpointError, match=r"is \[64, 64\], expected \[32, 64\]"):
        resumed.load(tmp_path)
    (tmp_path / TENSORS).write_bytes((tmp_path / TENSORS).read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        Run().load(tmp_path)


def draws():
    return random.gauss(0, 1), np.random.standard_normal(), torch.rand(2).tolist()


def test_random_generators_go_on_where_they_were(tmp_path):
    cpu = torch.device("cpu")
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    draws()  # both gaussian generators now hold the second of a pair
    save_random_states(tmp_path, [random_state(cpu)])
    expected = draws()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert load_random_state(tmp_path, 0, cpu)
    assert draws() == expected
    before = random.getstate()
    assert not load_random_state(tmp_path, 1, cpu), "a rank that was not there"
    assert random.getstate() == before


@pytest.mark.parametrize(
    "text", ["{", '{"ranks": [{}]}', '{"ranks": [{"python": [3, "!", null]}]}']
)
def test_damaged_random_states_are_refused(tmp_path, text):
    (tmp_path / "random.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_random_state(tmp_path, 0, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("paged", [False, True])
def test_eight_bit_moments_of_a_gpu_stay_where_they_were(tmp_path, paged):
    """Paged moments that a resume puts into GPU memory would end a run that just fitted."""
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def run():
        weight = nn.Parameter(torch.ones(512, 512, device="cuda"))
        kind = bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit
        optimizer = kind([weight], lr=1e-2)
        return (
            nn.ParameterDict({"weight": weight}),
            optimizer,
            LambdaLR(optimizer, lambda step: 1.0),
        )

    def steps(model, optimizer, seeds):
        for seed in seeds:
            generator = torch.Generator("cuda").manual_seed(seed)
            model["weight"].grad = torch.randn(512, 512, device="cuda", generator=generator)
            optimizer.step()

    model, optimizer, scheduler = run()
    steps(model, optimizer, (0, 1))
    save_state(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, writes=True)
    resumed, other, schedule = run()
    resumed["weight"].data.copy_(model["weight"].data)
    load_state(tmp_path, model=resumed, optimizer=other, scheduler=schedule)
    state = other.state[resumed["weight"]]
    assert getattr(state["state1"], "is_paged", False) == paged
    for run_model, run_optimizer in ((model, optimizer), (resumed, other)):
        steps(run_model, run_optimizer, (2, 3))
    torch.cuda.synchronize()
    assert torch.equal(model["weight"], resumed["weight"])
