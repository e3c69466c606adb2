"""What a continuation may change: every entry of the fingerprint stops it, or provably may not."""

import functools
import importlib.metadata
import json
import shutil

import pytest
import torch

from gptoss_tune.errors import RecipeError
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.resume.changes import changes, settle
from gptoss_tune.train.resume.fingerprint import Place, fingerprint, rows_hash
from gptoss_tune.train.run import train
from gptoss_tune.train.sft import WeightedSftTrainer
from gptoss_tune.weights import open_checkpoint


@functools.cache
def vocabulary_of(path):
    return load_vocabulary(path)


def fingerprint_of(settings, processes=1, each=1):
    base = open_checkpoint(settings.model.name_or_path, None)
    vocabulary = vocabulary_of(base.path)
    sets = [
        load_dataset(settings.data, split=split, vocabulary=vocabulary, seed=settings.train.seed)
        if split == "train" or settings.data.eval
        else None
        for split in ("train", "eval")
    ]
    return fingerprint(settings, base, *sets, Place(processes, "ddp", torch.device("cpu"), each))


def continued(before, now, train, allowed=(), recorded=(), step=2):
    return settle(
        before, now, allowed=allowed, recorded=recorded, step=step, where="RUN", train=train
    )


@pytest.fixture
def refused(recipe):
    """Return the message that a continuation of the plain recipe is refused with."""
    before = fingerprint_of(recipe())

    def refuse(*overrides, processes=1, names=()):
        settings = recipe(*overrides)
        now = fingerprint_of(settings, processes)
        with pytest.raises(RecipeError) as error:
            continued(before, now, settings.train)
        flags = [f"--allow-change {name}" for name in names]
        assert str(error.value).endswith(f"continue with the change: {' '.join(flags)}")
        # Each name is needed, and all of them are enough.
        for missing in names:
            with pytest.raises(RecipeError, match=missing):
                continued(before, now, settings.train, [n for n in names if n != missing])
        assert [one.name for one in continued(before, now, settings.train, names)] == list(names)
        return str(error.value)

    return refuse


@pytest.mark.parametrize(
    "override, names",
    [
        ("train.learning_rate=4e-3", ["train.learning_rate"]),
        ("train.seed=1", ["train.seed"]),
        ("train.deterministic=true", ["train.deterministic"]),
        ("train.lr_scheduler_type=linear", ["train.lr_scheduler_type"]),
        ("train.warmup_steps=1", ["train.warmup_steps"]),
        ("train.weight_decay=0.1", ["train.weight_decay"]),
        ("train.max_grad_norm=0.5", ["train.max_grad_norm"]),
        ("train.optim=adamw_8bit", ["train.optim", "versions.bitsandbytes"]),
        ("train.max_steps=5", ["steps"]),
        ("train.activation_checkpointing=full", ["train.activation_checkpointing"]),
        ("lora.rank=8", ["lora.rank"]),
        ("lora.alpha=3", ["lora.alpha"]),
        ("model.dtype=bfloat16", ["model.dtype"]),
        ("data.date=2025-07-01", ["data.date", "data.train_rows"]),
        ("data.turns=last", None),
        ("data.channel_weights.analysis=0.5", ["data.channel_weights.analysis", "data.train_rows"]),
        ("data.reasoning_effort=high", ["data.reasoning_effort", "data.train_rows"]),
    ],
)
def test_a_changed_setting_stops_and_is_named(refused, recipe, override, names):
    if "8bit" in override:
        pytest.importorskip("bitsandbytes")
    if names is None:
        # One turn in each row: all of them are the last one, and the rows are the same.
        assert changes(fingerprint_of(recipe()), fingerprint_of(recipe(override))) == []
    else:
        refused(override, names=names)


