"""Signals, a full disk and lost ranks in a run of preferences, above all in the reference's pass.

A signal is real and sent from inside, at a place of the code and not at a time; so are writes that
find no room.
"""

import functools
import json
import os
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.errors import MachineError, RecipeError, RunInterrupted, run_command
from gptoss_tune.harmony.dataset.cache import cache_folder
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.preference import examples, reference
from gptoss_tune.train.preference_trainer import KtoTrainer, PreferenceTrainer
from gptoss_tune.train.run import train

pytestmark = pytest.mark.slow

ALONE = ["train.max_steps=1", "train.per_device_train_batch_size=4"]
WITHOUT = ["data.eval=null", "train.eval_steps=null"]
TWO = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=2"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def recipe_file(preference_recipe, tmp_path):
    return preference_recipe(tmp_path, "dpo")


def before(owner, name, act, at=1):
    """Let ``owner.name`` do ``act`` first in its call number ``at``; return what takes it back."""
    original, asked = getattr(owner, name), []

    def acting(*args, **kwargs):
        asked.append(1)
        if len(asked) == at:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, acting)
    return lambda: setattr(owner, name, original)


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def acting():
    """Return ``before``, taken back at the end."""
    undo = []
    yield lambda *place, **more: undo.append(before(*place, **more))
    for back in undo:
        back()


