"""A run that an earlier version made, under the names of its time: resumed, repeated, exported."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.cli.model.evaluate import _recipe as recipe_to_evaluate
from gptoss_tune.cli.run.reproduce import reproduce
from gptoss_tune.errors import RecipeError
from gptoss_tune.files.digest import digest_of
from gptoss_tune.recipe import load_recipe
from gptoss_tune.report.parts.read import read_run
from gptoss_tune.run import checkpoints
from gptoss_tune.run.record import read_record, record_of_adapter
from gptoss_tune.train.run import train
from gptoss_tune.workflows.calibrate import Calibration

OLD_SETTINGS = {
    "train.activation_checkpointing": "train.checkpointing",
    "init_from": "start_from",
    "strategy": "spread",
}
WEIGHTS = "adapter_model.safetensors"


def edit(path, change):
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body, indent=1))


def old_fingerprint(entries):
    return {OLD_SETTINGS.get(name, name): value for name, value in entries.items()}


def make_old(run):
    """Rewrite a run's files as the version before the renaming wrote them."""

    def record(body):
        sections = body["recipe"]
        world = sections.pop("distributed")
        sections["world"] = {
            "processes": world["num_processes"],
            "spread": world["strategy"],
            "timeout_seconds": world["timeout_seconds"],
        }
        train_section, lora = sections["train"], sections["lora"]
        train_section["checkpointing"] = train_section.pop("activation_checkpointing")
        lora["start_from"] = lora.pop("init_from")
        body["fingerprint"] = old_fingerprint(body["fingerprint"])
        body["drift"] = [
            one | {"name": OLD_SETTINGS.get(one["name"], one["name"])}
            for one in body.pop("changes")
        ]

    def manifest(body):
        del body["sha256"]
        body["fingerprint"] = old_fingerprint(body["fingerprint"])
        body["sha256"] = digest_of(body)

    edit(run / "run.json", record)
    for checkpoint in checkpoints.published(run):
        edit(checkpoint / "manifest.json", manifest)
    text = (run / "recipe.yaml").read_text()
    for new, old in {
        "distributed:": "world:",
        "  num_processes:": "  processes:",
        "  strategy:": "  spread:",
        "  activation_checkpointing:": "  checkpointing:",
        "  init_from:": "  start_from:",
    }.items():
        assert f"\n{new}" in text
        text = text.replace(f"\n{new}", f"\n{old}")
    (run / "recipe.yaml").write_text(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base, rows):
    """Return a finished run of today, which keeps the checkpoint of its second of three steps."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "recipe.yaml").write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 4, expert_rank: 2}\n"
        f"data: {{train: {rows}, max_length: 256}}\n"
        f"train: {{output_dir: {folder / 'run'}, max_steps: 3, per_device_train_batch_size: 2, "
        "learning_rate: 5e-3, activation_checkpointing: full, save_steps: 2}\n",
        encoding="utf-8",
    )
    train(load_recipe(folder / "recipe.yaml"))
    return folder / "run"


@pytest.fixture
def old(finished, tmp_path):
    """A copy of that run under the old names."""
    run = shutil.copytree(finished, tmp_path / "run")
    make_old(run)
    return run


def test_it_is_resumed_without_an_alleged_change(finished, old, capsys):
    shutil.rmtree(old / "adapter")
    for later in [path for path in checkpoints.published(old) if checkpoints.step_of(path) > 2]:
        shutil.rmtree(later)

    def stopped(body):
        body["status"] = "stopped"
        # It had changed on its way already, and said so under the old name.
        body["drift"] = [{"step": 1, "name": "train.checkpointing", "was": "none", "now": "full"}]

    edit(old / "run.json", stopped)
    train(load_recipe(finished.parent / "recipe.yaml", [f"train.output_dir={old}"]))
    assert "continues with a change" not in capsys.readouterr().out
    record = json.loads((old / "run.json").read_text())
    assert record["status"] == "finished" and "drift" not in record
    (change,) = record["changes"]
    assert (change["name"], change["step"]) == ("train.activation_checkpointing", 1)
    assert record["fingerprint"].keys() == read_record(finished)["fingerprint"].keys()
    assert load_recipe(old / "recipe.yaml").distributed.num_processes == 1
    one, other = (load_file(run / "adapter" / WEIGHTS) for run in (finished, old))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_did_change_is_named_by_its_new_name(finished, old):
    edit(old / "run.json", lambda body: body.update(status="stopped"))
    recipe = load_recipe(
        finished.parent / "recipe.yaml",
        [
            f"train.output_dir={old}",
            "train.activation_checkpointing=none",
        ],
    )
    with pytest.raises(RecipeError, match=r"--allow-change train\.activation_checkpointing$"):
        train(recipe)
    message = r"--allow-change train\.checkpointing: .* mean train\.activation_checkpointing\?"
    with pytest.raises(RecipeError, match=message):
        train(recipe, allow_change=["train.checkpointing"])


@pytest.mark.slow
def test_it_is_reproduced_exactly(old, tmp_path, capsys):
    with pytest.raises(RecipeError, match=r"world\.processes: got a key that was renamed"):
        load_recipe(old / "recipe.yaml")
    reproduce(old, tmp_path / "again")
    said = capsys.readouterr().out
    assert "verdict: exact" in said
    assert "data, base, versions and hardware are those of the run" in said


def test_its_recipe_is_read_wherever_a_command_reads_it(finished, old, rows, tmp_path):
    calibrated = Calibration(old, str(rows), 5, tmp_path / "out").recipe(None, None)
    assert calibrated.lora.merge_aware and calibrated.lora.init_from == str(old)
    assert calibrated.train.activation_checkpointing == "full"
    prompts = ["evaluation.prompts=data/prompts/tiny.jsonl"]
    assert recipe_to_evaluate(str(old), None, prompts).evaluation.wanted
    today = json.loads((finished / "run.json").read_text())
    del today["recipe"]["distributed"]["context_parallel"]  # which there was not
    for record in (
        read_record(old),
        record_of_adapter(old / "adapter"),
        read_run(old).record,
    ):
        assert record["recipe"] == today["recipe"]
        assert record["fingerprint"] == today["fingerprint"]
        assert record["changes"] == today["changes"]
