"""The pass that chooses experts: its counts, its cache, its signals, and who goes on with them."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Mxfp4Config

from gptoss_tune.errors import CheckpointError, DataError, RecipeError, RunInterrupted
from gptoss_tune.harmony.dataset.cache import cache_folder
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import load_recipe
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.chosen_experts import counting
from gptoss_tune.train.chosen_experts.choice import from_checkpoint
from gptoss_tune.train.chosen_experts.counting import first_rows
from gptoss_tune.train.chosen_experts.load import WeightedLoad, most_loaded
from gptoss_tune.train.run import train

E, N = 8, 2
# The prompts and thoughts weigh differently from the answers, so that weights decide.
CHOSEN = [f"lora.experts={{count: {N}}}", "data.channel_weights.analysis=0.1"]


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight") / "base"
    return tiny_checkpoint(folder, seed=1, layers=2, experts=E, hidden=32, intermediate=64)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def recipe_in(eight, write_recipe):
    """Return a function from a folder and overrides to a recipe with chosen experts."""

    def make(folder, *overrides):
        folder.mkdir(exist_ok=True)
        settings = [f"model.name_or_path={eight}", *CHOSEN, *overrides]
        last = {setting.partition("=")[0]: setting for setting in settings}
        return load_recipe(write_recipe(folder), list(last.values()))

    return make


@pytest.fixture(scope="module")
def run(recipe_in, tmp_path_factory):
    """A run with a checkpoint in its middle."""
    folder = tmp_path_factory.mktemp("run")
    return train(recipe_in(folder, "train.save_steps=2", "train.save_total_limit=3")).folder


def fact(run):
    return json.loads((run / "run.json").read_text())["chosen_experts"]


def cached():
    (found,) = cache_folder().glob("*/expert_load.json")
    return found.parent


def forget():
    for file in cache_folder().glob("*/expert_load.json"):
        shutil.rmtree(file.parent)


def brute_force(base, recipe, weighted=True):
    """Return ``[L][E]`` by transformers' own model, row by row, token by token."""
    model = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        experts_implementation="eager",
        attn_implementation="eager",
    ).float()
    seen = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.router.register_forward_hook(
            lambda _, args, output, layer=layer: seen.update({layer: output[2]})
        )
    counts = np.zeros((len(model.model.layers), E))
    vocabulary = load_vocabulary(base)
    rows = load_dataset(recipe.data, vocabulary=vocabulary, seed=recipe.train.seed, split="train")
    for row in rows:
        with torch.no_grad():
            model(torch.tensor([row["input_ids"]]))
        for place in range(len(row["input_ids"]) - 1):
            weight = row["loss_weights"][place + 1]  # of predicting the token after it
            for layer, chosen in seen.items():
                for expert in chosen[place].tolist():
                    counts[layer, expert] += weight if weighted else weight > 0
    return counts


def busiest(counts):
    """Return the N highest of each layer, which must not be a matter of rounding."""
    found = {}
    for layer, row in enumerate(counts):
        order = np.argsort(-row, kind="stable")
        assert row[order[N - 1]] > row[order[N]] * 1.001
        found[str(layer)] = sorted(order[:N].tolist())
    return found


def test_the_choice_is_that_of_a_brute_force_count(eight, run, recipe_in, tmp_path):
    counts = brute_force(eight, recipe_in(tmp_path))
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fact(run)["load"], shares, atol=1e-6)
    expected = busiest(counts)
    assert fact(run)["layers"] == expected
    # The weights matter here: without them another choice would be made.
    assert busiest(brute_force(eight, recipe_in(tmp_path), weighted=False)) != expected