def cached():
    """Return the splits whose reference is known, by their rows, and what is half-written."""
    facts = [json.loads(p.read_text()) for p in cache_folder().glob("*/reference.json")]
    rows = sorted(int(one["rows"].split()[0]) for one in facts)
    return rows, [path.name for path in cache_folder().glob("building-*")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_in_the_pass_loses_that_pass_alone(recipe_file, acting, tmp_path, number):
    recipe = load_recipe(recipe_file, [*ALONE, f"train.output_dir={tmp_path / 'run'}"])
    # The first start ends in the rows of train, the second one knows them and ends after those.
    acting(reference, "_pass", functools.partial(send, number), at=1)
    acting(reference, "_pass", functools.partial(send, number), at=3)
    for split, known in (("train", []), ("eval", [11])):
        said = f"the same command starts it again, and the reference reads {split} from the start"
        with pytest.raises(RunInterrupted, match=said) as stopped:
            train(recipe)
        assert stopped.value.exit_code == 75
        assert cached() == (known, [])
    summary = train(recipe)
    assert summary.steps == 1 and cached() == ([3, 11], [])


def limited(act):
    """Call ``act`` where no file may become larger than a few bytes, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        return act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def without_room():
    """Let the reference's values be written where there is no room; return what takes it back."""
    original = reference.write

    def write(*args, **kwargs):
        limited(lambda: original(*args, **kwargs))

    reference.write = write
    return lambda: setattr(reference, "write", original)


def test_a_full_disk_is_one_error_and_leaves_nothing(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, [*ALONE, *WITHOUT, f"train.output_dir={tmp_path / 'run'}"])
    room_again = without_room()
    try:
        with pytest.raises(
            MachineError, match="log-probabilities of the reference cannot be written"
        ) as full:
            train(recipe)
    finally:
        room_again()
    assert "free some space, or point XDG_CACHE_HOME to another disk" in str(full.value)
    assert cached() == ([], [])
    assert train(recipe).steps == 1


def test_rows_that_may_change_bring_their_own_reference(recipe_file, acting, tmp_path):
    run = tmp_path / "run"
    recipe = load_recipe(
        recipe_file, [*TWO, *WITHOUT, "train.max_steps=2", f"train.output_dir={run}"]
    )
    acting(PreferenceTrainer, "training_step", functools.partial(send, signal.SIGTERM))
    with pytest.raises(RunInterrupted, match="after step 1 of 2"):
        train(recipe)
    rows = tmp_path / "dpo-train.jsonl"
    rows.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
    with pytest.raises(RecipeError, match=r"--allow-change data\.train_rows"):
        train(recipe)
    assert train(recipe, allow_change=["data.train_rows"]).steps == 2
    assert cached() == ([11, 11], [])


def no_such_row():
    raise IndexError("list index out of range")


def as_rank(recipe_file, overrides, log, what):
    """What each rank does: a run that meets ``what``."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if what == "signal" and os.environ["RANK"] == "1":
        before(reference, "_token_losses", functools.partial(send, signal.SIGTERM), at=2)
    if what == "killed" and os.environ["RANK"] == "1":
        before(reference, "_token_losses", functools.partial(send, signal.SIGKILL), at=2)
    if what == "full":
        without_room()
    if what == "changed" and os.environ["RANK"] == "1":
        before(examples, "row_sources", no_such_row)
    run_command(lambda: train(load_recipe(recipe_file, overrides)), debug=False)


@pytest.mark.parametrize(
    "what, codes, said",
    [
        ("signal", [75, 75], "the reference reads train from the start"),
        ("killed", [75, -9], "rank 1"),
        ("full", [3, 3], "log-probabilities of the reference cannot be written"),
    ],
)
def test_ranks_end_together_in_the_pass_and_go_on(
    recipe_file, on_ranks, tmp_path, what, codes, said
):
    log, run = tmp_path / "log", tmp_path / "run"
    overrides = [*TWO, *WITHOUT, "train.max_steps=1", f"train.output_dir={run}"]
    assert on_ranks(2, as_rank, recipe_file, overrides, str(log), what) == codes
    text = log.read_text()
    assert said in text and "Traceback" not in text, text
    assert cached() == ([], [])
    assert on_ranks(2, as_rank, recipe_file, overrides, str(log), "") == [0, 0]
    assert cached() == ([11], [])


def test_files_that_changed_for_one_rank_cost_the_run_its_pairs_alone(
    recipe_file, on_ranks, tmp_path
):
    log, run = tmp_path / "log", tmp_path / "run"
    overrides = [*TWO, "train.max_steps=1", f"train.output_dir={run}"]
    assert on_ranks(2, as_rank, recipe_file, overrides, str(log), "changed") == [0, 0]
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["eval_loss"] > 0
    assert not (run / "pairs.json").exists()


def lines(run):
    """Return the lines of losses, without what is measured, by step and kind."""
    timed = ("second", "runtime", "memory")
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], "eval_loss" in line): {
            k: v for k, v in line.items() if not any(word in k for word in timed)
        }
        for line in found
        if "loss" in line or "eval_loss" in line
    }


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_sigterm_in_a_step_saves_and_the_run_goes_on_bit_for_bit(
    preference_recipe, acting, tmp_path, method
):
    """The last one comes while KTO estimates its KL term for an evaluation, which is left out."""
    path, run = preference_recipe(tmp_path, method), tmp_path / "run"
    rows = "train.per_device_train_batch_size=2"
    batch = [rows, f"train.output_dir={run}"]
    whole = train(load_recipe(path, [rows, f"train.output_dir={tmp_path / 'whole'}"])).folder
    stop = functools.partial(send, signal.SIGTERM)
    acting(PreferenceTrainer, "training_step", stop, at=1)
    with pytest.raises(RunInterrupted, match="after step 1 of 4"):
        train(load_recipe(path, batch))
    left_out = []
    if method == "kto":
        estimate = KtoTrainer._estimate

        def signalled(self, batches, mode):
            if mode == "eval" and not left_out:
                left_out.append((2, True))
                stop()
            estimate(self, batches, mode)

        KtoTrainer._estimate = signalled
        try:
            with pytest.raises(RunInterrupted, match="the evaluation at step 2 was left out"):
                train(load_recipe(path, batch))
        finally:
            KtoTrainer._estimate = estimate
    train(load_recipe(path, batch))
    expected = {key: line for key, line in lines(whole).items() if key not in left_out}
    assert lines(run) == expected
    name = "adapter/adapter_model.safetensors"
    tensors = load_file(whole / name)
    for factor, tensor in load_file(run / name).items():
        assert torch.equal(tensor, tensors[factor]), factor
    assert (run / "pairs.json").read_text() == (whole / "pairs.json").read_text()
