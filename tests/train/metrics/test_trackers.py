"""trackio and wandb, whole runs: what they hold is what ``metrics.jsonl`` holds, also resumed."""

import importlib.util
import json
import sqlite3
import struct
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# A run that dies after its third line, of which its checkpoint knows nothing, and goes on.
SCRIPT = """
import sys
from accelerate.state import AcceleratorState, GradientState, PartialState
from gptoss_tune.recipe import load_recipe
from gptoss_tune.telemetry import switch_off_telemetry

switch_off_telemetry()
from gptoss_tune.train import sft
from gptoss_tune.train.run import train

recipe = load_recipe(sys.argv[1])
original = sft.WeightedSftTrainer.log

def dies_after_step_3(self, logs, start_time=None):
    original(self, logs, start_time)
    if self.state.global_step == 3:
        raise KeyboardInterrupt

sft.WeightedSftTrainer.log = dies_after_step_3
try:
    train(recipe)
except KeyboardInterrupt:
    print("died")
sft.WeightedSftTrainer.log = original
for state in (AcceleratorState, GradientState, PartialState):
    state._reset_state()
train(recipe)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, rows):
    folder = tmp_path_factory.mktemp("trackers") / "first"
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 2}\n"
        f"data: {{train: {rows}, eval: {rows}, max_length: 256}}\n"
        f"train: {{output_dir: {folder}, max_steps: 4, save_steps: 2, eval_steps: 2,\n"
        "        activation_checkpointing: none}\n"
        "tracking: {wandb: offline, trackio: local}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(recipe), "canary-in-argv"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "died" in done.stdout
    return folder


@pytest.fixture(scope="module")
def lines(run):
    """``(step, figures)`` of each line of ``metrics.jsonl``, without what is no number."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row.pop("step"), {k: v for k, v in row.items() if v is not None}) for row in rows]


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is an extra")
def test_trackio_holds_the_lines_of_the_run_each_once(run, lines):
    assert {step for step, _ in lines} == {1, 2, 3, 4}
    assert any("eval_loss" in figures for _, figures in lines)
    with sqlite3.connect(run / "trackio" / "gptoss-tune.db") as database:
        found = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
        stored = [(name, step, json.loads(metrics)) for name, step, metrics in found]
        configs = database.execute("SELECT run_name, config FROM configs").fetchall()
    assert {name for name, _, _ in stored} == {"first"}
    assert [(step, figures) for _, step, figures in stored] == lines
    assert [name for name, _ in configs] == ["first"]
    assert json.loads(configs[0][1])["lora"]["rank"] == 2


def test_wandb_goes_on_in_the_same_run_with_the_same_lines(run, lines):
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    before, after = (wandb_run(file) for file in files)
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    assert before[0] == after[0] == run_id
    assert before[1].keys() == {1, 2, 3} and after[1].keys() == {3, 4}
    expected = {}
    for step, figures in lines:
        expected.setdefault(step, {}).update(figures)
    for step, (written, *_) in enumerate([before, before, after, after], start=1):
        stored = (before if step < 3 else after)[1][step]
        assert {k: v for k, v in stored.items() if not k.startswith("_")} == expected[step]
        assert written == run_id


def test_wandb_is_told_figures_and_recipe_not_command_code_or_machine(run):
    written = [path for path in (run / "wandb").rglob("*") if path.is_file()]
    assert len(written) > 2
    for path in written:
        if path.suffix != ".log":  # logs stay here
            data = path.read_bytes()
            assert b"canary-in-argv" not in data and b"dies_after_step_3" not in data, path
    kinds = {kind for path in (run / "wandb").rglob("*.wandb") for kind in wandb_run(path)[2]}
    assert {"history", "config"} & kinds and "environment" not in kinds


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is an extra")
def test_rewards_reach_both_trackers_under_their_names_and_no_episode_does(tmp_path, monkeypatch):
    """Offline. Figures alone leave a run's folder, so what episodes say stays in it."""
    from transformers import TrainerState

    from gptoss_tune.recipe.schema import TrackingSection
    from gptoss_tune.train.metrics.trackio_tracker import TrackioTracker
    from gptoss_tune.train.metrics.wandb_tracker import WandbTracker

    monkeypatch.setenv("TRACKIO_DIR", "")  # is put back, whatever the tracker sets
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads the folder once, when it is imported
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step-1.jsonl").write_text('{"messages": "canary"}\n')
    trained = {"loss": 0.1, "reward": 0.5, "reward_answer": 0.25, "mismatch_kl": 1e-6}
    trained |= {"groups_without_signal": 0.5, "episode_tokens": 41.0, "entropy": 0.75}
    held_out = {"eval_reward": 0.625, "eval_reward_answer": 0.5}
    tracking = TrackingSection(wandb="offline", trackio="local")
    for tracker in (
        WandbTracker(tracking, tmp_path, {"a": 1}, "0123abcd"),
        TrackioTracker(tracking, tmp_path, {"a": 1}),
    ):
        state = TrainerState(is_world_process_zero=True)
        tracker.on_train_begin(None, state, None)
        state.global_step = 1
        tracker.on_log(None, state, None, trained)
        tracker.on_log(None, state, None, held_out)
        tracker.close()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    stored = wandb_run(file)[1][1]
    assert {k: v for k, v in stored.items() if not k.startswith("_")} == trained | held_out
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        lines = opened.execute("SELECT metrics FROM metrics ORDER BY id").fetchall()
    assert [json.loads(line) for (line,) in lines] == [trained, held_out]
    for folder in ("wandb", "trackio"):
        for path in (tmp_path / folder).rglob("*"):
            assert b"canary" not in (path.read_bytes() if path.is_file() else b""), path


def wandb_run(path):
    """Return id, figures by step and kinds of records of wandb's file, a log of framed messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    run_id, steps, kinds = None, {}, set()
    while at < len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            kinds.add(record.WhichOneof("record_type"))
            run_id = record.run.run_id or run_id
            figures = {i.key or i.nested_key[0]: json.loads(i.value_json)
                       for i in record.history.item}  # fmt: skip
            if figures:
                steps.setdefault(record.history.step.num, {}).update(figures)
    return run_id, steps, kinds
