"""A hub on loopback, a run to push to it, and a few small files."""

import importlib.util
import json
from pathlib import Path

import pytest

from gptoss_tune.export.hub.card_text import new_card
from gptoss_tune.weights import open_checkpoint

spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).parent / "hub_server.py")
hub_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub_server)


@pytest.fixture(name="TOKEN")
def token():
    return hub_server.TOKEN


@pytest.fixture
def hub(monkeypatch, TOKEN):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The protocol spoken here is git-LFS; Xet needs a storage service of its own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with hub_server.Hub() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


@pytest.fixture
def no_client_waits(monkeypatch):
    """The client's own pauses between retries cost a test up to 15 s; ours are recorded."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def run(adapter_copy, base, tmp_path):
    """A run as training leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    adapter_copy.rename(folder / "adapter")
    source = {"path": "/home/someone/secret/chat.jsonl", "name": None}
    record = {
        "status": "finished",
        "steps": 30,
        "loss": 0.25,
        "eval_loss": 0.5,
        "seconds": 12.5,
        "base": {"name": str(base), "fingerprint": open_checkpoint(base).fingerprint()},
        "environment": {"libraries": {"torch": "2.13.0", "peft": "0.21.2"}},
        "data": [
            {"split": "train", "path": source["path"], "sha256": "0" * 64},
            {"split": "train", "path": "someone/dataset", "sha256": None},
        ],
        "recipe": {
            "model": {"name_or_path": str(base)},
            "lora": {"rank": 4},
            "data": {"train": [source, {"path": "someone/dataset"}], "eval": None},
            "train": {"output_dir": str(folder), "resume": "auto"},
            "tracking": {"wandb": "disabled"},
        },
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": i, "loss": 3.0 / i} for i in range(1, 31)]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


@pytest.fixture
def some_files(tmp_path):
    """A card and a file of weights."""
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"w" * 10_000)
    card = new_card("tuned", {"tags": ["gptoss-tune"]}, "An adapter.")
    return {"README.md": card.encode(), "adapter_model.safetensors": weights}