def test_a_run_from_before_a_setting_existed_goes_on_as_it_was(recipe):
    before = fingerprint_of(recipe())
    del before["train.deterministic"]
    assert changes(before, fingerprint_of(recipe())) == []
    now = fingerprint_of(recipe("train.deterministic=true"))
    assert [one.name for one in changes(before, now)] == ["train.deterministic"]


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("train.lr_scheduler_kwargs.num_cycles=0.4", "train.lr_scheduler_kwargs"),
        ("train.keep_best=eval_loss", "train.keep_best"),
        ("train.early_stopping={patience: 2, metric: eval_loss}", "train.early_stopping"),
    ],
)
def test_a_setting_of_several_values_is_one_entry_that_older_runs_lack(
    recipe, rows, override, name
):
    evaluated = (f"data.eval={rows}", "train.eval_steps=2")
    before = fingerprint_of(recipe(*evaluated))
    now = fingerprint_of(recipe(*evaluated, override))
    older = {key: value for key, value in before.items() if key != name}
    for one in (before, older):
        assert [change.name for change in changes(one, now)] == [name]
        assert changes(one, before) == []


def test_how_often_and_on_what_the_best_is_measured_is_compared(recipe, rows, tmp_path):
    """Where nothing hangs on evaluations, they stay free."""
    asked = tmp_path / "prompts.jsonl"
    asked.write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    common = (f"data.eval={rows}", f"evaluation.prompts={asked}")
    slow = ("train.eval_steps=2", "evaluation.eval_steps=2")
    fast = ("train.eval_steps=1", "evaluation.eval_steps=2")
    for setting, differs in (
        ("train.keep_best=null", False),
        ("train.keep_best=eval_loss", True),
        ("train.keep_best=eval_graded", False),
    ):
        before, now = (fingerprint_of(recipe(*common, *one, setting)) for one in (slow, fast))
        names = [change.name for change in changes(before, now)]
        assert names == (["train.keep_best"] if differs else []), setting
    graded = recipe(*common, *slow, "train.keep_best=eval_graded")
    before = fingerprint_of(graded)
    asked.write_text('{"prompt": "2 + 3?", "answer": "5"}\n')
    assert [one.name for one in changes(before, fingerprint_of(graded))] == ["train.keep_best"]


