"""Signals at the ends of a run: in its evaluations, its last writes, and after its last step.

The signal is real and sent from inside, at a place of the code and not at a time.
"""

import json
import os
import signal

import pytest
from safetensors.torch import load_file

from gptoss_tune.errors import RecipeError, RunInterrupted
from gptoss_tune.recipe import load_recipe
from gptoss_tune.run.checkpoints import verify
from gptoss_tune.train import finish
from gptoss_tune.train.distributed.signals import StopOnSignal
from gptoss_tune.train.run import train
from gptoss_tune.train.sft import WeightedSftTrainer


def signal_before(owner, name, when=lambda *_: True):
    """Let this process get SIGTERM once, as ``owner.name`` is called and ``when`` is true of it."""
    original = getattr(owner, name)
    sent = []

    def signalled(*args, **kwargs):
        if not sent and when(*args):
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    setattr(owner, name, signalled)
    return lambda: setattr(owner, name, original)


@pytest.fixture
def signalled():
    """Return ``signal_before``, taken back at the end."""
    undo = []
    yield lambda *place: undo.append(signal_before(*place))
    for back in undo:
        back()


def at_the_end(trainer, *_):
    return trainer.state.global_step == trainer.state.max_steps


def evaluations(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "eval_loss" in row]


PLACES = {
    "the adapter's write": (finish, "save_adapter"),
    "the last evaluation": (WeightedSftTrainer, "prediction_step", at_the_end),
}


@pytest.fixture(scope="module")
def whole(write_recipe, rows, tmp_path_factory):
    """The adapter of a run of two steps that no signal met."""
    folder = tmp_path_factory.mktemp("whole")
    overrides = ["train.max_steps=2", f"data.eval={rows}"]
    summary = train(load_recipe(write_recipe(folder), overrides))
    assert summary.eval_loss is not None
    return load_file(summary.adapter / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_after_the_last_step_the_run_ends_as_a_finished_one(
    recipe, rows, whole, signalled, capsys, place
):
    settings = recipe("train.max_steps=2", f"data.eval={rows}")
    signalled(*place)
    summary = train(settings)
    assert (summary.steps, summary.eval_loss) == (2, None)
    said = capsys.readouterr().out
    assert "a signal came after the last step: the last evaluation is left out" in said
    assert said.index("left out") < said.index("done: 2 steps")
    record = json.loads((summary.folder / "run.json").read_text())
    assert (record["status"], record["steps"], record["eval_loss"]) == ("finished", 2, None)
    assert record["losses"]["eval"] == {} and record["losses"]["last"]["loss"] == summary.loss
    assert evaluations(summary.folder) == []
    verify(summary.adapter)
    for name, tensor in load_file(summary.adapter / "adapter_model.safetensors").items():
        assert tensor.equal(whole[name]), name


def test_prompts_after_the_last_step_are_left_out(recipe, rows, signalled, capsys):
    settings = recipe(
        "train.max_steps=1",
        "evaluation.at_start=false",
        f"evaluation.drift.references={rows}",
    )
    signalled(finish, "save_adapter")
    summary = train(settings)
    assert "step 1: the evaluation is left out" in capsys.readouterr().out
    assert not (summary.folder / "evaluation").exists()
    assert json.loads((summary.folder / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_an_evaluation_on_the_way_is_left_and_the_run_goes_on_exactly(
    recipe, rows, losses, signalled, tmp_path
):
    """One may take longer than a scheduler waits before it kills."""
    settings = ["train.max_steps=4", f"data.eval={rows}", "train.eval_steps=2"]
    asked = []
    signalled(WeightedSftTrainer, "prediction_step", lambda *_: asked.append(1) or len(asked) == 2)
    with pytest.raises(RunInterrupted) as stopped:
        train(recipe(*settings))
    assert "after step 3 of 4" in str(stopped.value)
    assert "the evaluation at step 2 was left out" in str(stopped.value)
    assert len(asked) == 2, "no batch was evaluated after the signal's"
    run = tmp_path / "run"
    assert evaluations(run) == []
    train(recipe(*settings))
    assert evaluations(run) == [4]
    train(recipe(*settings, f"train.output_dir={tmp_path / 'whole'}"))
    assert losses(run) == losses(tmp_path / "whole")
    ends = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
        for folder in (run, tmp_path / "whole")
    ]
    assert ends[0]["eval_loss"] == ends[1]["eval_loss"], "half an evaluation is in no other"


def interrupts_until_at_once():
    """Return how many Ctrl-C it takes to stop a training run at once."""
    with StopOnSignal() as stop:
        stop._loading = False
        for number in range(1, 5):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                return number
            assert stop.requested
    return None


def test_the_second_ctrl_c_stops_at_once_not_the_one_that_a_launcher_passes_on(monkeypatch):
    assert interrupts_until_at_once() == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert interrupts_until_at_once() == 3


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_whatever_would_end_the_process_stops_the_run(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopOnSignal() as stop:
        stop._loading = False
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) == before
    with pytest.raises(RunInterrupted, match="before its next step"), StopOnSignal():
        signal.raise_signal(number)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_what_is_ignored_or_listened_to_stays_so(name):
    """As ``nohup`` ignores SIGHUP, and as a program around the run may listen."""
    number, seen = getattr(signal, name), []
    for handler in (signal.SIG_IGN, lambda *_: seen.append(name)):
        before = signal.signal(number, handler)
        try:
            with StopOnSignal() as stop:
                stop._loading = False
                signal.raise_signal(number)
                assert not stop.requested and signal.getsignal(number) == handler
        finally:
            signal.signal(number, before)
    assert seen == [name]


@pytest.mark.slow
def test_sighup_saves_and_the_same_command_goes_on(
    recipe, losses, signalled, tmp_path, monkeypatch
):
    monkeypatch.setattr(signal, "SIGTERM", signal.SIGHUP)  # what ``signalled`` sends
    at_step_2 = ("training_step", lambda trainer, *_: trainer.state.global_step == 1)
    signalled(WeightedSftTrainer, *at_step_2)
    with pytest.raises(RunInterrupted, match="after step 2 of 4"):
        train(recipe())
    train(recipe())
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_a_stop_in_the_warm_up_is_one_to_go_on_from(recipe, losses, signalled, tmp_path):
    """No update was made yet, which is a fault of finished runs alone."""
    settings = recipe("train.warmup_steps=2")
    signalled(WeightedSftTrainer, "training_step", lambda trainer, *_: True)
    with pytest.raises(RunInterrupted, match="after step 1 of 4"):
        train(settings)
    train(settings)
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


def refused_then_stopped_in_the_last_evaluation(recipe_file, overrides):
    """What each rank does: a run that is refused, and in the same process group a good one."""
    with pytest.raises(RecipeError, match="holds no run"):
        train(load_recipe(recipe_file, [*overrides, f"train.output_dir={recipe_file.parent}"]))
    if os.environ["RANK"] == "1":
        signal_before(WeightedSftTrainer, "prediction_step", at_the_end)
    summary = train(load_recipe(recipe_file, overrides))
    assert (summary.steps, summary.eval_loss) == (2, None)


@pytest.mark.slow
def test_ranks_train_again_after_a_refusal_and_end_together(recipe_file, rows, on_ranks, tmp_path):
    overrides = ["train.max_steps=2", "train.per_device_train_batch_size=1", f"data.eval={rows}"]
    body = refused_then_stopped_in_the_last_evaluation
    assert on_ranks(2, body, recipe_file, overrides) == [0, 0]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["eval_loss"]) == ("finished", None)
    verify(tmp_path / "run" / "adapter")
