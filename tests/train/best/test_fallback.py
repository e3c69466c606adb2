"""Where the newest checkpoint is damaged the one before it is gone on from, with the best it names.

The run's losses are lowest at step 1, then at step 3 (see the fixture ``overfitting``).
"""

import json
import re
import shutil

import pytest
from transformers import TrainerCallback

from gptoss_tune.errors import CheckpointError
from gptoss_tune.train.run import train

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """What no part of a run catches."""


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise Killed


def steps(run):
    return {int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")}


def test_an_older_best_stays_as_long_as_a_checkpoint_names_it(recipe, overfitting, tmp_path):
    kept = [one for one in overfitting if not re.search("early_stopping|max_steps|limit", one)]
    settings = (*kept, "train.max_steps=5", "train.save_total_limit=2")
    run = tmp_path / "run"
    with pytest.raises(Killed):
        train(recipe(*settings), callbacks=[Kill()])
    assert steps(run) == {1, 2, 3}  # the two newest, and the best of checkpoint-2
    weights = run / "checkpoint-3" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    # Gone all the same: what the message says to do works.
    shutil.move(run / "checkpoint-1", tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"names checkpoint-1 as .* gone;") as said:
        train(recipe(*settings))
    advice = re.findall(r"train\.(?:output_dir|resume)=\S+", str(said.value))
    train(recipe(*settings, *(one.replace("NEW", str(tmp_path / "new")) for one in advice)))
    found = json.loads((tmp_path / "new" / "run.json").read_text())
    assert found["status"] == "finished" and found["best"]["step"] == 3
    # With it the run goes on to the end that it would have had.
    shutil.move(tmp_path / "away", run / "checkpoint-1")
    train(recipe(*settings))
    assert steps(run) == {3, 4, 5}  # the two newest, and the best of both
    found = json.loads((run / "run.json").read_text())
    assert (found["best"]["step"], found["best"]["value"]) == (3, pytest.approx(11.4472, abs=1e-4))