def test_data_that_was_edited_in_place_stops(recipe, rows, tmp_path):
    train_file, eval_file = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    for file in (train_file, eval_file):
        shutil.copy(rows, file)
    settings = recipe(f"data.train={train_file}", f"data.eval={eval_file}")
    before = fingerprint_of(settings)
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    eval_file.write_text("".join(lines[::-1]), encoding="utf-8")  # the same rows, another order
    with pytest.raises(RecipeError, match=r"change: --allow-change data\.eval_rows$"):
        continued(before, fingerprint_of(settings), settings.train)
    train_file.write_text("".join(lines).replace("Paris", "Lutece"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"data\.train_rows: 6 rows, sha256 \w{12} there"):
        continued(before, fingerprint_of(settings), settings.train)


def test_another_base_or_tokenizer_stops(recipe, base, refused, tmp_path):
    other = tiny_checkpoint(
        tmp_path / "other", seed=2, layers=2, experts=4, hidden=32, intermediate=64
    )
    refused(f"model.name_or_path={other}", names=["base.content"])
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    override = f"model.name_or_path={moved}"
    assert changes(fingerprint_of(recipe()), fingerprint_of(recipe(override))) == []
    tokenizer = moved / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    refused(override, names=["tokenizer"])


@pytest.mark.parametrize("library", ["torch", "transformers", "peft", "trl", "accelerate", "numpy"])
def test_another_version_of_a_library_stops(recipe, library):
    settings = recipe()
    now = fingerprint_of(settings)
    assert now[f"versions.{library}"] == importlib.metadata.version(library)
    with pytest.raises(RecipeError, match=rf"versions\.{library}: 0\.1 there, "):
        continued({**now, f"versions.{library}": "0.1"}, now, settings.train)


@pytest.mark.parametrize("entry", ["engine.experts", "engine.attention", "init_from", "new"])
def test_an_entry_that_was_another_or_missing_stops(recipe, entry):
    settings = recipe()
    now = {**fingerprint_of(settings), "new": 1}
    before = {name: value for name, value in now.items() if name != entry}
    with pytest.raises(RecipeError, match=f"--allow-change {entry}$"):
        continued(before, now, settings.train)


def test_what_changes_no_weight_is_free(recipe, rows, tmp_path):
    moved = tmp_path / "elsewhere" / "moved.jsonl"
    moved.parent.mkdir()
    shutil.copy(rows, moved)
    changed = recipe(
        f"data.train={moved}",
        "data.dataset_num_proc=1",
        f"train.output_dir={tmp_path / 'moved'}",
        "train.logging_steps=2",
        "train.save_steps=1",
        "train.save_total_limit=5",
        "train.max_steps=null",
        "train.num_train_epochs=1.33",  # 4 steps of 2 of the 6 rows
        "model.backend=torch",
        "model.attention=eager",
        "guard.check_steps=0",
        "tracking.wandb=offline",
    )
    assert changes(fingerprint_of(recipe()), fingerprint_of(changed)) == []


def test_the_rows_of_a_step_count_and_not_who_trains_them(recipe, refused):
    before = fingerprint_of(recipe())
    spread = recipe("train.per_device_train_batch_size=1", "distributed.num_processes=2")
    (one,) = continued(before, fingerprint_of(spread, processes=2), spread.train)
    assert (one.name, one.was, one.now, one.allowed_by_name) == ("processes", 1, 2, False)
    message = refused("train.per_device_train_batch_size=1", names=["batch"])
    assert "(train.gradient_accumulation_steps=2 keeps it with 1 x 1 rows)" in message
    message = refused("train.per_device_train_batch_size=3", names=["batch"])
    assert "(no train.gradient_accumulation_steps keeps it with 1 x 3 rows)" in message


def test_a_name_that_allows_nothing_is_an_error(recipe):
    settings = recipe()
    now = fingerprint_of(settings)
    with pytest.raises(RecipeError, match=r"did you mean train\.learning_rate\?"):
        continued(now, now, settings.train, ["train.learning_rat"])
    with pytest.raises(RecipeError, match="it does not differ; leave it out"):
        continued(now, now, settings.train, ["train.learning_rate"])
    with pytest.raises(RecipeError, match="nothing is continued; leave it out"):
        continued(None, now, settings.train, ["train.learning_rate"])
    # A job that is started again by the same command was allowed this before.
    recorded = [{"name": "train.learning_rate"}]
    assert not continued(now, now, settings.train, ["train.learning_rate"], recorded)


def test_a_run_cannot_end_before_it_stands(recipe):
    settings = recipe()
    now = fingerprint_of(settings)
    assert not continued(now, now, settings.train, step=4)
    with pytest.raises(RecipeError, match="has made 5 steps, and is to have 4"):
        continued(now, now, settings.train, step=5)


def test_a_base_is_compared_by_all_that_both_know_of_it(recipe):
    now = fingerprint_of(recipe())
    earlier = {name: value for name, value in now.items() if name != "base.content"}
    assert changes(earlier, now) == []
    assert [one.name for one in changes({**earlier, "base.weights": "0"}, now)] == ["base.weights"]
    other = {"base.weights": "0", "base.content": "0"}
    assert [one.name for one in changes({**now, **other}, now)] == ["base.content"]


def test_a_run_of_an_earlier_version_goes_on_with_a_note(recipe, tmp_path, capsys):
    settings = recipe("train.max_steps=1")
    train(settings)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["fingerprint"]["base.content"]
    path.write_text(json.dumps({**record, "status": "running"}))
    capsys.readouterr()
    train(settings)
    assert "knew its base by the first 4 KiB of each tensor" in capsys.readouterr().out
    assert "base.content" in json.loads(path.read_text())["fingerprint"]


def test_rows_are_hashed_by_what_they_hold(recipe, base):
    def hashed(*overrides):
        settings = recipe(*overrides)
        return load_dataset(settings.data, split="train", vocabulary=vocabulary_of(base))

    plain = hashed()
    assert rows_hash(plain.select([0, 1, 2, 3, 4, 5])) == rows_hash(plain)
    assert rows_hash(plain.select([1, 0, 2, 3, 4, 5])) != rows_hash(plain)
    assert rows_hash(hashed("data.packing=true", "data.max_length=2000")) != rows_hash(plain)
    assert rows_hash(hashed("data.curriculum=reasoning_effort")) != rows_hash(plain)


class Killed(BaseException):
    """Stands for a process that dies after a save."""


@pytest.fixture
def killed_after(monkeypatch):
    """Return a function that kills runs once the checkpoint of a step is there."""
    original = WeightedSftTrainer._save_checkpoint

    def kill(step):
        def save(self, *args, **kwargs):
            original(self, *args, **kwargs)
            if self.state.global_step == step:
                raise Killed

        monkeypatch.setattr(WeightedSftTrainer, "_save_checkpoint", save)

    yield kill


@pytest.mark.slow
def test_a_learning_rate_changed_on_purpose_takes_effect_and_is_written_down(
    recipe, killed_after, tmp_path
):
    run = tmp_path / "run"
    constant = ("train.save_steps=2", "train.lr_scheduler_type=constant")
    killed_after(2)
    with pytest.raises(Killed):
        train(recipe(*constant))
    killed_after(4)
    changed = recipe(*constant, "train.learning_rate=1e-3")
    with pytest.raises(RecipeError, match=r"train\.learning_rate: 0\.005 there, 0\.001 here"):
        train(changed)
    with pytest.raises(Killed):
        train(changed, allow_change=["train.learning_rate"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert rates == {1: 5e-3, 2: 5e-3, 3: 1e-3, 4: 1e-3}
    # Killed after its last save, the same command has no step left to train.
    summary = train(changed, allow_change=["train.learning_rate"])
    assert summary.steps == 4 and summary.loss == lines[-1]["loss"]
    weights = "adapter_model.safetensors"
    last = (run / "checkpoint-4" / weights).read_bytes()
    assert (run / "adapter" / weights).read_bytes() == last
    record = json.loads((run / "run.json").read_text())
    entry = {"step": 2, "name": "train.learning_rate", "was": 5e-3, "now": 1e-3}
    assert record["changes"] == [entry] and record["status"] == "finished"
    manifest = json.loads((run / "checkpoint-4" / "manifest.json").read_text())
    assert manifest["run_id"] == record["run_id"] and manifest["step"] == 4
    assert manifest["fingerprint"]["train.learning_rate"] == 1e-3
    assert {path.suffix for path in run.rglob("checkpoint-*/*")} == {".safetensors", ".json"}


def test_rows_shared_by_processes_are_noted_and_groups_make_the_batch(recipe):
    """Two processes that share each row take as many rows as one process."""
    settings, before = recipe(), fingerprint_of(recipe())

    def shared(*overrides, processes, each):
        return fingerprint_of(recipe(*overrides), processes, each)

    pair = shared(processes=2, each=2)
    assert pair["batch"] == before["batch"] == 2 and pair["steps"] == before["steps"]
    found = continued(before, pair, settings.train)
    assert [(one.name, one.was, one.now) for one in found] == [
        ("context_parallel", 1, 2),
        ("processes", 1, 2),
    ]
    older = {name: value for name, value in before.items() if name != "context_parallel"}
    assert continued(older, before, settings.train) == []
    four = shared("train.per_device_train_batch_size=1", processes=4, each=4)
    with pytest.raises(RecipeError, match="gradient_accumulation_steps=2 keeps it with 1 x 1 rows"):
        continued(before, four, recipe("train.per_device_train_batch_size=1").train)
