"""Which tile a run's experts see: named, remembered, or the largest that the card allows."""

import json
from types import SimpleNamespace

import pytest
import torch

from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.memory import fitted, memory
from gptoss_tune.plan.plan import plan
from gptoss_tune.recipe import load_recipe
from gptoss_tune.shipped import shipped
from gptoss_tune.train.resume import expert_tile
from gptoss_tune.train.run import train


def context(recipe, *, before=None, device="cpu", base=None):
    return SimpleNamespace(
        recipe=recipe,
        start=SimpleNamespace(before=before),
        device=torch.device(device),
        base=SimpleNamespace(path=base),
        state=SimpleNamespace(num_processes=1),
        parallelism="ddp",
    )


def test_a_named_tile_is_that_and_a_cpu_takes_all(recipe):
    assert expert_tile.settled_tile(context(recipe("train.expert_tile=64"))) == 64
    assert expert_tile.settled_tile(context(recipe("train.expert_tile=null"))) is None
    assert expert_tile.settled_tile(context(recipe())) is None


def test_a_continued_run_keeps_the_tile_it_began_with(recipe):
    for tile in (None, 4096):
        known = {"expert_tile": tile}
        assert expert_tile.settled_tile(context(recipe(), before=known, device="cuda")) == tile
    older = {"train.seed": 0}  # began before there were tiles
    assert expert_tile.settled_tile(context(recipe(), before=older, device="cuda")) is None


@pytest.mark.parametrize("name", ["gpt-oss-20b/qlora-128k", "gpt-oss-120b/qlora-80gb"])
def test_a_new_run_takes_the_tile_of_its_plan(name, monkeypatch):
    asked = load_recipe(name, ["data.max_length=131072"])
    for gpu in map(card, ("5090", "h100-80gb", "h200")):
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device, gpu=gpu: (0, gpu.memory_bytes)
        )
        monkeypatch.setattr(
            expert_tile, "architecture_of", lambda path, gpu=gpu: plan(asked, gpu).architecture
        )
        made = plan(asked, gpu)
        assert expert_tile.settled_tile(context(asked, device="cuda")) == made.tile_tokens


def test_the_largest_tile_that_fits_is_taken():
    asked = load_recipe("gpt-oss-120b/qlora-80gb", ["data.max_length=131072"])
    gpu = card("h100-80gb")
    made = plan(asked, gpu)
    assert made.fits and made.memory.peak <= 79.1 * 2**30
    assert made.tile_tokens is not None and made.tile_tokens % 128 == 0
    count = -(-131_072 // made.tile_tokens)
    larger = -(-131_072 // (count - 1) // 128) * 128
    wider = made.setup.with_settings({"train.expert_tile": larger})
    assert memory(wider).peak > 0.98 * gpu.memory_bytes, "a larger one would have fitted"
    room = fitted(made.setup, card("b300-288gb").memory_bytes)
    assert room.train.expert_tile is None, "a card with room decodes once"
    tight = fitted(made.setup, 2**30)
    smallest = made.setup.with_settings({"train.expert_tile": 2048})
    assert memory(tight).peak <= memory(smallest).peak, "nothing fits: the one that needs least"


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("gpt-oss-120b/qlora-128k-80gb", "h100-80gb"),
        ("gpt-oss-20b/qlora-128k-32gb", "5090"),
        ("gpt-oss-20b/qlora-128k", "5090"),
        ("gpt-oss-20b/qlora-12gb", "3060"),
    ],
)
def test_recipes_fit_the_cards_they_are_for(name, gpu):
    assert plan(load_recipe(shipped("recipes") / f"{name}.yaml"), card(gpu)).fits


@pytest.mark.slow
def test_a_run_in_tiles_learns_the_same_and_goes_on_in_them(recipe, tmp_path, capfd):
    def run(folder, *words):
        out = tmp_path / folder
        common = ("train.save_steps=2", f"train.output_dir={out}")
        train(recipe(*common, *words))
        lines = (out / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [(one["step"], one["loss"], one["grad_norm"]) for one in found if "loss" in one]

    whole = run("whole", "train.max_steps=4")
    tiles = run("tiles", "train.max_steps=4", "train.expert_tile=16")
    assert "tiles of 16 tokens" in capfd.readouterr().out
    for expected, found in zip(whole, tiles, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    checkpoint = tmp_path / "tiles" / "checkpoint-2"
    again = run("again", "train.max_steps=4", f"train.resume={checkpoint}")
    said = capfd.readouterr().out
    assert "tiles of 16 tokens" in said and "continues with a change" not in said
    assert again[-2:] == tiles[-2:], "bit for bit, though the recipe now says auto"
