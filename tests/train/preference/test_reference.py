"""The reference of a run of preferences: which it is, its cache, and what is refused."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from datasets import Dataset
from preference_runs import lines, unfinish

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.harmony.dataset.cache import cache_folder
from gptoss_tune.train.data.sampler import batches_of
from gptoss_tune.train.preference.reference import ReferenceObserver, ReferencePass
from gptoss_tune.train.run import train


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
def test_what_was_allowed_to_change_changes_the_reference_too(recipe_of, preference_data, tmp_path):
    recipe = recipe_of("dpo", "train.max_steps=3", "train.save_steps=1", "data.eval=null")
    folder = train(recipe).folder
    for step in (2, 3):
        shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
    unfinish(folder)
    fewer = preference_data["pairs"].read_text().splitlines(keepends=True)[:-4]
    (tmp_path / "fewer.jsonl").write_text("".join(fewer))
    values = recipe.model_dump()
    values["data"]["train"] = [{"path": str(tmp_path / "fewer.jsonl")}]
    train(type(recipe).model_validate(values), allow_change=["data.train", "data.train_rows"])
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and not record["reference"]["cached"]


@pytest.mark.slow
def test_a_private_reference_stays_private(recipe_of, preference_data, tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text(preference_data["pairs"].read_text().replace("Anna", "Zoe"))
    secret.chmod(0o600)
    values = recipe_of("dpo", "train.max_steps=1", "data.eval=null").model_dump()
    values["data"]["train"] = [{"path": str(secret)}]
    before = set(cached().values())
    train(type(recipe_of("dpo")).model_validate(values))
    (mine,) = set(cached().values()) - before
    assert mine.stat().st_mode & 0o077 == 0
