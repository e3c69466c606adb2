"""Preferences on two processes: the figures, weights and reference of one.

The runs of the two ranks are in ``preference_ranks.py``, started once for all tests.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train

pytestmark = pytest.mark.slow

OTHERS = ("second", "runtime", "memory", "epoch")
"""What of the name of a figure says that it is measured, or counts micro-batches with fillers."""
ONE = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4"]
TWO = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=2"]
WITHOUT = ["data.eval=null", "train.eval_steps=null"]
PAIRS, HELD_OUT = 11, 3
"""Steps of 4, 4 and 3 rows, evaluations of 3: the second rank lacks one in the last of each."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, preference_recipe, forked_python):
    """The folder of all runs: those named ``-one`` of one process, the others of two."""
    folder = tmp_path_factory.mktemp("preference-ranks")
    dpo, kto = preference_recipe(folder, "dpo"), preference_recipe(folder, "kto")
    merge_aware = ["lora.merge_aware=true", "train.max_steps=2", *WITHOUT]
    short = ["train.max_steps=1", *WITHOUT]
    caches = {name: str(folder / f"cache-{name}") for name in ("one", "ddp", "fsdp2", "other")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", caches["one"])
        for name, recipe, overrides in (
            ("dpo-one", dpo, []),
            ("kto-one", kto, []),
            ("merge-aware-one", dpo, merge_aware),
        ):
            train(load_recipe(recipe, [f"train.output_dir={folder / name}", *ONE, *overrides]))
    ddp, fsdp2 = [caches["ddp"]] * 2, [caches["fsdp2"]] * 2
    resumed = f"train.resume={folder / 'dpo-fsdp2' / 'checkpoint-2'}"
    wanted = [
        ("dpo-ddp", dpo, False, ddp, []),
        ("dpo-fsdp2", dpo, True, fsdp2, []),
        ("dpo-continued", dpo, True, fsdp2, [resumed]),
        ("kto-ddp", kto, False, ddp, []),
        ("kto-fsdp2", kto, True, fsdp2, []),
        ("merge-aware", dpo, False, ddp, merge_aware),
        # The first machine knows the reference, the second does not; then each has one of its own.
        ("machines", dpo, False, [caches["ddp"], caches["other"]], short),
    ]
    body = [
        (name, str(recipe), sharded, cache, [*TWO, *more])
        for name, recipe, sharded, cache, more in wanted
    ]
    (folder / "runs.json").write_text(json.dumps(body))
    script = Path(__file__).with_name("preference_ranks.py")
    ended = forked_python([script, folder], ranks=2, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = json.loads((folder / "ended.json").read_text())
    assert said == {name: ["", ""] for name, *_ in wanted}
    return folder


def lines(run):
    """Return the lines of losses, without ``OTHERS``."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not any(word in k for word in OTHERS)}
        for line in found
        if "loss" in line or "eval_loss" in line
    ]


def adapter(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def record(run):
    return json.loads((run / "run.json").read_text())


def assert_same(ours, theirs):
    """Figures and weights of two runs that sum in other orders."""
    assert [line.keys() for line in lines(ours)] == [line.keys() for line in lines(theirs)]
    for mine, other in zip(lines(ours), lines(theirs), strict=True):
        # Rewards are differences of near equals.
        assert mine == pytest.approx(other, rel=2e-5, abs=2e-5)
    whole = adapter(theirs)
    assert adapter(ours).keys() == whole.keys()
    for name, tensor in adapter(ours).items():
        torch.testing.assert_close(tensor, whole[name], rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("spread", ["ddp", "fsdp2"])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_two_ranks_give_the_figures_weights_and_pairs_of_one(runs, method, spread):
    ours, theirs = runs / f"{method}-{spread}", runs / f"{method}-one"
    found = lines(ours)
    assert [line["step"] for line in found] == [1, 2, 2, 3, 4, 4]
    unit = "pairs" if method == "dpo" else "answers"
    assert [line[unit] for line in found if "loss" in line] == [4, 4, 3, 4]
    assert [line[f"eval_{unit}"] for line in found if "eval_loss" in line] == [3, 3]
    if method == "kto":
        assert any(line.get("kl_estimate") for line in found)
    else:
        assert found[-1]["eval_reward_margin"] > 0
    assert_same(ours, theirs)
    mine, other = (json.loads((run / "pairs.json").read_text()) for run in (ours, theirs))
    assert len(mine["pairs"]) == HELD_OUT
    for one, expected in zip(mine["pairs"], other["pairs"], strict=True):
        for side in {"chosen", "rejected"} & expected.keys():
            for when in ("before", "after"):
                assert math.isclose(one[side].pop(when), expected[side].pop(when), rel_tol=2e-4)
        assert one == expected


def test_merge_aware_training_of_two_ranks_is_that_of_one(runs):
    assert_same(runs / "merge-aware", runs / "merge-aware-one")


def test_a_spread_run_goes_on_bit_for_bit(runs):
    expected = [line for line in lines(runs / "dpo-fsdp2") if line["step"] > 2]
    assert lines(runs / "dpo-continued") == expected
    whole = adapter(runs / "dpo-fsdp2")
    for name, tensor in adapter(runs / "dpo-continued").items():
        assert torch.equal(tensor, whole[name]), name
    assert (runs / "dpo-continued" / "pairs.json").read_text() == (
        runs / "dpo-fsdp2" / "pairs.json"
    ).read_text()


def test_one_process_goes_on_where_two_stood(runs, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs / "cache-ddp"))
    run = runs / "dpo-ddp-then-one"
    start = f"train.resume={runs / 'dpo-ddp' / 'checkpoint-2'}"
    train(load_recipe(runs / "dpo.yaml", [f"train.output_dir={run}", *ONE, start]))
    later = [line for line in lines(runs / "dpo-one") if line["step"] > 2]
    assert len(later) == 3
    for mine, other in zip(lines(run), later, strict=True):
        assert mine == pytest.approx(other, rel=2e-5, abs=2e-5)
    for name, tensor in adapter(run).items():
        torch.testing.assert_close(tensor, adapter(runs / "dpo-one")[name], rtol=2e-3, atol=2e-4)
    assert record(run)["reference"]["cached"]


def references(cache):
    """Return the cached values by what they are of, and what else stands in the cache."""
    folder = cache / "gptoss-tune" / "data"
    found = {}
    for facts in sorted(folder.glob("*/reference.json")):
        key = json.dumps(json.loads(facts.read_text()), sort_keys=True)
        found[key] = Dataset.from_file(str(facts.with_name("reference.arrow"))).to_dict()
    return found, [path.name for path in folder.glob("building-*")]


def test_the_reference_of_two_ranks_is_that_of_one_bit_for_bit(runs):
    """Each rank computes its share with the micro-batch of the other run."""
    expected, _ = references(runs / "cache-one")
    assert len(expected) >= 4  # dpo and kto, both splits
    for cache in ("cache-ddp", "cache-fsdp2"):
        found, debris = references(runs / cache)
        assert debris == []
        assert found.keys() <= expected.keys() and len(found) >= 4
        assert all(values == expected[key] for key, values in found.items())
    for name, cached in (("dpo-ddp", False), ("dpo-fsdp2", False), ("dpo-continued", True)):
        said = record(runs / name)["reference"]
        assert (said["cached"], said["rows"]) == (cached, PAIRS + HELD_OUT)


def test_a_machine_that_lacks_the_reference_gets_that_of_another(runs):
    assert record(runs / "machines")["reference"]["cached"]
    copied, debris = references(runs / "cache-other")
    there, _ = references(runs / "cache-ddp")
    assert len(copied) == 1 and debris == []
    assert all(there[key] == values for key, values in copied.items())


def test_machines_with_different_references_are_refused(runs, forked_python, tmp_path):
    """Both are whole and of the same rows: other libraries computed one of them."""
    from gptoss_tune.files.digest import sha256_of

    shutil.copytree(runs / "cache-other", tmp_path / "cache")
    (facts,) = (tmp_path / "cache").glob("gptoss-tune/data/*/reference.json")
    values, listed = facts.with_name("reference.arrow"), facts.with_name("manifest.json")
    column = Dataset.from_file(str(values))["reference"]
    last = torch.tensor([value for value in column[-1] if value][-1]).numpy().tobytes()
    raw = bytearray(values.read_bytes())
    raw[raw.rfind(last)] ^= 1
    values.write_bytes(raw)
    hashes = json.loads(listed.read_text())
    listed.write_text(json.dumps({**hashes, values.name: sha256_of(values)}))
    caches = [str(runs / "cache-ddp"), str(tmp_path / "cache")]
    short = [*TWO, "train.max_steps=1", *WITHOUT]
    body = [("differ", str(runs / "dpo.yaml"), False, caches, short)]
    (tmp_path / "runs.json").write_text(json.dumps(body))
    script = Path(__file__).with_name("preference_ranks.py")
    ended = forked_python([script, tmp_path], ranks=2)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = json.loads((tmp_path / "ended.json").read_text())["differ"]
    assert said[0].startswith("CheckpointError: the machines of this run have cached different")
    assert "CheckpointError" in said[1] and facts.parent.name in said[1]