def test_the_record_and_every_adapter_say_the_choice(run):
    found = fact(run)
    assert (found["chosen_by"], found["experts"], found["cached"]) == ("data", E, False)
    assert found["rows"] == 6 and found["tokens"] > 100 and found["seconds"] > 0
    for layer, chosen in found["layers"].items():
        assert len(chosen) == N and chosen == sorted(set(chosen))
        share = sum(found["load"][int(layer)][expert] for expert in chosen)
        assert found["share_of_load"][layer] == pytest.approx(share, abs=1e-5)
    for folder in (run / "adapter", run / "checkpoint-2"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["chosen_experts"] == found["layers"]
        weights = load_file(folder / "adapter_model.safetensors")
        rows = {w.shape[0] for n, w in weights.items() if ".experts." in n and "lora_A" in n}
        assert rows == {N * 2}
    page = (run / "report.html").read_text()
    assert "Experts with an adapter" in page


def test_a_known_load_costs_no_pass_and_serves_every_share(recipe_in, run, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "build_base", lambda *a, **k: pytest.fail("the base was built"))
    again = train(recipe_in(tmp_path / "again", "train.max_steps=2")).folder
    assert fact(again)["cached"] and fact(again)["layers"] == fact(run)["layers"]
    more = train(recipe_in(tmp_path / "more", "train.max_steps=1", "lora.experts={count: 5}"))
    assert {len(chosen) for chosen in fact(more.folder)["layers"].values()} == {5}
    assert all(set(fact(run)["layers"][n]) < set(c) for n, c in fact(more.folder)["layers"].items())


def test_all_experts_by_share_are_an_adapter_on_all(recipe_in, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "count", lambda *a, **k: pytest.fail("experts were counted"))
    whole = train(recipe_in(tmp_path, "train.max_steps=1", "lora.experts={share: 1}"))
    assert "chosen_experts" not in json.loads((whole.folder / "run.json").read_text())


def edited(folder):
    file = folder / "expert_load.json"
    file.write_text(file.read_text().replace('"unit"', '"Unit"'))


def of_something_else(folder):
    from gptoss_tune.files.digest import sha256_of

    file = folder / "expert_load.json"
    told = json.loads(file.read_text())
    told["facts"]["base"] = "another"
    file.write_text(json.dumps(told))
    (folder / "manifest.json").write_text(json.dumps({file.name: sha256_of(file)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm, message",
    [(edited, "are damaged"), (of_something_else, "belong to something else")],
    ids=["damaged", "stale"],
)
def test_what_is_no_good_is_counted_again(recipe_in, run, tmp_path, capsys, harm, message):
    harm(cached())
    capsys.readouterr()
    again = train(recipe_in(tmp_path, "train.max_steps=1")).folder
    said = capsys.readouterr().out
    assert said.count(f"{message}; they are counted again") == 1
    assert not fact(again)["cached"]
    for name in ("layers", "load", "share_of_load"):
        assert fact(again)[name] == fact(run)[name]
    # And is whole from now on.
    capsys.readouterr()
    train(recipe_in(tmp_path / "later", "train.max_steps=1"))
    assert "counted again" not in capsys.readouterr().out


def test_a_continuation_keeps_its_choice_and_never_counts(
    recipe_in, run, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    recipe = recipe_in(tmp_path, "train.save_steps=2", "train.save_total_limit=3")
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoint-4")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
    monkeypatch.setattr(counting, "_counted", lambda *a: pytest.fail("experts were counted"))
    forget()
    resumed = train(recipe).folder
    before, after = (load_file(f / "adapter/adapter_model.safetensors") for f in (run, resumed))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert fact(resumed)["layers"] == fact(run)["layers"]


@pytest.mark.parametrize(
    "told, message",
    [
        (None, "no readable choice of experts"),
        ({"layers": {"0": [9]}}, "expected numbers of experts from 0 to 7"),
        ({}, "expected as many experts in each layer"),
    ],
    ids=["missing", "beyond", "empty"],
)
def test_a_checkpoint_without_its_choice_is_refused(tmp_path, told, message):
    if told is not None:
        (tmp_path / "chosen_experts.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=message):
        from_checkpoint(tmp_path, {"num_hidden_layers": 2, "num_local_experts": E})


def test_another_share_is_another_run(recipe_in, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "adapter")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
    with pytest.raises(RecipeError, match=r"lora\.experts: .*count.*2.* there, .*count.*3"):
        train(recipe_in(tmp_path, "lora.experts={count: 3}", "train.save_steps=2"))


def test_a_run_trains_the_experts_of_the_adapter_it_starts_from(
    recipe_in, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(counting, "count", lambda *a, **k: pytest.fail("experts were counted"))
    begin = [f"lora.init_from={run}", "train.max_steps=1"]
    began = train(recipe_in(tmp_path / "same", *begin)).folder
    assert fact(began)["layers"] == fact(run)["layers"]
    assert fact(began)["chosen_by"] == "init_from"
    with pytest.raises(RecipeError, match=r"on 3 experts .* is on 2; set lora\.experts"):
        train(recipe_in(tmp_path / "three", *begin, "lora.experts={count: 3}"))
    with pytest.raises(RecipeError, match=r"on all 8 experts .* is on 2; .* to \{count: 2\}"):
        train(recipe_in(tmp_path / "all", *begin, "lora.experts=all"))


def test_a_signal_in_the_pass_ends_the_run_and_keeps_nothing(recipe_in, run, tmp_path, monkeypatch):
    forget()
    original = WeightedLoad.of_tokens

    def signalled(self, weights):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, weights)

    with monkeypatch.context() as patch:
        patch.setattr(WeightedLoad, "of_tokens", signalled)
        with pytest.raises(RunInterrupted, match="the base reads the rows from the start"):
            train(recipe_in(tmp_path, "train.max_steps=1"))
    assert not list(cache_folder().glob("*/expert_load.json"))
    again = train(recipe_in(tmp_path, "train.max_steps=1")).folder
    assert fact(again)["layers"] == fact(run)["layers"]


def test_few_tokens_are_the_first_of_the_first_epoch(recipe_in, tmp_path, capsys):
    recipe = recipe_in(tmp_path, "train.max_steps=1", "lora.experts={count: 2, tokens: 200}")
    found = fact(train(recipe).folder)
    assert 0 < found["tokens"] <= 200 and 0 < found["rows"] < 6
    assert f"{found['tokens']:,} tokens counted" in capsys.readouterr().out


def test_the_first_rows_are_those_the_seed_puts_first():
    from datasets import Dataset

    rows = Dataset.from_dict({"length": [10, 20, 30, 40, 50], "number": list(range(5))})
    order = np.random.Generator(np.random.PCG64([7, 0])).permutation(5)
    lengths = np.array(rows["length"])[order]
    for most in (75, 100):
        kept = order[: int((np.cumsum(lengths) <= most).sum())]
        assert first_rows(rows, most, 7)["number"] == sorted(kept.tolist())
    assert first_rows(rows, 1, 7)["number"] == [order[0]]
    assert first_rows(rows, 150, 7) is rows and first_rows(rows, None, 7) is rows


class Router(torch.nn.Module):
    """A router that chooses what it is given."""

    num_experts = 4

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 2))

    def forward(self, indices):
        return None, None, indices


Router.__name__ = "GptOssTopKRouter"


def counts_of(parts):
    """Return the counts of (weights, indices) in some order of batches."""
    model = torch.nn.ModuleList([Router()])
    load = WeightedLoad(model, 3.0)
    for weights, indices in parts:
        load.of_tokens(weights)
        model[0](indices)
    load.close()
    return load.counts, load.unit


def test_counts_do_not_hang_on_the_order_of_the_batches():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(300, generator=generator) * 3
    indices = torch.randint(0, 4, (300, 2), generator=generator)
    parts = list(zip(weights.split(7), indices.split(7), strict=True))
    expected, unit = counts_of([(weights, indices)])
    random.Random(1).shuffle(parts)
    found, _ = counts_of(parts)
    assert torch.equal(found, expected)
    exact = torch.zeros(4, dtype=torch.float64)
    exact.index_add_(0, indices.flatten(), weights.double()[:, None].expand(300, 2).flatten())
    assert torch.allclose(found[0].double() * unit, exact, rtol=1e-5)


def test_of_equals_the_lower_number_is_chosen():
    assert most_loaded([3, 5, 5, 1, 5], 2) == (1, 2)
    assert most_loaded([0, 0, 0], 2) == (0, 1)
    assert most_loaded([1, 2, 3, 4], 3) == (1, 2, 3)


def test_rows_that_train_nothing_choose_nobody():
    from datasets import Dataset

    with pytest.raises(DataError, match=r"raise lora\.experts\.tokens"):
        counting._largest_weight(Dataset.from_dict({"loss_weights": [[0.0, 0.0], [0.0]]}))
