"""Chosen experts on two processes, with DDP and FSDP2: the choice and the weights of one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.recipe import load_recipe
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_recipe, forked_python):
    """One process and two of both kinds, each counting for itself; and one continued on two."""
    folder = tmp_path_factory.mktemp("choosing-ranks")
    base = tiny_checkpoint(folder / "base", seed=1, layers=2, experts=8, hidden=32, intermediate=64)
    common = [f"model.name_or_path={base}", "lora.experts={count: 2}", "lora.merge_aware=true"]
    common += ["train.save_steps=2", "train.per_device_train_batch_size=1"]
    one, two = ([f"train.gradient_accumulation_steps={n}"] for n in (4, 2))
    recipe = write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache-one"))
        train(load_recipe(recipe, [f"train.output_dir={folder / 'one'}", *common, *one]))
    resumed = f"train.resume={folder / 'one' / 'checkpoint-2'}"
    wanted = [
        ("ddp", False, "cache-ddp", []),
        ("fsdp2", True, "cache-fsdp2", []),
        ("continued", True, "cache-none", [resumed]),
    ]
    body = [
        (name, str(recipe), sharded, str(folder / cache), [*common, *two, *more])
        for name, sharded, cache, more in wanted
    ]
    (folder / "runs.json").write_text(json.dumps(body))
    script = Path(__file__).with_name("choosing_ranks.py")
    ended = forked_python([script, folder], ranks=2, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout


def fact(run):
    return json.loads((run / "run.json").read_text())["chosen_experts"]


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "continued"])
def test_two_ranks_choose_and_train_as_one(runs, name):
    folder, _ = runs
    mine, one = fact(folder / name), fact(folder / "one")
    for entry in ("layers", "load", "share_of_load", "rows", "tokens"):
        assert mine[entry] == one[entry]
    ours, theirs = (
        load_file(folder / run / "adapter" / "adapter_model.safetensors") for run in (name, "one")
    )
    assert ours.keys() == theirs.keys()
    assert {w.shape[0] for n, w in ours.items() if ".experts." in n and "lora_A" in n} == {2 * 2}
    for entry, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[entry], rtol=2e-3, atol=2e-4, msg=entry)


def test_each_counted_once_and_the_continuation_not(runs):
    folder, said = runs
    assert said.count("to choose 2 of 8 experts in each layer") == 2  # rank 0 of ddp and fsdp2
    assert not list((folder / "cache-none").glob("**/expert_load.json"))
    caches = [folder / f"cache-{n}" for n in ("one", "ddp", "fsdp2")]
    counts = []
    for cache in caches:
        (file,) = cache.glob("**/expert_load.json")
        counts.append(json.loads(file.read_text())["counts"])
    assert counts[0] == counts[1] == counts[2]
