"""trackio: the figures and the recipe in the run's folder, and not a single connection."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path

from transformers import TrainerState

run, seen = Path(sys.argv[1]), []

def hook(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.posix_spawn", "os.fork")):
        seen.append([event, str(arguments)[:200]])
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append([event, str(arguments[0])])

from gptoss_tune.recipe.schema import TrackingSection
from gptoss_tune.train.metrics.trackio_tracker import TrackioTracker

sys.addaudithook(hook)
for after, lines in ((0, [1, 2, 3]), (2, [3, 4])):  # the second start is resumed after step 2
    tracker = TrackioTracker(TrackingSection(trackio="local"), run, {"lora": {"rank": 4}})
    state = TrainerState(is_world_process_zero=True, global_step=after)
    tracker.on_train_begin(None, state, None)
    for step in lines:
        state.global_step = step
        # The line that is written again is another one.
        tracker.on_log(None, state, None, {"loss": after + 1 / step, "nothing": float("nan")})
        tracker.on_log(None, state, None, {"eval_loss": 2 / step})
    tracker.close()
from trackio.sqlite_storage import SQLiteStorage

logs = SQLiteStorage.get_logs("gptoss-tune", run.name)
config = SQLiteStorage.get_run_config("gptoss-tune", run.name)
print(json.dumps({"seen": seen, "logs": logs, "config": config}))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is an extra")
def test_figures_and_recipe_stay_in_the_folder_and_nothing_is_connected(tmp_path):
    run = tmp_path / "first"
    run.mkdir()
    secrets = {"HF_TOKEN": "hf_" + "canary" * 6, "TRACKIO_SPACE_ID": "somebody/space"}
    secrets |= {"TRACKIO_BUCKET_ID": "somebody/bucket", "TRACKIO_WEBHOOK_URL": "http://127.0.0.1:9"}
    secrets |= {"TRACKIO_DATASET_ID": "somebody/dataset", "SPACE_REPO_NAME": "space"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run), "--secret=canary-in-argv"],
        env={**os.environ, **secrets, "TRACKIO_SERVER_URL": "http://127.0.0.1:9/?write_token=t"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [event for event in found["seen"] if event[0] != "open"] == []
    written = [path for _, path in found["seen"]]
    assert written and all(path.startswith(str(run / "trackio")) for path in written)
    values = [(line["step"], line.get("loss"), line.get("eval_loss")) for line in found["logs"]]
    assert len(values) == 8, "lines that a resumed run writes again are kept once"
    losses = {(1, 1.0), (2, 1 / 2), (3, 2 + 1 / 3), (4, 2 + 1 / 4)}
    assert {(s, x) for s, x, _ in values if x is not None} == losses
    assert {(s, x) for s, _, x in values if x is not None} == {(n, 2 / n) for n in (1, 2, 3, 4)}
    assert found["config"] == {"lora": {"rank": 4}}
    for path in run.rglob("*"):
        assert b"canary" not in (path.read_bytes() if path.is_file() else b""), path
