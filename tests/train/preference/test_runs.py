"""Runs of preference methods: what is learnt, packing, the reference and its cache, resume."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.harmony.dataset.cache import cache_folder
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.data.sampler import batches_of
from gptoss_tune.train.preference.reference import ReferenceObserver, ReferencePass
from gptoss_tune.train.run import train

PEOPLE = ["Anna", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana"]
THINGS = ["tea", "cake", "soup", "bread"]


def pair(person, thing, number):
    thought = {"thinking": f"{person} asks."} if number % 2 else {}
    effort = {} if number % 2 else {"reasoning_effort": "low"}
    yes, no = ("Yes, gladly.", "No, never.") if number % 3 else ("Gladly, yes.", "Never, no.")
    return {
        "prompt": f"{person} offers {thing}.",
        "chosen": [{"role": "assistant", "content": yes, **thought}],
        "rejected": [{"role": "assistant", "content": no, **thought}],
        **effort,
    }


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Rendered data and references of these tests alone: some of them look into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs and labelled answers of one rule; those held out are about other people."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [pair(who, what, n + m) for n, who in enumerate(PEOPLE) for m, what in enumerate(THINGS)]
    labels = []
    for n, row in enumerate(rows):
        side = ("chosen", "rejected")[n % 2]
        labels.append({"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"})
    return {
        "pairs": written(folder / "pairs.jsonl", rows[:24]),
        "pairs_eval": written(folder / "pairs_eval.jsonl", rows[24:]),
        "labels": written(folder / "labels.jsonl", labels[:24]),
        "labels_eval": written(folder / "labels_eval.jsonl", labels[24:]),
    }


@pytest.fixture(scope="module")
def recipe_of(base, data, tmp_path_factory):
    """Return a function from a method and overrides to a recipe with a folder of its own."""

    def make(method, *overrides, kind="pairs", folder=None):
        folder = folder or tmp_path_factory.mktemp(method)
        path = folder / "recipe.yaml"
        path.write_text(
            f"""
model: {{name_or_path: {base}, dtype: float32}}
lora: {{rank: 4, expert_rank: 2}}
method: {{name: {method}}}
data: {{train: {data[kind]}, eval: {data[f"{kind}_eval"]}, max_length: 640, packing: true}}
train:
  output_dir: {folder / "run"}
  max_steps: 8
  per_device_train_batch_size: 2
  learning_rate: 1e-2
  activation_checkpointing: none
