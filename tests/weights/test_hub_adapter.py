"""An adapter by its name on the Hub: downloaded, opened, and told from a run that is not there."""

import json
import shutil

import pytest

from gptoss_tune.errors import CheckpointError
from gptoss_tune.run.record import trained_merge_aware, wanted_survival
from gptoss_tune.weights import sources
from gptoss_tune.weights.sources import adapter_folder, base_name, is_adapter, is_name_on_hub


@pytest.fixture
def on_hub(monkeypatch, tmp_path):
    """Repositories by name; what was asked of them."""
    repos, asked = {}, []

    def download(name, revision, patterns):
        asked.append((name, tuple(patterns)))
        folder = tmp_path / "cache" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file, value in repos[name].items():
            if file in patterns:
                (folder / file).write_text(json.dumps(value))
        return folder

    monkeypatch.setattr(sources, "download", download)
    monkeypatch.chdir(tmp_path)
    return repos, asked


CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "base_model_name_or_path": "openai/gpt-oss-20b",
}


def test_an_adapter_by_name(on_hub):
    repos, asked = on_hub
    files = {"adapter_config.json": CONFIG, "adapter_model.safetensors": "", "README.md": ""}
    recipe = {"lora": {"merge_aware": True}, "export": {"min_survival": 0.5}}
    card = {"base": {"name": "acme/base"}, "data": ["x"], "recipe": recipe}
    repos["acme/bot"] = {**files, "run_card.json": card}
    assert is_adapter("acme/bot")
    folder = adapter_folder("acme/bot")
    assert (folder / "adapter_config.json").is_file() and not (folder / "README.md").exists()
    assert base_name(["acme/bot"]) == ("acme/base", None), "the card of the push says it"
    assert trained_merge_aware(folder) is True and wanted_survival(folder) == 0.5
    assert {name for name, _ in asked} == {"acme/bot"}


def test_a_whole_model_by_name_is_no_adapter(on_hub):
    repos, _ = on_hub
    repos["acme/model"] = {"config.json": {}}
    repos["acme/both"] = {"config.json": {}, "adapter_config.json": CONFIG}
    assert not is_adapter("acme/model") and not is_adapter("acme/both")
    with pytest.raises(CheckpointError, match="expected an adapter, not a whole model"):
        adapter_folder("acme/model")
    with pytest.raises(CheckpointError, match="beside a whole model"):
        adapter_folder("acme/both")


def test_a_run_that_is_not_there_is_not_asked_of_the_hub(on_hub, tmp_path):
    (tmp_path / "runs").mkdir()
    assert not is_name_on_hub("runs/missing") and is_name_on_hub("acme/bot")
    for path in ("runs/missing", "bot", "./acme/bot", "a/b/c", str(tmp_path / "x")):
        with pytest.raises(CheckpointError, match="no such folder"):
            adapter_folder(path)
    assert on_hub[1] == []
