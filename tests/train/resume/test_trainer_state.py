"""A trainer state that no training wrote, with a manifest that is true: one message."""

import json

import pytest
from transformers import TrainerState

from gptoss_tune.errors import CheckpointError
from gptoss_tune.train.resume.trainer_state import check_trainer_state

HONEST = {
    "epoch": 0.25,
    "global_step": 3,
    "max_steps": 3,
    "logging_steps": 1,
    "eval_steps": 500,
    "save_steps": 1,
    "train_batch_size": 2,
    "num_train_epochs": 1,
    "num_input_tokens_seen": 0,
    "total_flos": 1e9,
    "log_history": [{"step": 1, "epoch": 0.1, "loss": 13.3}, {"step": 2, "eval_loss": 1.0}],
    "best_metric": None,
    "best_global_step": None,
    "best_model_checkpoint": None,
    "is_local_process_zero": True,
    "is_world_process_zero": True,
    "is_hyper_param_search": False,
    "trial_name": None,
    "trial_params": None,
    "stateful_callbacks": {"TrainerControl": {"args": {"should_save": True}, "attributes": {}}},
}
FORGED = {
    "an extra key": {"__class__": "x"},
    "another step": {"global_step": 2},
    "a step of text": {"global_step": "3"},
    "no step": {"global_step": None},
    "a list of callbacks": {"stateful_callbacks": ["TrainerControl"]},
    "a history of text": {"log_history": "loss"},
    "a history of numbers": {"log_history": [1]},
    "no history": {"log_history": None},
    "a loss of text": {"log_history": [{"step": 1, "loss": "low"}]},
    "a loss of nothing": {"log_history": [{"step": 1, "loss": None}]},
    "an entry of nothing": {"log_history": [None]},
    "logged every zero steps": {"logging_steps": 0},
    "saved every minus one": {"save_steps": -1},
    "evaluated by text": {"eval_steps": "all"},
    "a batch of nothing": {"train_batch_size": None},
    "an epoch that is none": {"epoch": float("nan")},
    "no epoch": {"epoch": None},
    "a path of somebody's": {"best_model_checkpoint": "/etc"},
    "a trial": {"trial_params": {"a": 1}},
}
TEXTS = {
    "a list": "[]",
    "empty": "",
    "an empty mapping": "{}",
    "nested": '{"log_history": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "a key twice": '{"global_step": 3, "global_step": 3}',
    "a number": "3",
}


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    return folder


def test_what_a_training_writes_is_taken(checkpoint):
    file = checkpoint / "trainer_state.json"
    for state in (HONEST, HONEST | {"log_history": [{"step": 1, "eval_loss": float("nan")}]}):
        file.write_text(json.dumps(state))
        check_trainer_state(checkpoint)
        assert TrainerState.load_from_json(str(file)).global_step == 3
    TrainerState(global_step=3, train_batch_size=1, max_steps=4).save_to_json(str(file))
    check_trainer_state(checkpoint)


@pytest.mark.parametrize("case", [*FORGED, *TEXTS])
def test_what_no_training_writes_is_refused(checkpoint, case):
    file = checkpoint / "trainer_state.json"
    text = json.dumps(HONEST | FORGED[case]) if case in FORGED else TEXTS[case]
    file.write_text(text)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json: ") as refused:
        check_trainer_state(checkpoint)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_state_that_is_missing_or_elsewhere_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="no such file; resume from another checkpoint"):
        check_trainer_state(checkpoint)
    (checkpoint.parent / "other.json").write_text(json.dumps(HONEST))
    (checkpoint / "trainer_state.json").symlink_to("../other.json")
    with pytest.raises(CheckpointError, match="is a link to"):
        check_trainer_state(checkpoint)