"""
        )
        return load_recipe(path, overrides)

    return make


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row], [row for row in rows if "eval_loss" in row]


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def unfinish(run):
    """Leave a run as a kill before its end does."""
    shutil.rmtree(run / "adapter")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))


@pytest.fixture(scope="module")
def dpo(recipe_of):
    """One run of DPO that was never stopped, with checkpoints."""
    kept = ["train.save_steps=3", "train.save_total_limit=5"]
    recipe = recipe_of("dpo", *kept, "method.sft_weight=0.2")
    summary = train(recipe)
    return recipe, summary.folder


@pytest.mark.slow
def test_a_preference_is_learnt_and_its_likelihood_does_not_collapse(dpo):
    _, folder = dpo
    trained, held_out = lines(folder)
    assert abs(trained[0]["reward_margin"]) < 1e-4  # it starts as the reference
    at_start = np.log(2) - 0.2 * trained[0]["logp_chosen"]
    assert trained[0]["loss"] == pytest.approx(at_start, rel=0.1)
    last = held_out[-1]
    assert last["eval_reward_accuracy"] == 1.0 and last["eval_reward_margin"] > 1
    assert last["eval_logp_drift_chosen"] > 0
    parts = [last[f"eval_reward_margin_{name}"] for name in ("analysis", "final")]
    assert sum(parts) == pytest.approx(last["eval_reward_margin"], rel=1e-6)
    assert last["eval_reference_kl"] > trained[0]["reference_kl"] >= 0
    shown = json.loads((folder / "pairs.json").read_text())
    assert shown["split"] == "eval" and shown["reference"] == "base" and len(shown["pairs"]) == 8
    assert {one["source"].rpartition(":")[2] for one in shown["pairs"]} == set("12345678")
    for one in shown["pairs"]:
        assert "offers" in one["prompt"]
        assert one["chosen"]["text"]["final"] in ("Yes, gladly.", "Gladly, yes.")
        gained = [one[side]["after"] - one[side]["before"] for side in ("chosen", "rejected")]
        assert gained[0] > gained[1]


@pytest.mark.gpu
def test_a_preference_is_learnt_in_bfloat16(recipe_of):
    """Both passes through the head, and that of the reference, round alike: it starts at 0."""
    trained, held_out = lines(train(recipe_of("dpo", "model.dtype=bfloat16")).folder)
    assert abs(trained[0]["reward_margin"]) < 0.05
    assert held_out[-1]["eval_reward_accuracy"] == 1.0 and held_out[-1]["eval_reward_margin"] > 1


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(dpo, recipe_of, tmp_path):
    recipe, folder = dpo
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    for name in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(run / name, ignore_errors=True)
    unfinish(run)
    train(recipe.with_settings({"train.output_dir": str(run)}))
    for name, tensor in adapter(folder).items():
        assert torch.equal(adapter(run)[name], tensor), name
    expected, actual = lines(folder), lines(run)
    timed = ("tokens_per_second", "seconds_per_step", "memory_gib", "eval_runtime")
    for before, after in zip(expected[0], actual[0], strict=True):
        for key in before.keys() - set(timed):
            assert before[key] == after[key], key
    record = json.loads((run / "run.json").read_text())
    assert record["reference"]["cached"] and record["reference"]["of"] == "base"


@pytest.mark.slow
def test_packed_rows_give_the_losses_of_rows_of_one_pair(recipe_of):
    """All pairs in each step, so that both see the same."""
    common = ["train.max_steps=3", "data.eval=null"]
    packed = train(recipe_of("dpo", *common, "train.per_device_train_batch_size=24"))
    alone = train(
        recipe_of(
            "dpo",
            *common,
            "data.packing=false",
            "train.per_device_train_batch_size=4",
            "train.gradient_accumulation_steps=6",
        )
    )
    for one, other in zip(lines(packed.folder)[0], lines(alone.folder)[0], strict=True):
        for name in ("loss", "reward_margin", "grad_norm", "logp_chosen", "reference_kl"):
            assert one[name] == pytest.approx(other[name], rel=2e-5, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, overrides, kind",
    [
        ("ipo", [], "pairs"),
        ("simpo", [], "pairs"),
        ("orpo", ["method.beta=1"], "pairs"),
        ("kto", ["method.beta=0.5"], "labels"),
        ("dpo", ["lora.merge_aware=true"], "pairs"),
        ("dpo", ["method.analysis=ignored"], "pairs"),
    ],
)
def test_every_method_learns_the_rule(recipe_of, method, overrides, kind):
    folder = train(recipe_of(method, *overrides, kind=kind)).folder
    trained, held_out = lines(folder)
    first, last = trained[0], held_out[-1]
    assert last["eval_reward_margin"] > max(0.05, 2 * first["reward_margin"])
    if kind == "pairs":
        assert last["eval_reward_accuracy"] == 1.0
        assert last["eval_loss"] < first["loss"]
    else:
        assert "eval_reward_accuracy" not in last and last["eval_kl_estimate"] >= 0
        assert "kl_estimate" in trained[-1]
    assert ("eval_reference_kl" in last) == (method not in ("simpo", "orpo"))
    if overrides == ["method.analysis=ignored"]:
        assert "reward_margin_analysis" not in trained[-1]


@pytest.mark.slow
def test_an_adapter_to_start_from_is_the_reference(dpo, recipe_of):
    _, folder = dpo
    started = recipe_of("dpo", f"lora.init_from={folder}", "train.max_steps=2")
    trained, _ = lines(train(started).folder)
    assert abs(trained[0]["reward_margin"]) < 1e-4 and trained[0]["reference_kl"] < 1e-6
    against_base = recipe_of(
        "dpo", f"lora.init_from={folder}", "train.max_steps=2", "method.reference=base"
    )
    trained, _ = lines(train(against_base).folder)
    assert trained[0]["reward_margin"] > 1


def cached():
    """Return the folders of references, by what they say."""
    found = [path.parent for path in cache_folder().glob("*/reference.json")]
    return {json.dumps(json.loads((one / "reference.json").read_text())): one for one in found}


@pytest.mark.slow
def test_a_damaged_reference_is_refused(recipe_of):
    recipe = recipe_of("dpo", "train.max_steps=1", "train.seed=11", "data.eval=null")
    before = set(cached().values())
    train(recipe)
    mine = [folder for folder in cached().values() if folder not in before]
    assert mine
    values = mine[0] / "reference.arrow"
    whole = values.read_bytes()
    values.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    again = recipe.with_settings({"train.output_dir": recipe.train.output_dir + "-again"})
    with pytest.raises(CheckpointError, match="log-probabilities are damaged; remove the folder"):
        train(again)
    shutil.rmtree(mine[0])  # as advised
    train(again)


@pytest.mark.slow
def test_a_reference_of_something_else_is_refused(recipe_of):
    """A folder under the name of another: of another base, or of rows that have changed since."""
    here = recipe_of("dpo", "train.max_steps=1", "train.seed=21", "data.eval=null")
    there = recipe_of("dpo", "train.max_steps=1", "data.max_length=512", "data.eval=null")
    before = set(cached().values())
    train(here)
    (mine,) = set(cached().values()) - before
    train(there)
    (other,) = set(cached().values()) - before - {mine}
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    again = here.with_settings({"train.output_dir": here.train.output_dir + "-again"})
    with pytest.raises(CheckpointError, match=r"belong to something else \(they differ in rows"):
        train(again)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_reference(recipe_of):
    """Values that are whole and of the same rows, as other libraries would compute them."""
    recipe = recipe_of("dpo", "train.max_steps=2", "train.save_steps=1", "train.seed=31")
    before = set(cached().values())
    folder = train(recipe).folder
    shutil.rmtree(folder / "checkpoint-2")
    unfinish(folder)
    for mine in set(cached().values()) - before:
        values, listed = mine / "reference.arrow", mine / "manifest.json"
        raw = bytearray(values.read_bytes())
        place = raw.rfind(np.float32(last_value(values)).tobytes())
        raw[place] ^= 1
        values.write_bytes(raw)
        hashes = json.loads(listed.read_text())
        listed.write_text(json.dumps({**hashes, values.name: sha256_of(values)}))
    with pytest.raises(
        CheckpointError, match=r"reference\.json: the run was trained against other"
    ):
        train(recipe)


def last_value(path):
    """Return the last value of a reference that is not 0."""
    column = Dataset.from_file(str(path))["reference"]
    return [value for value in column[-1] if value][-1]


@pytest.mark.slow
def test_swapped_labels_are_other_data(recipe_of, data, tmp_path):
    """A label changes no token: the fingerprint has to see it."""
    recipe = recipe_of("kto", "train.max_steps=2", "train.save_steps=1", kind="labels")
    folder = train(recipe).folder
    shutil.rmtree(folder / "checkpoint-2")
    unfinish(folder)
    rows = [json.loads(line) for line in data["labels"].read_text().splitlines()]
    for row in rows:
        row["label"] = not row["label"]
    flipped = written(tmp_path / "flipped.jsonl", rows)
    values = recipe.model_dump()
    values["data"]["train"] = [{"path": str(flipped)}]
    with pytest.raises(RecipeError, match=r"data\.train_rows"):
        train(type(recipe).model_validate(values))


@pytest.mark.slow
def test_the_kl_term_of_an_evaluation_is_that_of_the_whole_set(recipe_of):
    """It depends on no micro-batch, and the figure of the training is the training's alone."""
    common = ["data.packing=false", "method.beta=0.5", "train.max_steps=4", "train.eval_steps=2"]

    def evaluated(rows):
        sizes = [
            f"train.per_device_train_batch_size={rows}",
            f"train.gradient_accumulation_steps={8 // rows}",
        ]
        return lines(train(recipe_of("kto", *common, *sizes, kind="labels")).folder)

    (trained, held_out), (again, other) = evaluated(8), evaluated(2)
    assert held_out[-1]["eval_kl_estimate"] > 0.1
    for one, two in zip([*trained, *held_out], [*again, *other], strict=True):
        for name in ("loss", "kl_estimate", "eval_loss", "eval_kl_estimate"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


def test_rows_of_a_reference_pass_share_the_tokens_of_the_longest():
    """No micro-batch and no number of ranks decides which: a row's last bits depend on it."""
    found = batches_of(np.array([100, 3, 8, 9, 40, 40, 40, 100, 1]))
    # Padded to a multiple of 8; 104 tokens at most.
    assert found == [[0], [1, 2, 3], [4, 5], [6], [7], [8]]


FACTS = {
    "layout": 2,
    "rows": "24 rows",
    "base": "b",
    "reference": "init_adapter",
    "adapter": ["config", "weights", "merge_aware False"],
    "precision": ["float32", "mxfp4", "bf16"],
    "code": ["cpu", "experts torch", "attention eager"],
}


@pytest.mark.parametrize(
    "now, refused",
    [
        ({}, True),  # the same, with other values: another GPU computed them
        ({"rows": "20 rows"}, False),
        ({"base": "c"}, False),
        ({"code": ["cuda", "experts triton", "attention fa4"]}, False),
        ({"adapter": ["config", "others", "merge_aware False"]}, False),
        ({"adapter": ["another", "weights", "merge_aware False"]}, True),
        ({"layout": 3}, True),
    ],
)
def test_other_values_are_taken_where_the_fingerprint_names_the_change(tmp_path, now, refused):
    """What it names was refused by it, or allowed by name, before any value is looked at."""

    def observer(value, facts):
        made = ReferencePass("base", 24, 9, 0.0, True, {"train": value}, {"train": facts})
        return ReferenceObserver(tmp_path, made)

    before = observer("aa", FACTS).state_dict()
    observer("aa", FACTS | now).load_state_dict(before, first_rank=True)
    with pytest.raises(CheckpointError) if refused else nullcontext():
        observer("bb", FACTS | now).load_state_dict(before, first_rank=True)


@pytest.mark.slow
def test_what_was_allowed_to_change_changes_the_reference_too(recipe_of, data, tmp_path):
    recipe = recipe_of("dpo", "train.max_steps=3", "train.save_steps=1", "data.eval=null")
    folder = train(recipe).folder
    for step in (2, 3):
        shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
    unfinish(folder)
    fewer = data["pairs"].read_text().splitlines(keepends=True)[:-4]
    (tmp_path / "fewer.jsonl").write_text("".join(fewer))
    values = recipe.model_dump()
    values["data"]["train"] = [{"path": str(tmp_path / "fewer.jsonl")}]
    train(type(recipe).model_validate(values), allow_change=["data.train", "data.train_rows"])
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and not record["reference"]["cached"]


@pytest.mark.slow
def test_a_private_reference_stays_private(recipe_of, data, tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text(data["pairs"].read_text().replace("Anna", "Zoe"))
    secret.chmod(0o600)
    values = recipe_of("dpo", "train.max_steps=1", "data.eval=null").model_dump()
    values["data"]["train"] = [{"path": str(secret)}]
    before = set(cached().values())
    train(type(recipe_of("dpo")).model_validate(values))
    (mine,) = set(cached().values()) - before
    assert mine.stat().st_mode & 0o077 == 0
